"""Why seconds are dropped, for people: each reason in words, and the colour in which every picture draws it."""

from __future__ import annotations

KEPT = ""  # the reason of what is not dropped

# Dark letters can be read on each of them, and they stand out on white and on black.
_SAID = {
    KEPT: ("kept", "#4cb782"),
    "silence": ("nothing is heard", "#8a94a6"),
    "no_music": ("sound, but no music", "#a889c9"),
    "speech": ("speech without music, or louder than it", "#e5695d"),
    "voice": ("too much voice over the music, mostly singing", "#e08a4c"),
    "too_short": ("music, but too short to be a clip", "#d9c04a"),
    "partial_shot": ("music in a shot that isn't in the stretch whole", "#a3b84a"),
    "off_beat": ("music before the first or after the last beat of a clip", "#45b8d8"),
    "duplicate": ("the same media as another source", "#7d8ff2"),
    "outside_section": ("outside the section that the list asks for", "#b9c0ca"),
    "review": ("a person said so", "#e99ad0"),
    "no_audio": ("no sound", "#9db1d6"),
    "no_video": ("no picture", "#b08d6a"),
    "out_of_sync": ("sound and picture start too far apart", "#7fb069"),
    "taken_down": ("taken down", "#c97b9b"),
    "pending": ("not worked on yet", "#d3d7dd"),
    "failed": ("the source failed", "#e0558a"),
}
_OTHER = "#c9c15a"

COLOURS = {reason: tint for reason, (_, tint) in _SAID.items()}
CURVES = {"music": KEPT, "speech": "speech", "voice_ratio": "voice", "silence": "silence"}
"""Curves that decide on a reason alone, or against it: they are drawn in its colour."""


def words(reason: str) -> str:
    """What a reason means."""
    return _SAID[reason][0] if reason in _SAID else reason.replace("_", " ")


def colour(reason: str) -> str:
    """Of a reason, as `#rrggbb`; "" is what is kept."""
    return COLOURS.get(reason, _OTHER)
