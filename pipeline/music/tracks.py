"""Where one piece of music ends and another begins: silences, and lasting changes of timbre, harmony and strokes.

What sounds before a moment and after it is compared over stretches of several lengths: inside a piece it changes, too,
but comes back. How much likelier two pieces are than one is a log likelihood ratio for each length and each group of
columns (the two-covariance model of speaker recognition: Brummer and de Villiers, "The speaker partitioning problem",
Odyssey 2010); a small network weighs these ratios around the moment. `pipeline.nano.tracks` fits both.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from pipeline.config import ClipSettings
from pipeline.music.curves import CEPSTRA, CHROMA, COLOUR_HZ, Curves

LENGTHS_S = (1.5, 3.0, 6.0, 12.0, 24.0)  # of what is compared on both sides
GROUPS = (slice(0, CEPSTRA), slice(CEPSTRA, CEPSTRA + CHROMA), slice(CEPSTRA + CHROMA, CEPSTRA + CHROMA + 2))
LAGS = (-6, -3, -1, 0, 1, 3, 6)  # rows around the moment whose ratios the network sees
LEAST_S = 4.0  # what must be heard within 12 s on both sides for there to be a change
REACH_S = 8.0  # no other change is found this near to one
_SHARE = 0.34  # of a stretch that must be heard for it to say something
_UNHEARD = -5.0  # the ratio of one that isn't


def changes_ms(curves: Curves, settings: ClipSettings) -> list[int]:
    """Times in the source at which no clip may run on: both ends of each gap, and every change of track.

    A gap is a silence of `MusicSettings.gap_s`. A change of track is a moment with a `novelty` of at least
    `change_min`, the highest within `REACH_S`.
    """
    found = [int(t) for t in curves.gaps_ms.reshape(-1)]
    curve, reach = novelty(curves), round(REACH_S * COLOUR_HZ)
    for i in np.flatnonzero(curve >= settings.change_min).tolist():
        first = max(0, i - reach)
        if i == first + int(np.argmax(curve[first : i + reach + 1])):
            found.append(curves.start_ms + i * 1000 // COLOUR_HZ)
    return sorted({t for t in found if curves.start_ms < t < curves.end_ms})


def novelty(curves: Curves) -> np.ndarray:
    """Log odds that one piece of music becomes another around the beginning of each half-second, [2 n].

    As the bundled model has it; `-inf` where less than `LEAST_S` is heard within 12 s before or after.
    """
    rows, heard = colours(curves)
    if not len(rows):
        return np.zeros(0)
    ratios, network = _model()
    z = evidence(rows, heard, ratios)
    for weights, bias in network[:-1]:
        z = np.maximum(z @ weights + bias, 0)
    weights, bias = network[-1]
    odds = (z @ weights + bias)[:, 0]
    odds = np.convolve(np.pad(odds, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
    (before, _), (after, _) = sides(rows, heard, 12.0)
    return np.where(np.minimum(before, after) >= LEAST_S * COLOUR_HZ, odds, -np.inf)


def colours(curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Timbre, root of the chroma, and level and spread of the onsets, side by side; which rows are heard.

    Returns:
        [2 n, 27] and [2 n] bool.
    """
    envelope, n = curves.onset_envelope.astype(np.float64), len(curves.timbre)
    last = (curves.end_ms - curves.start_ms) / 1000 * COLOUR_HZ  # where the envelope's last frame lies, in rows
    at = (np.arange(len(envelope)) * last / max(1, len(envelope) - 1)).astype(int).clip(0, max(0, n - 1))
    count = np.maximum(np.bincount(at, minlength=n), 1)
    mean, square = (np.bincount(at, values, n)[:n] / count[:n] for values in (envelope, envelope**2))
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    strokes = np.log(np.column_stack([mean, spread]) + 0.05)
    rows = np.column_stack([curves.timbre / 10, 4 * np.sqrt(curves.chroma), strokes]).astype(np.float64)
    return rows, curves.chroma.sum(axis=1) > 0


def sides(rows: np.ndarray, heard: np.ndarray, length_s: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For what lies before the beginning of each row, and after: how many rows are heard [m], and their mean [m, d]."""
    sums = np.pad(np.cumsum(np.column_stack([heard, rows * heard[:, None]]), axis=0), ((1, 0), (0, 0)))
    at, reach = np.arange(len(rows)), round(length_s * COLOUR_HZ)
    parts = sums[at] - sums[np.maximum(at - reach, 0)], sums[np.minimum(at + reach, len(rows))] - sums[at]
    return tuple((part[:, 0], part[:, 1:] / np.maximum(part[:, :1], 1)) for part in parts)


class Ratio(NamedTuple):
    """A log likelihood ratio of a difference x: (x form x - offset) / 2."""

    form: np.ndarray
    offset: float


def evidence(rows: np.ndarray, heard: np.ndarray, ratios: list[Ratio]) -> np.ndarray:
    """What the network sees of each moment: the ratios of all lengths and groups, compressed, at all lags.

    Args:
        rows: [m, d], as `colours` gives them.
        heard: [m].
        ratios: of each length and, inside it, each group.

    Returns:
        [m, lags x lengths x groups].
    """
    found = []
    given = iter(ratios)
    for length_s in LENGTHS_S:
        (n_before, before), (n_after, after) = sides(rows, heard, length_s)
        said = np.minimum(n_before, n_after) >= max(1.0, _SHARE * length_s * COLOUR_HZ)
        for group in GROUPS:
            shift, ratio = (after - before)[:, group], next(given)
            value = (np.einsum("ni,ij,nj->n", shift, ratio.form, shift) - ratio.offset) / 2
            found.append(np.where(said, value, _UNHEARD))
    values = np.array(found).T
    values = np.sign(values) * np.log1p(np.abs(values) / 3)
    most = max(LAGS)
    padded = np.pad(values, ((most, most), (0, 0)), mode="edge")
    return np.concatenate([padded[most + lag : most + lag + len(rows)] for lag in LAGS], axis=1)


@cache
def _model() -> tuple[list[Ratio], list[tuple[np.ndarray, np.ndarray]]]:
    """The ratios, and weights [in, out] and bias of each layer of the network."""
    from safetensors.numpy import load_file

    from pipeline import weights

    arrays = {name: array.astype(np.float64) for name, array in load_file(weights.bundled("tracks")).items()}
    ratios = [Ratio(arrays[f"form.{i}"], float(offset)) for i, offset in enumerate(arrays["offsets"])]
    layers = sum(name.startswith("weights.") for name in arrays)
    return ratios, [(arrays[f"weights.{i}"], arrays[f"bias.{i}"]) for i in range(layers)]
