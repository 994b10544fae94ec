"""Hard cuts, dissolves and fades, found from pictures of 48 x 27: what changes at once, and what is a mixture.

A hard cut is a picture that differs far more from the one before it than its neighbours do, unless pictures on both
sides of it agree (a flash), or one is the other shifted (a fast pan). A dissolve is where the pictures in the middle
are nearly mixtures of the first and the last, in shares that fall steadily, and these two are of different structure; a
moving camera makes no mixtures, and a change of light keeps the structure. (The mixture is the dissolve's definition;
that its middle pictures can be tested for it is used, for instance, by Lienhart, "Reliable Transition Detection in
Videos", Int. J. of Image and Graphics 1(3), 2001.) A fade passes through plain pictures.

Thresholds were set on shots of the film between 301 and 384 s and on its trailer; `data_cards/curation.md` has others.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

WIDTH, HEIGHT = 48, 27
_BLOCK = 1500  # pictures looked at in one go
_MARGIN_S = 2.6  # that a block shares with the next: more than any window reaches

_CUT = 7.0  # mean grey levels by which a picture differs from the one before, at least
_CUT_RATIO = 1.8  # ... and times by which others near it do, at least: fast motion lasts longer than a cut
_NEAR_S = 0.15
_AROUND_S = 0.5  # around a fade: what changes at once there belongs to it
_FLASH_S = (0.0, 0.06, 0.13, 0.22, 0.34, 0.48)  # before and after a cut: pictures that would agree about a flash
_FLASH = 0.45  # share of the cut's difference under which two of them agree
_SAME_SCENE = 0.8  # correlation of the two pictures at a cut, from which something only moves in front of a scene
_SHIFTED = 0.82  # correlation of a picture's middle with some place in the one before: a pan

_HALVES_S = (0.2, 0.35, 0.55, 0.85, 1.2)  # half the length of a dissolve
_APART_S = 1.9  # between two dissolves, at least: a long one has parts that look like one, too
_STEP_S = 0.08  # between two places where one is looked for
_DIFFERENT = 14.0  # RMS grey levels between its first and last picture, at least
_ALIKE = 0.75  # correlation of these two from which only the light has changed
_BLEND = 0.07  # mean square by which its middle pictures differ from a mixture, as a share of that of the ends
_CLEAR = 10.0  # RMS grey levels between the ends, less for a mixture that isn't quite one: fewer are no dissolve
_STEADY = 0.2  # by which their shares may differ from 3/4, 1/2 and 1/4

_PLAIN = 4.0  # standard deviation, in grey levels, under which a picture is plain
_FADE_S = 1.0  # around the middle of a fade: its halves are mixtures, with black
_BESIDE_S = (0.0, 0.15, 0.5)  # before and after a plain stretch: pictures that would agree about a flash
_LONG_S = 1.0  # a longer plain stretch belongs to neither shot: the next one begins where it ends


class BlendDetector:
    """Finds transitions in pictures that come one by one; holds two blocks of them at most."""

    def __init__(self) -> None:
        self._pictures: list[np.ndarray] = []
        self._times: list[float] = []
        self._exact: list[Fraction] = []
        self._from = -1e9  # transitions before that have been told

    def feed(self, time: Fraction, picture: np.ndarray) -> list[Fraction]:
        """Takes the next picture, [H, W, 3] uint8; returns when shots begin that have become clear."""
        import cv2

        self._pictures.append(cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
        self._times.append(float(time))
        self._exact.append(time)
        if len(self._times) < _BLOCK or self._times[-1] - self._times[0] < 3 * _MARGIN_S:
            return []
        found = self._look(self._times[-1] - _MARGIN_S)
        keep = int(np.searchsorted(self._times, self._from - _MARGIN_S))
        del self._pictures[:keep], self._times[:keep], self._exact[:keep]
        return found

    def finish(self) -> list[Fraction]:
        """What is left."""
        return self._look(1e9) if self._times else []

    def _look(self, until: float) -> list[Fraction]:
        places = transitions(np.stack(self._pictures), np.array(self._times))
        found = [i for i in places if self._from <= self._times[i] < until]
        self._from = until
        return [self._exact[i] for i in found]


def transitions(pictures: np.ndarray, times: np.ndarray) -> list[int]:
    """The pictures with which shots begin, or that stand in the middle of a dissolve or fade; ascending.

    Args:
        pictures: [N, HEIGHT, WIDTH, 3] uint8.
        times: [N] float64, seconds, ascending.
    """
    values = pictures.astype(np.float32)
    plain = values.std(axis=(1, 2)).max(axis=-1) < _PLAIN
    fades = list(_fades(values, times, plain))
    cuts = [i for i in _cuts(values, times) if not _beside(times[i], times[fades], _AROUND_S)]
    dissolves = [i for i in _dissolves(values, times, times[cuts]) if not _beside(times[i], times[fades], _FADE_S)]
    return sorted([*cuts, *fades, *dissolves])


def _cuts(values: np.ndarray, times: np.ndarray) -> Iterator[int]:
    change = np.zeros(len(values), np.float32)
    change[1:] = np.abs(np.diff(values, axis=0)).mean(axis=(1, 2, 3))
    steps = np.diff(times, prepend=times[0])
    usual = float(np.median(steps[1:])) if len(steps) > 1 else 1.0
    sudden = change * np.minimum(1, usual / np.maximum(steps, 1e-6))  # motion goes on through a hole in the pictures
    for i in np.flatnonzero(change >= _CUT).tolist():
        first, last = np.searchsorted(times, [times[i] - _NEAR_S, times[i] + _NEAR_S])
        around = np.concatenate([sudden[max(1, first) : i - 1], sudden[i + 2 : last]])  # a cut may take two pictures
        if sudden[i] < _CUT_RATIO * around.max(initial=0.0) or sudden[i] < sudden[max(0, i - 1) : i + 2].max():
            continue
        alike = _correlation(values[i - 1], values[i]) > _SAME_SCENE or _is_shifted(values[i - 1], values[i])
        if not (alike or _is_flash(values, times, i, change[i])):
            yield i


def _is_flash(values: np.ndarray, times: np.ndarray, i: int, change: float) -> bool:
    """Whether pictures before and after agree although picture `i` differs from the one before it."""
    before = np.searchsorted(times, times[i - 1] - np.array(_FLASH_S) + 1e-6, side="right") - 1
    after = np.searchsorted(times, times[i] + np.array(_FLASH_S) - 1e-6)
    before, after = before[before >= 0], after[after < len(times)]
    pairs = np.abs(values[before][:, None] - values[after][None]).mean(axis=(2, 3, 4))
    return bool(pairs.min() < _FLASH * change)


def _is_shifted(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the middle of a picture is found again, somewhere else, in another."""
    import cv2

    grey = [picture.mean(axis=-1) for picture in (one, other)]
    middle = grey[1][HEIGHT // 5 : -(HEIGHT // 5), WIDTH // 4 : -(WIDTH // 4)]
    return bool(cv2.matchTemplate(grey[0], middle, cv2.TM_CCOEFF_NORMED).max() > _SHIFTED)


def _dissolves(values: np.ndarray, times: np.ndarray, hard: np.ndarray) -> Iterator[int]:
    scores = []
    for at in np.arange(times[0], times[-1], _STEP_S):
        found = [_blend(values, times, at, half) for half in _HALVES_S if not _beside(at, hard, half + 0.05)]
        scores.append((max(found, default=0.0), at))
    reach = round(_APART_S / _STEP_S)
    strength = np.array([score for score, _ in scores])
    for k in np.flatnonzero(strength > 0):
        before, after = strength[max(0, k - reach) : k], strength[k + 1 : k + reach + 1]
        if strength[k] > before.max(initial=0.0) and strength[k] >= after.max(initial=0.0):
            yield int(np.searchsorted(times, scores[k][1]))


def _blend(values: np.ndarray, times: np.ndarray, at: float, half: float) -> float:
    """How much the pictures around `at` look like a dissolve of twice `half` seconds; 0 if they don't."""
    places = np.searchsorted(times, at + half * np.array([-1, -0.5, 0, 0.5, 1]))
    if at - half < times[0] or places[-1] >= len(times) or len(set(places.tolist())) < 5:
        return 0.0
    first, *middle, last = values[places]
    difference = first - last
    power = float(np.square(difference).mean())
    plain = min(first.std(), last.std()) < 2 * _PLAIN  # a fade from or to nothing
    if plain or power < _DIFFERENT**2 or _correlation(first, last) > _ALIKE:
        return 0.0
    error = 0.0
    for picture, expected in zip(middle, (0.75, 0.5, 0.25), strict=True):
        share = float(((picture - last) * difference).mean()) / power
        if abs(share - expected) > _STEADY:
            return 0.0
        error += float(np.square(picture - last - share * difference).mean()) / 3
    score = (1 - error / power / _BLEND) * power**0.5
    return 0.0 if score < _CLEAR or _is_shifted(first, last) else score


def _fades(values: np.ndarray, times: np.ndarray, plain: np.ndarray) -> Iterator[int]:
    """Plain stretches between two shots of different structure; those at either end lie between nothing."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], plain, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2):  # pictures first..last-1 are plain
        if first == 0 or last == len(times):
            continue
        before = np.searchsorted(times, times[first - 1] - np.array(_BESIDE_S))
        after = np.minimum(len(times) - 1, np.searchsorted(times, times[last] + np.array(_BESIDE_S)))
        if times[last] - times[first] > _LONG_S:
            yield int(last)
        elif max(_correlation(values[i], values[j]) for i, j in zip(before, after, strict=True)) <= _ALIKE:
            yield int(np.searchsorted(times, (times[first] + times[last - 1]) / 2))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of the grey levels of two pictures; 0 if one of them is plain."""
    a, b = one.mean(axis=-1).ravel(), other.mean(axis=-1).ravel()
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > len(a) * _PLAIN**2 / 4 else 0.0


def _beside(at: float, places: np.ndarray, reach: float) -> bool:
    return bool(len(places)) and bool(np.abs(places - at).min() < reach)
