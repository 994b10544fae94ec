"""Where one piece of music ends and another begins: silences, and lasting changes of timbre and harmony."""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.config import ClipSettings
from pipeline.music.curves import COLOUR_HZ, Curves

WIDTH_S = 12.0  # how much is compared on both sides of a moment; the bundled model was fitted to it
LEAST_S = 4.0  # what must be heard on both sides for there to be a change


def changes_ms(curves: Curves, settings: ClipSettings) -> list[int]:
    """Times in the source at which no clip may run on: both ends of each gap, and every change of track.

    A gap is a silence of `MusicSettings.gap_s`. A change of track is a moment with a `novelty` of at least
    `change_min`, the highest within `WIDTH_S`.
    """
    found = [int(t) for t in curves.gaps_ms.reshape(-1)]
    curve, reach = novelty(curves), round(WIDTH_S * COLOUR_HZ)
    for i in np.flatnonzero(curve >= settings.change_min).tolist():
        first = max(0, i - reach)
        if i == first + int(np.argmax(curve[first : i + reach + 1])):
            found.append(curves.start_ms + i * 1000 // COLOUR_HZ)
    return sorted({t for t in found if curves.start_ms < t < curves.end_ms})


def novelty(curves: Curves) -> np.ndarray:
    """How much likelier two pieces of music are than one around the beginning of each half-second, [2 n].

    The logarithm of the likelihood ratio of the bundled model (`pipeline.nano.tracks`), from the difference of what
    sounds in the `WIDTH_S` before and after; `-inf` where less than `LEAST_S` of either is heard.
    """
    (n_before, before), (n_after, after) = windows(*colours(curves.timbre, curves.chroma))
    form, offset = _model()
    shift = after - before
    ratio = (np.einsum("ni,ij,nj->n", shift, form, shift) - offset) / 2
    return np.where(np.minimum(n_before, n_after) >= LEAST_S * COLOUR_HZ, ratio, -np.inf)


def colours(timbre: np.ndarray, chroma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Timbre and the root of the chroma side by side, [m, d], and which rows are heard, [m] bool."""
    return np.column_stack([timbre, np.sqrt(chroma)]).astype(np.float64), chroma.sum(axis=1) > 0


def windows(rows: np.ndarray, heard: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For the `WIDTH_S` before the beginning of each row, and after: how many rows are heard [m], and their mean."""
    sums = np.pad(np.cumsum(np.column_stack([heard, rows * heard[:, None]]), axis=0), ((1, 0), (0, 0)))
    at, reach = np.arange(len(rows)), round(WIDTH_S * COLOUR_HZ)
    parts = sums[at] - sums[np.maximum(at - reach, 0)], sums[np.minimum(at + reach, len(rows))] - sums[at]
    return tuple((part[:, 0], part[:, 1:] / np.maximum(part[:, :1], 1)) for part in parts)


@cache
def _model() -> tuple[np.ndarray, float]:
    """The quadratic form [d, d] and the offset of the likelihood ratio."""
    from safetensors.numpy import load_file

    from pipeline import weights

    arrays = load_file(weights.bundled("tracks"))
    return arrays["form"].astype(np.float64), float(arrays["offset"][0])
