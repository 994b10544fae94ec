"""What two sources share, and when: hits that lie on one line of time, verified code by code along it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.fingerprint.codes import UNUSABLE, Codes, distance, mirrored
from pipeline.fingerprint.index import Hits

SPEEDS = np.round(np.arange(0.95, 1.0501, 0.005), 3)  # PAL's speed-up is 1.043
LEAST_HITS = 3  # moments of the indexed source that must lie on a line
LEAST_S = 2.0  # a shorter stretch is not noted
SAME = 17.0  # mean bits of 64 by which codes may differ over `_OVER_S`; unrelated ones differ by 32, give or take 4
_OVER_S = 3.0
_WIDTH_S = 0.5  # of a line
_FIT_S = 8.0  # hits that stretch over less don't tell the speed
_LINES = 12  # looked for between two sources


@dataclass(frozen=True)
class Match:
    """A stretch that two sources share.

    Attributes:
        first: (start_ms, end_ms) in the source asked about; second: in the one that was found.
        speed: how many seconds of `second` pass in one of `first`.
        mirror: whether one is the other's mirror image.
        distance: mean bits of 64 that differ.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    speed: float
    mirror: bool
    distance: float

    @property
    def seconds(self) -> float:
        """Its length in the source asked about."""
        return (self.first[1] - self.first[0]) / 1000


def candidates(hits: Hits) -> Iterator[tuple[int, Hits]]:
    """The hits of each source that has enough of them to be looked at."""
    if len(hits.source) < LEAST_HITS:
        return
    order = np.argsort(hits.source, kind="stable")
    sources, counts = np.unique(hits.source, return_counts=True)
    for source, count in zip(sources, counts, strict=True):
        rows, order = order[:count], order[count:]
        if len(np.unique(hits.found[rows])) >= LEAST_HITS:
            yield int(source), Hits(hits.source[rows], hits.asked[rows], hits.found[rows], hits.mirror[rows])


def match(asked: Codes, found: Codes, hits: Hits) -> list[Match]:
    """The stretches that two sources share, given their hits; those that overlap in both are told once."""
    at, to = _seconds(asked, hits.asked), _seconds(found, hits.found)
    left = np.ones(len(at), bool)
    matches: list[Match] = []
    for _ in range(_LINES):
        line = _line(at[left], to[left], hits.mirror[left])
        if line is None:
            break
        speed, offset, mirror = line
        for stretch in _along(asked, found, speed, offset, mirror):
            if not any(_inside(stretch, known) for known in matches):
                matches.append(stretch)
        left &= (hits.mirror != mirror) | (abs(to - speed * at - offset) > 2 * _WIDTH_S)
    return sorted(matches, key=lambda m: m.first)


def _line(at: np.ndarray, to: np.ndarray, mirror: np.ndarray) -> tuple[float, float, bool] | None:
    """(speed, offset, mirror) of the line `to = speed * at + offset` with most moments of the indexed source on it."""
    best, most = None, LEAST_HITS - 1
    for turned in (False, True):
        x, y = at[mirror == turned], to[mirror == turned]
        if not len(x):
            continue
        for speed in sorted(SPEEDS, key=lambda s: abs(s - 1)):  # of equal ones the one nearest to 1
            places = np.round((y - speed * x) / _WIDTH_S).astype(np.int64)
            pairs = np.unique(np.stack([np.concatenate([places, places + 1]), np.tile(np.round(y * 4), 2)]), axis=1)
            values, counts = np.unique(pairs[0], return_counts=True)
            if counts.max() > most:
                most, place = int(counts.max()), values[counts.argmax()]
                near = abs(y - speed * x - (place - 0.5) * _WIDTH_S) <= _WIDTH_S
                best = (*_fitted(x[near], y[near], float(speed)), turned)
    return best


def _fitted(x: np.ndarray, y: np.ndarray, speed: float) -> tuple[float, float]:
    """(speed, offset) of the line through points near one of `speed`, fitted where they stretch far enough to tell."""
    if np.ptp(x) >= _FIT_S:
        for _ in range(2):
            speed, offset = np.polyfit(x, y, 1)
            near = abs(y - speed * x - offset) <= _WIDTH_S / 2
            if not near.any() or np.ptp(x[near]) < _FIT_S:
                break
            x, y = x[near], y[near]
    return float(speed), float(np.median(y - speed * x))


def _along(asked: Codes, found: Codes, speed: float, offset: float, mirror: bool) -> Iterator[Match]:
    """The stretches of a line on which the codes are the same."""
    at = _seconds(asked, np.arange(len(asked.bits)))
    to = speed * at + offset
    rows = np.round((to - found.start_ms / 1000) * found.hz).astype(np.int64)
    inside = (rows >= 0) & (rows < len(found.bits))
    if not inside.any():
        return
    at, to, rows = at[inside], to[inside], rows[inside]
    differ, usable = _differences(asked.bits[inside], found.bits, rows, mirror)
    width = min(round(_OVER_S * asked.hz), len(at))
    ones = np.ones(width)
    counts = np.convolve(usable, ones, "same")
    means = np.convolve(np.where(usable, differ, 0.0), ones, "same") / np.maximum(counts, 1)
    good = (means <= SAME) & (counts >= width / 2) & usable
    for first, last in _runs(good, bridge=width):
        part = slice(first, last)
        if np.count_nonzero(usable[part]) < LEAST_S * asked.hz:
            continue
        spans = [_span(times[[first, last - 1]], codes.hz) for times, codes in ((at, asked), (to, found))]
        mean = float(differ[part][usable[part]].mean())
        yield Match(spans[0], spans[1], round(speed, 4), mirror, round(mean, 2))


def _differences(bits: np.ndarray, others: np.ndarray, rows: np.ndarray, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bits that differ, [N], at the best of neighbouring moments and under the best pair of columns; and where any can.

    One pair of columns is chosen for the whole line: a copy is cropped in one way throughout.
    """
    turned = mirrored(bits) if mirror else bits
    usable = (bits[:, 0] != UNUSABLE) & (others[rows, 0] != UNUSABLE)
    nearest: np.ndarray | None = None
    for i in range(bits.shape[1]):
        for j in range(others.shape[1]):
            if min(i, j) > 0 and i != j:
                continue  # two crops are a wider one compared with the whole, or the same
            differ = np.full(len(rows), 64)
            for step in (-1, 0, 1):
                beside = others[np.clip(rows + step, 0, len(others) - 1), j]
                differ = np.minimum(differ, np.where(beside == UNUSABLE, 64, distance(turned[:, i], beside)))
            if nearest is None or differ[usable].sum() < nearest[usable].sum():
                nearest = differ
    assert nearest is not None
    return nearest.astype(np.float64), usable


def _runs(good: np.ndarray, bridge: int) -> Iterator[tuple[int, int]]:
    """[first, last) of runs of true values; those no more than `bridge` apart are one."""
    found = np.flatnonzero(good)
    if not len(found):
        return
    breaks = np.flatnonzero(np.diff(found) > bridge)
    for first, last in zip(np.append(0, breaks + 1), np.append(breaks, len(found) - 1), strict=True):
        yield int(found[first]), int(found[last]) + 1


def _inside(match: Match, other: Match) -> bool:
    """Whether most of a match lies in another one, on both sides."""
    for mine, theirs in ((match.first, other.first), (match.second, other.second)):
        common = min(mine[1], theirs[1]) - max(mine[0], theirs[0])
        if common < (mine[1] - mine[0]) / 2:
            return False
    return True


def _seconds(codes: Codes, rows: np.ndarray) -> np.ndarray:
    return codes.start_ms / 1000 + rows / codes.hz


def _span(ends: np.ndarray, hz: int) -> tuple[int, int]:
    half = 0.5 / hz
    return max(0, round(1000 * (float(ends[0]) - half))), round(1000 * (float(ends[1]) + half))
