"""Videos of which every cut is known: pieces of shots of a real film, joined at given frames.

What moves fast without being a cut is in them too: swift pans over a shot, and flashes. Training and test take their
shots from different stretches of the film.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from pipeline.media import frames_at
from pipeline.nano.packages import film
from pipeline.storage import Store
from pipeline.vision import FPS

GAP_S = 0.4  # least time between cuts, between distractions and cuts, and from either to the ends
RATES = (0.25, 1.0)  # cuts per second: drawn for each video
DISTRACTIONS = 0.25  # per second
PAN_FRAMES = 8
FLASH = (0.35, 0.7, 0.35)  # share of white in successive frames
CUT_LEVEL = 20.0  # mean difference of neighbouring frames, of 255, at which the film itself is taken to cut
MIN_SHOT = 10  # frames


@dataclass(frozen=True)
class Footage:
    """A stretch of the film.

    Attributes:
        frames: [N, side, side, 3] uint8, 25 per second, wider than the vision model's by the room to pan in.
        shots: first frame and the one behind the last of each shot.
    """

    frames: np.ndarray
    shots: tuple[tuple[int, int], ...]


def footage(store: Store, span_s: tuple[int, int], size: int) -> Footage:
    """The film from one second to another, decoded once into the store; `size` is the vision model's."""
    first, last = span_s
    side = size * 9 // 7
    name = f"footage-{first}-{last}-{side}.npy"
    if not store.exists(name):
        times = (Fraction(i, FPS) for i in range(first * FPS, last * FPS))
        decoded = np.stack(list(frames_at(film(), times, size=side)))
        with store.write(name) as temporary, temporary.open("wb") as file:
            np.save(file, decoded)
    with store.read(name) as path:
        frames = np.load(path, mmap_mode="r")
    return Footage(frames, _shots(frames))


def draw_cuts(rng: np.random.Generator, seconds: int) -> tuple[int, ...]:
    """Frames that a video is cut before, at irregular times: a Poisson process with a dead time, two cuts at least."""
    gap, rate = round(GAP_S * FPS), rng.uniform(*RATES)
    while True:
        steps = gap + rng.exponential(FPS * max(0.0, 1 / rate - GAP_S), 1 + seconds * FPS // gap)
        cuts = np.cumsum(steps.astype(int))
        cuts = cuts[cuts < seconds * FPS - gap]
        if len(cuts) > 1:
            return tuple(cuts.tolist())


def apart(rng: np.random.Generator, times: Sequence[float], rate: float, seconds: float) -> tuple[float, ...]:
    """Random times, `rate` a second, that keep their distance from the given ones, from each other and the ends."""
    kept: list[float] = []
    for t in rng.uniform(GAP_S, seconds - GAP_S, rng.poisson(rate * seconds)):
        if all(abs(t - other) >= GAP_S for other in (*times, *kept)):
            kept.append(float(t))
    return tuple(sorted(kept))


def composed(
    rng: np.random.Generator, of: Footage, cuts: Sequence[int], length: int, size: int
) -> Iterator[np.ndarray]:
    """The frames [size, size, 3] uint8 of a video of `length` frames with cuts before the given ones."""
    room = of.frames.shape[1] - size
    pans, flashes = (
        {round(t * FPS) for t in apart(rng, [c / FPS for c in cuts], DISTRACTIONS / 2, length / FPS)} for _ in range(2)
    )
    shot = -1
    for first, last in pairwise((0, *cuts, length)):
        shot = int(rng.choice([i for i in range(len(of.shots)) if i != shot]))
        place = rng.uniform(0, room, 2)
        move, left, flash = np.zeros(2), 0, 0
        for at, number in zip(range(first, last), _played(rng, of.shots[shot]), strict=False):
            if at in pans:  # to the far side
                move, left = (np.where(place < room / 2, room, 0) - place) / PAN_FRAMES, PAN_FRAMES
            if at in flashes:
                flash = len(FLASH)
            if left:
                place, left = place + move, left - 1
            y, x = np.clip(place.round().astype(int), 0, room)
            frame = np.asarray(of.frames[number, y : y + size, x : x + size])
            if flash:
                white, flash = FLASH[-flash], flash - 1
                frame = (frame * (1 - white) + 255 * white).astype(np.uint8)
            yield frame


def _played(rng: np.random.Generator, shot: tuple[int, int]) -> Iterator[int]:
    """Frames of a shot from a random one on, to and fro without end: no cut where it turns."""
    first, last = shot
    at, step = int(rng.integers(first, last)), 1
    while True:
        yield at
        if not first <= at + step < last:
            step = -step
        at += step


def _shots(frames: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Stretches between the film's own hard cuts; what is shorter than `MIN_SHOT` is left out."""
    small = frames[:, ::8, ::8].astype(np.float32)
    change = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    edges = [0, *(np.flatnonzero(change > CUT_LEVEL) + 1).tolist(), len(frames)]
    return tuple((a, b) for a, b in pairwise(edges) if b - a >= MIN_SHOT)
