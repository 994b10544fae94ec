"""How well music follows a video's cuts: every metric under a name of its own, with its definition beside it.

Onsets are the strong ones of librosa's onset strength: what a listener notes as accents, not every note. The two
published pairs of beat scores compare with the reference music, not with the video, count whole seconds, and are
defined differently under the same names, so both are here, as their authors' code has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.music.tempo import LATENCY_S

RATE = 22050  # Hz, at which music is listened to; the published scores want it too
HOP = 256  # samples between values of the onset strength: 11.6 ms
STRENGTH = 0.45
"""Of the strongest in the piece, above the local mean, makes an onset: of 0.2 to 0.7 the value at which onsets are the
known accents most nearly, in music of the scores that the nano models are trained on (F1 0.92 where the music dips
before each accent, 0.90 at 0.4 and 0.5; 0.82 where it doesn't, as at 0.5, and 0.81 at 0.4)."""
TOLERANCES_S = (0.07, 0.15)
CONFIDENCE = 0.95
DRAWS = 4000  # of the bootstrap

_HEARD = (
    f"onsets: peaks of librosa's onset strength (mel flux, {RATE} Hz, hop {HOP}), scaled to 0..1 over the piece, that "
    f"stand {STRENGTH} above their local mean, {LATENCY_S * 1000:.0f} ms earlier than librosa shows them"
)
_BINS = "onsets of librosa.onset.onset_detect at 22050 Hz with wait=1, delta=0.2"
DEFINITIONS = {
    **{
        f"onset_{name}_{round(1000 * t)}ms": f"{says}; matched one to one within {round(1000 * t)} ms, as many pairs "
        f"as possible; {_HEARD}"
        for t in TOLERANCES_S
        for name, says in {
            "f1": "harmonic mean of precision and recall of onsets against cuts",
            "precision": "share of onsets that are matched with a cut",
            "recall": "share of cuts that are matched with an onset",
        }.items()
    },
    **{
        f"cut_beat_hit_{round(1000 * t)}ms": f"share of cuts with a beat within {round(1000 * t)} ms; beats as "
        "librosa.beat.beat_track (Ellis 2007) finds them in the same onset strength"
        for t in TOLERANCES_S
    },
    "bcs_d2mgan": f"D2M-GAN's beats coverage: seconds with an onset in the music over those in the reference music, "
    f"which can pass 1; {_BINS}, pre_avg=post_avg=post_max=1",
    "bhs_d2mgan": "D2M-GAN's beats hit: seconds with an onset in both over those in the reference music; same onsets",
    "bcs_loris": f"LORIS' beats coverage: seconds with an onset in both over those in the music, a precision; {_BINS}, "
    "pre_avg=post_avg=pre_max=post_max=3",
    "bhs_loris": "LORIS' beats hit: seconds with an onset in both over those in the reference music; same onsets",
}


@dataclass(frozen=True)
class Heard:
    """What is heard in a piece of music.

    Attributes:
        onsets_s: strong onsets, seconds from the start, ascending.
        beats_s: the beats.
        d2mgan: for each second whether D2M-GAN's settings find an onset in it.
        loris: the same with LORIS' settings.
    """

    onsets_s: tuple[float, ...]
    beats_s: tuple[float, ...]
    d2mgan: tuple[bool, ...]
    loris: tuple[bool, ...]


def hear(audio: np.ndarray, rate: int) -> Heard:
    """Listens to [N] float32 samples at `rate` Hz."""
    import librosa

    audio = librosa.resample(audio.astype(np.float32), orig_sr=rate, target_sr=RATE)
    strength = librosa.onset.onset_strength(y=audio, sr=RATE, hop_length=HOP)
    frames = librosa.onset.onset_detect(onset_envelope=strength, sr=RATE, hop_length=HOP, delta=STRENGTH)
    beats = np.zeros(0)
    if np.ptp(strength):
        _, beats = librosa.beat.beat_track(onset_envelope=strength, sr=RATE, hop_length=HOP)
    coarse = librosa.onset.onset_strength(y=audio, sr=RATE)
    seconds = math.ceil(len(audio) / RATE)
    return Heard(
        _times(frames),
        _times(beats),
        _seconds(coarse, seconds, pre_avg=1, post_avg=1, post_max=1),
        _seconds(coarse, seconds, pre_avg=3, post_avg=3, pre_max=3, post_max=3),
    )


def follows(music: Heard, cuts_s: Sequence[float], reference: Heard) -> dict[str, float]:
    """All metrics of `DEFINITIONS` for one piece.

    Args:
        music: what was made for the video.
        cuts_s: the video's cuts, ascending.
        reference: the music that the video has in the data set, equally long.

    Raises:
        ValueError: the video has no cut, so that there is nothing to follow.
    """
    if not cuts_s:
        raise ValueError("a video without cuts has nothing to be followed")
    values = {}
    for tolerance in TOLERANCES_S:
        name = f"{round(1000 * tolerance)}ms"
        for metric, value in agreement(music.onsets_s, cuts_s, tolerance)._asdict().items():
            values[f"onset_{metric}_{name}"] = value
        values[f"cut_beat_hit_{name}"] = hit_rate(cuts_s, music.beats_s, tolerance)
    values["bcs_d2mgan"], values["bhs_d2mgan"] = d2mgan_scores(music.d2mgan, reference.d2mgan)
    values["bcs_loris"], values["bhs_loris"] = loris_scores(music.loris, reference.loris)
    return values


class Agreement(NamedTuple):
    """Of found times with wanted ones."""

    f1: float
    precision: float
    recall: float


def agreement(found_s: Sequence[float], wanted_s: Sequence[float], tolerance_s: float) -> Agreement:
    """Precision, recall and F1 over one-to-one matches; a share of nothing is 0."""
    pairs = matches(found_s, wanted_s, tolerance_s)
    precision, recall = (pairs / len(times) if times else 0.0 for times in (found_s, wanted_s))
    return Agreement(2 * precision * recall / (precision + recall) if pairs else 0.0, precision, recall)


def matches(a: Sequence[float], b: Sequence[float], tolerance: float) -> int:
    """The largest number of pairs no further apart than `tolerance`, each time in one pair at most.

    Both ascend. If the earliest of each are close enough, some largest matching pairs them, as any other partner of
    either is the later one; else the earlier of them has no partner at all.
    """
    i = j = pairs = 0
    while i < len(a) and j < len(b):
        if abs(a[i] - b[j]) <= tolerance + 1e-9:  # as times are sums of rounded frames
            i, j, pairs = i + 1, j + 1, pairs + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return pairs


def hit_rate(cuts_s: Sequence[float], beats_s: Sequence[float], tolerance_s: float) -> float:
    """Share of cuts with a beat within the tolerance; 0 without beats."""
    if not len(beats_s):
        return 0.0
    gaps = np.abs(np.subtract.outer(np.asarray(cuts_s), np.asarray(beats_s))).min(axis=1)
    return float((gaps <= tolerance_s + 1e-9).mean())


def d2mgan_scores(generated: Sequence[bool], reference: Sequence[bool]) -> tuple[float, float]:
    """(coverage, hit) as in `beats_scores.py` of github.com/L-YeZhu/Beats_Scores; NaN where it divides by zero."""
    music, wanted, both = _counts(generated, reference)
    return (music / wanted, both / wanted) if wanted else (math.nan, math.nan)


def loris_scores(generated: Sequence[bool], reference: Sequence[bool]) -> tuple[float, float]:
    """(coverage, hit) as in `beats_scores.py` of github.com/OpenGVLab/LORIS."""
    music, wanted, both = _counts(generated, reference)
    return (both / music if music else 0.0, both / wanted if wanted else 0.0)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; n values went into it."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """For JSON, in ten-thousandths."""
        return {name: value if name == "n" else round(value, 4) for name, value in asdict(self).items()}


def interval(values: np.ndarray, *, seed: int = 0) -> Interval:
    """The mean of [seeds, videos] by the percentile bootstrap: seeds and videos are both drawn with replacement.

    NaN stands for a video that a metric isn't defined on.

    Raises:
        ValueError: a metric that is defined nowhere.
    """
    values = values[:, ~np.isnan(values).any(axis=0)]
    if not values.size:
        raise ValueError("no values to take a mean of")
    rng = np.random.default_rng(seed)
    seeds, videos = (rng.multinomial(n, np.full(n, 1 / n), DRAWS) / n for n in values.shape)  # how often each is drawn
    means = (seeds @ values * videos).sum(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(values.mean()), float(low), float(high), values.size)


def _times(frames: np.ndarray) -> tuple[float, ...]:
    return tuple(np.maximum(frames * HOP / RATE - LATENCY_S, 0.0).tolist())


def _seconds(strength: np.ndarray, seconds: int, **windows: Any) -> tuple[bool, ...]:
    import librosa

    found = librosa.onset.onset_detect(
        onset_envelope=strength, sr=RATE, units="time", wait=1, delta=0.2, **windows
    )
    held = np.zeros(seconds, bool)
    held[np.minimum(found.astype(int), seconds - 1)] = True
    return tuple(held.tolist())


def _counts(generated: Sequence[bool], reference: Sequence[bool]) -> tuple[int, int, int]:
    if len(generated) != len(reference):
        raise ValueError(f"music of {len(generated)} s can't be compared with a reference of {len(reference)} s")
    return sum(generated), sum(reference), sum(a and b for a, b in zip(generated, reference, strict=True))
