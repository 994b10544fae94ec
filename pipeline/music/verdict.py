"""From curves to keep or drop, second by second. Pure: the same curves and settings give the same verdict."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from pipeline.config import VerdictSettings
from pipeline.music.curves import Curves

ALWAYS_KEPT = (0.8, 0.05)
"""DVMSet's policy: a window with music in so much of its seconds and no more voice, as a share of energy, is kept."""
ALWAYS_DROPPED = (0.5, 0.3)
"""... and one with music in less, or with so much voice, is not, whatever the settings say."""

REASONS = (
    "silence",   # nothing to hear
    "no_music",  # sound, but neither music nor speech: effects, noise
    "speech",    # speech without music, or too loud over it
    "voice",     # too much voice over the music that isn't heard as speech: mostly singing
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Verdict:
    """One decision per second of the curves.

    Attributes:
        keep: [n] bool, whether the second may be part of a clip.
        reasons: n of `REASONS`, "" where the second is kept.
        music: [n] bool, whether there is music in it, bridged gaps not counted.
    """

    keep: np.ndarray
    reasons: tuple[str, ...]
    music: np.ndarray


def judge(curves: Curves, settings: VerdictSettings) -> Verdict:
    """Decides on each second.

    DVMSet's policy: some voice is taken out by the separation, too much drops the second; and music must really be
    heard, since sound effects have no voice either. The detector checks the separation: where it hears a voice in the
    mix, less voice energy will do (`voice_ratio_heard_max`); where it still hears speech in the voice-free music, the
    separation has missed it, whatever the ratio says.

    Scores are median-filtered over `smooth_s` first, so that a cough doesn't cut a clip, and gaps of at most `bridge_s`
    between kept seconds are kept too, unless they are silent: silence is where one track ends and the next begins. What
    that lets in is held down by `window_reason`.
    """
    silent = curves.silence > settings.silence_share_max
    music = _smooth(curves.music, settings.smooth_s) >= settings.music_min
    music &= curves.separated if len(curves.separated) else True
    speech = _smooth(curves.speech, settings.smooth_s) >= settings.speech_min
    heard = speech | (_smooth(curves.singing, settings.smooth_s) >= settings.speech_min)
    most = np.clip(settings.voice_ratio_max, ALWAYS_KEPT[1], ALWAYS_DROPPED[1])
    limit = np.where(heard, np.clip(settings.voice_ratio_heard_max, ALWAYS_KEPT[1], most), most)
    voice = _smooth(curves.voice_ratio, settings.smooth_s) > limit
    missed = _smooth(curves.speech_left, settings.smooth_s) > settings.speech_left_max
    reasons = np.select(
        [silent, ~music & speech, ~music, missed | (voice & speech), voice],
        ["silence", "speech", "no_music", "speech", "voice"],
        default="",
    )
    keep = reasons == ""
    bridged = _bridge(keep, silent, settings.bridge_s)
    reasons[bridged] = ""
    return Verdict(keep | bridged, tuple(str(r) for r in reasons), music & ~silent)


def window_reason(curves: Curves, verdict: Verdict, start_ms: int, end_ms: int, settings: VerdictSettings) -> str:
    """Why [start_ms, end_ms) as a whole can't be a clip; "" if it can.

    Its seconds may each have passed, but with gaps bridged too often, or with short voices that are too loud. What the
    settings say counts between the bounds of the policy, `ALWAYS_KEPT` and `ALWAYS_DROPPED`.
    """
    seconds = curves.window(start_ms, end_ms)
    music, voice = float(np.mean(verdict.music[seconds])), curves.voice_share(seconds)
    if music >= ALWAYS_KEPT[0] and voice <= ALWAYS_KEPT[1]:
        return ""
    if music < max(settings.music_share_min, ALWAYS_DROPPED[0]):
        return "no_music"
    if voice > settings.voice_ratio_max or voice >= ALWAYS_DROPPED[1]:
        return "voice"
    return ""


def _smooth(curve: np.ndarray, width: int) -> np.ndarray:
    """Median over `width` seconds around each; mirrored at the ends, so that a short last second has no say."""
    from scipy.ndimage import median_filter

    return median_filter(curve, size=width, mode="reflect") if len(curve) else curve


def _bridge(keep: np.ndarray, silent: np.ndarray, longest: int) -> np.ndarray:
    """[n] bool: the seconds of short gaps between kept ones that hold no silence."""
    bridged = np.zeros(len(keep), bool)
    first = 0
    for kept, run in groupby(keep):
        last = first + len(list(run))
        inside = first > 0 and last < len(keep)
        if not kept and inside and last - first <= longest and not silent[first:last].any():
            bridged[first:last] = True
        first = last
    return bridged
