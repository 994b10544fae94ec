"""All that a person sees of one window, as plain values for a page; times are seconds of the media."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import SourceError
from pipeline.process.artefacts import STEM_RATE
from pipeline.process.decide import section
from pipeline.review.windows import Window

if TYPE_CHECKING:
    from pipeline.music import Curves
    from pipeline.process import Desk

CONTEXT_S = 5  # shown on either side
BINS = 800  # of a waveform
WAVE_RATE = 8_000
SHOWN = ("music", "speech", "singing", "voice_ratio", "silence", "speech_left")


def view(desk: Desk, window: Window) -> dict[str, Any]:
    """Curves, verdict, cuts, beats and waveforms of a window and a little on either side.

    Curves of voices and stems are None in seconds that were not separated.
    `media` and `stem` say whether the files are still here; without media there is no waveform.
    """
    from pipeline.music import beats, judge
    from pipeline.music.shown import numbers, shown, shown_stems

    source, media = desk.ledger.source(window.source_id), desk.ledger.media(window.source_id)
    assert media is not None
    curves = desk.files.read_curves(source, media)
    origin_ms, until_ms = section(source, media.duration_ms)
    start_s, end_s = context(window, origin_ms, until_ms)
    seconds = curves.window(round(start_s * 1000), round(end_s * 1000))
    first_s = curves.start_ms / 1000 + seconds.start
    found = beats(curves, window.start_ms, window.end_ms, desk.profile.music)
    stem = desk.files.stem(source, media)
    here = {"media": desk.store.exists(media.name), "stem": desk.store.exists(stem)}
    waves = {}
    if here["media"]:
        try:
            with desk.store.read(media.name) as path:
                waves["mix"] = _of_media(path, start_s, end_s)
        except SourceError:  # damaged since it was kept: what was measured is shown all the same
            here["media"] = False
    if here["stem"]:
        with desk.store.read(stem) as path:
            waves["stem"] = _of_stem(path, origin_ms / 1000, start_s, end_s)
    return {
        **vars(window),
        **here,
        "title": media.details["title"] or source.url,
        "url": source.url,
        "category": source.category,
        "section_s": origin_ms / 1000,
        "start_s": start_s,
        "end_s": end_s,
        "why": why(curves, desk, window),
        "curves": {
            "first_s": first_s,
            **{name: numbers(shown(curves, name)[seconds]) for name in SHOWN},
            "stems_db": {name: numbers(levels[seconds], 1) for name, levels in shown_stems(curves).items()},
        },
        "reasons": judge(curves, desk.profile.verdict).reasons[seconds],
        "thresholds": desk.profile.verdict.model_dump(mode="json"),
        "cuts_s": [t for t in desk.files.read_cuts(media) if start_s <= t <= end_s],
        "beats_s": [round(window.start_ms / 1000 + float(t), 3) for t in found.times_s],
        "tempo_bpm": round(found.tempo_bpm, 1),
        "waves": waves,
    }


def context(window: Window, start_ms: int, end_ms: int) -> tuple[float, float]:
    """What is shown with a window: `CONTEXT_S` on either side, within the section [start_ms, end_ms); seconds."""
    start, end = window.start_ms - 1000 * CONTEXT_S, window.end_ms + 1000 * CONTEXT_S
    return max(start_ms, start) / 1000, min(end_ms, end) / 1000


def why(curves: Curves, desk: Desk, window: Window) -> str:
    """What the rules go by, in a sentence."""
    from pipeline.music.shown import shown_share

    settings = desk.profile.verdict
    seconds = curves.window(window.start_ms, window.end_ms)
    voice = shown_share(curves, seconds)
    music = float(np.mean(curves.music[seconds] >= settings.music_min))
    if voice is None:
        heard = "Nothing was separated, so how much is voice isn't known"
    else:
        heard = f"Voice is {voice:.0%} of the energy (at most {settings.voice_ratio_max:.0%})"
    return f"{heard}, and {music:.0%} of the seconds are music (at least {settings.music_share_min:.0%})."


def _of_media(path: Path, start_s: float, end_s: float) -> dict[str, list[float]]:
    from pipeline.media import audio_blocks

    span = {"start_s": start_s, "end_s": end_s}
    blocks = list(audio_blocks(path, rate=WAVE_RATE, channels=1, **span))
    return _envelope(np.concatenate(blocks, axis=1)[0] if blocks else np.zeros(0, np.float32))


def _of_stem(path: Path, origin_s: float, start_s: float, end_s: float) -> dict[str, list[float]]:
    import soundfile

    first, last = (round((t - origin_s) * STEM_RATE) for t in (start_s, end_s))
    return _envelope(soundfile.read(path, start=first, stop=last, dtype="float32")[0])


def _envelope(audio: np.ndarray) -> dict[str, list[float]]:
    """[N] -> lowest and highest sample of each of up to `BINS` equal parts."""
    if not len(audio):
        return {"low": [], "high": []}
    edges = np.unique(np.linspace(0, len(audio), BINS + 1).astype(int)[:-1])
    return {
        "low": [round(float(v), 3) for v in np.minimum.reduceat(audio, edges)],
        "high": [round(float(v), 3) for v in np.maximum.reduceat(audio, edges)],
    }
