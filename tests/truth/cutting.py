"""Videos whose shots are known: stretches of single shots of the film, joined in known ways; and traps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from pipeline.nano.footage import HELD_OUT_S, footage
from tests import synth
from tests.truth.reencodes import made_scene

WIDTH, HEIGHT, RATE = 226, 128, 25  # of the footage that the vision room keeps
STRETCH_S = 2.1
# Where stretches begin, in seconds of the film: each lies in one shot, a different one, as looked at.
DEVELOPMENT = (301.2, 305.7, 309.0, 315.0, 324.4, 328.2, 337.3, 373.2, 375.8, 378.7, 381.7)
HELD_OUT = (400.3, 405.5, 412.6, 417.7, 431.1, 436.7, 446.4, 452.3, 462.4, 468.0, 473.4)
RATES = (
    Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(50),
    Fraction(60000, 1001), Fraction(60),
)  # fmt: skip
DISSOLVES_S = (0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
FADES_S = (0.5, 0.8, 1.2)

Draw = Callable[[np.ndarray, float], np.ndarray]


@dataclass
class Video:
    """A file and what is in it, in seconds from its start.

    Attributes:
        cuts: hard cuts, each the time of the first picture of a shot.
        dissolves: (middle, length) of dissolves; fades: of fades through black.
        seconds: of the file.
    """

    path: Path
    seconds: float
    cuts: list[float] = field(default_factory=list)
    dissolves: list[tuple[float, float]] = field(default_factory=list)
    fades: list[tuple[float, float]] = field(default_factory=list)


@cache
def stretch(start_s: float) -> np.ndarray:
    """[N, HEIGHT, WIDTH, 3] uint8: pictures of a single shot, `RATE` a second.

    Below zero it is no shot of the film but a made one, another for each number: a camera moves over a scene.
    """
    count = round(STRETCH_S * RATE)
    if start_s >= 0:
        first = round((start_s - HELD_OUT_S[0]) * RATE)
        return np.ascontiguousarray(footage("test").pictures[first : first + count, :, :WIDTH])
    rng = np.random.default_rng(round(-start_s))
    scene, drift = cv2.resize(made_scene(rng), (WIDTH + 60, HEIGHT + 40)), rng.uniform(-0.6, 0.6, 2)
    places = (30 + drift[0] * np.arange(count), 20 + drift[1] * np.arange(count))
    size = (WIDTH, HEIGHT)
    return np.stack(
        [cv2.getRectSubPix(scene, size, (WIDTH / 2 + x, HEIGHT / 2 + y)) for x, y in zip(*places, strict=True)]
    )


def edited(path: Path, stamps: Sequence[Fraction], starts: Sequence[float], seed: int, kind: str) -> Video:
    """A video of stretches of shots, joined in one way: `cuts`, `dissolves` or `fades`.

    Args:
        path: where it is written.
        stamps: times of its pictures; the last one says how long it is.
        starts: of the stretches that may be used, in seconds of the film.
        seed: of their order.
    """
    rng = np.random.default_rng(seed)
    order = [starts[i] for i in rng.permutation(len(starts))]
    total = float(stamps[-1])
    video, joints, at = Video(path, total), [], 0.0
    while True:  # (middle, length) of each transition
        length = {"cuts": 0.0, "dissolves": float(rng.choice(DISSOLVES_S)), "fades": float(rng.choice(FADES_S))}[kind]
        at += rng.uniform(1.2, STRETCH_S) if kind == "cuts" else rng.uniform(0.9, 1.3) + 1.2
        if at + 1.2 > total:
            break
        joints.append((at, length))
    if kind == "cuts":
        times = np.array(list(map(float, stamps)))
        joints = [(float(times[np.searchsorted(times, middle)]), 0.0) for middle, _ in joints]
        video.cuts = [middle for middle, _ in joints]
    elif kind == "dissolves":
        video.dissolves = joints
    else:
        video.fades = joints
    synth.write(path, stamps=stamps, pictures=_joined(stamps, joints, order, kind), options={"crf": "23"})
    return video


def trap(path: Path, stamps: Sequence[Fraction], starts: Sequence[float], seed: int, kind: str) -> Video:
    """A video of one shot that looks as if there were more; `kind` is one of `TRAPS`."""
    rng = np.random.default_rng(seed)
    still = cv2.resize(stretch(starts[int(rng.integers(len(starts)))])[10], (WIDTH * 2, HEIGHT * 2))
    moving = stretch(starts[int(rng.integers(len(starts)))])
    picture = TRAPS[kind](rng, float(stamps[-1]))
    pictures = (picture(still if kind in _OVER_STILLS else _there_and_back(moving, t), t) for t in map(float, stamps))
    synth.write(path, stamps=stamps, pictures=pictures, options={"crf": "23"})
    return Video(path, float(stamps[-1]))


def _joined(
    stamps: Sequence[Fraction], joints: Sequence[tuple[float, float]], order: Sequence[float], kind: str
) -> Iterator[np.ndarray]:
    begins = [0.0, *(middle - length / 2 for middle, length in joints)]
    for t in map(float, stamps):
        k = max(i for i, begin in enumerate(begins) if begin <= t + 1e-6)
        now = _at(order[k % len(order)], t - begins[k])
        middle, length = joints[k - 1] if k else (-10.0, 0.0)
        if length == 0 or t >= middle + length / 2:
            yield now
            continue
        before = _at(order[(k - 1) % len(order)], t - begins[k - 1])
        share = (t - middle) / length + 0.5
        if kind == "dissolves":
            yield _mixed(before, now, share)
        elif share < 0.5:
            yield _mixed(before, np.zeros_like(before), min(1.0, share / 0.45))
        else:
            yield _mixed(np.zeros_like(now), now, max(0.0, (share - 0.55) / 0.45))


def _at(start_s: float, local_s: float) -> np.ndarray:
    pictures = stretch(start_s)
    return _there_and_back(pictures, local_s)


def _there_and_back(pictures: np.ndarray, t: float) -> np.ndarray:
    """The picture of a stretch at t; past its end it runs backwards, so that one shot goes on."""
    period = 2 * len(pictures) - 2
    k = int(t * RATE + 1e-6) % period
    return np.asarray(pictures[min(k, period - k)])


def _mixed(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    return np.round(one * (1 - share) + other * share).astype(np.uint8)


def _window(still: np.ndarray, x: float, y: float, zoom: float = 1.0) -> np.ndarray:
    """WIDTH x HEIGHT pictures out of a still twice as large; x and y in 0..1."""
    width, height = WIDTH / zoom, HEIGHT / zoom
    left, top = x * (2 * WIDTH - width), y * (2 * HEIGHT - height)
    place = np.float32([[width / WIDTH, 0, left], [0, height / HEIGHT, top]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(still, place, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT)


def _swing(t: float, period_s: float) -> float:
    return 0.5 - 0.5 * float(np.cos(2 * np.pi * t / period_s))


def _flashes(rng: np.random.Generator, seconds: float) -> Draw:
    times = np.cumsum(rng.uniform(0.8, 2.0, int(seconds / 0.8)))
    lengths, levels = rng.uniform(0.04, 0.16, len(times)), rng.uniform(0.5, 1.0, len(times))

    def draw(picture: np.ndarray, t: float) -> np.ndarray:
        k = int(np.searchsorted(times, t, side="right")) - 1
        on = k >= 0 and t < times[k] + lengths[k]
        return _mixed(picture, np.full_like(picture, 255), levels[k]) if on else picture

    return draw


def _strobe(rng: np.random.Generator, _: float) -> Draw:
    rate = rng.uniform(4, 7)
    return lambda picture, t: _mixed(picture, np.full_like(picture, 255), 0.7) if t * rate % 1 < 0.4 else picture


def _whip(rng: np.random.Generator, _: float) -> Draw:
    wait, y = rng.uniform(0.8, 1.4), rng.uniform(0, 1)

    def draw(still: np.ndarray, t: float) -> np.ndarray:
        turn, local = divmod(t, wait)
        x = min(1.0, max(0.0, (local - 0.3) / 0.4))
        return _window(still, x if turn % 2 == 0 else 1 - x, y)

    return draw


def _passing(rng: np.random.Generator, _: float) -> Draw:
    colour = rng.integers(0, 255, 3)

    def draw(picture: np.ndarray, t: float) -> np.ndarray:
        left = int((t % 2.0 / 0.5 - 0.5) * WIDTH)
        picture = picture.copy()
        picture[:, max(0, left) : max(0, left + WIDTH // 2)] = colour
        return picture

    return draw


def _light(rng: np.random.Generator, _: float) -> Draw:
    period = rng.uniform(1.5, 4)
    return lambda picture, t: np.clip(picture * (0.35 + _swing(t, period)), 0, 255).astype(np.uint8)


def _shaken(rng: np.random.Generator, _: float) -> Draw:
    fast = rng.uniform(3, 6, 2)
    return lambda still, t: _window(still, 0.5 + 0.06 * np.sin(7 * fast[0] * t), 0.5 + 0.06 * np.sin(6 * fast[1] * t))


TRAPS: dict[str, Callable[[np.random.Generator, float], Draw]] = {
    "flashes": _flashes,
    "strobe": _strobe,
    "slow pan": lambda rng, _: lambda still, t: _window(still, _swing(t, 9), 0.5),
    "pan": lambda rng, _: lambda still, t: _window(still, _swing(t, 3.5), _swing(t, 5)),
    "whip pan": _whip,
    "zoom": lambda rng, _: lambda still, t: _window(still, 0.5, 0.5, 0.6 + 1.2 * _swing(t, 4)),
    "shaken camera": _shaken,
    "change of light": _light,
    "something passes": _passing,
    "plain shot": lambda rng, _: lambda picture, t: picture,
}
_OVER_STILLS = ("slow pan", "pan", "whip pan", "zoom", "shaken camera")
