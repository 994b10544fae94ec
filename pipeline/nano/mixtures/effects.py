"""Sounds of the world, synthesised: ambience, impacts, steps, sweeps, chirps, beeps and engines."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import signal

from pipeline.nano.mixtures.signals import RATE, Split, decay, low_pass

SECONDS = 10.0


def effects(_split: Split, rng: np.random.Generator) -> np.ndarray:
    """Ten seconds of made-up sounds of the world: ambience, and impacts, steps, sweeps, chirps, beeps and engines."""
    length = round(SECONDS * RATE)
    out = _ambience(length, rng) * rng.choice([0.0, 0.05, 0.3, 1.0])
    for _ in range(int(rng.integers(2, 14))):
        sound = _SOUNDS[rng.integers(len(_SOUNDS))](rng)
        for start in _repeats(length, rng):
            piece = sound[: length - start]
            out[start : start + len(piece)] += piece * rng.uniform(0.2, 1)
    return out


def _repeats(length: int, rng: np.random.Generator) -> Iterable[int]:
    start, period = int(rng.integers(0, length)), int(rng.uniform(0.15, 1.2) * RATE)
    for i in range(int(rng.choice([1, 1, 2, 6]))):
        if start + i * period < length:
            yield start + i * period


def _ambience(length: int, rng: np.random.Generator) -> np.ndarray:
    """Wind, rain or rumble: noise of a random colour under a slow swell."""
    colour = rng.uniform(0, 2)
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= (np.arange(len(spectrum)) / 40 + 1) ** (colour / 2 + 0.1)
    swell = np.interp(np.arange(length), np.linspace(0, length, 12), rng.uniform(0.2, 1, 12))
    noise = np.fft.irfft(spectrum, length) * swell
    return noise / (np.abs(noise).max() + 1e-9)


def _impact(rng: np.random.Generator) -> np.ndarray:
    length = round(rng.uniform(0.1, 1.5) * RATE)
    t = np.arange(length) / RATE
    modes = sum(np.sin(2 * np.pi * f * t) * decay(length, rng.uniform(0.02, 0.3)) for f in rng.uniform(50, 4000, 5))
    return modes / 5 + rng.standard_normal(length) * decay(length, rng.uniform(0.005, 0.08))


def _step(rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(round(0.12 * RATE)) * decay(round(0.12 * RATE), rng.uniform(0.01, 0.04))
    return low_pass(noise, rng.uniform(400, 5000))


def _sweep(rng: np.random.Generator) -> np.ndarray:
    """A whoosh: noise through a moving band, or a gliding tone."""
    length = round(rng.uniform(0.3, 2) * RATE)
    first, last = rng.uniform(80, 6000, 2)
    f = np.geomspace(first, last, length)
    tone = np.sin(2 * np.pi * np.cumsum(f) / RATE)
    if rng.random() < 0.6:
        tone = tone * signal.lfilter([0.05], [1, -0.95], rng.standard_normal(length)) * 4
    return tone * np.hanning(length)


def _chirp(rng: np.random.Generator) -> np.ndarray:
    """A bird's or an insect's call: fast frequency modulation between 1.5 and 8 kHz."""
    length = round(rng.uniform(0.05, 0.4) * RATE)
    t = np.arange(length) / RATE
    centre, width = rng.uniform(1500, 6000), rng.uniform(200, 2000)
    f = centre + width * np.sin(2 * np.pi * rng.uniform(3, 40) * t + rng.uniform(0, 6))
    return np.sin(2 * np.pi * np.cumsum(f) / RATE) * np.hanning(length)


def _beep(rng: np.random.Generator) -> np.ndarray:
    length = round(rng.uniform(0.05, 0.6) * RATE)
    wave = np.sin(2 * np.pi * rng.uniform(200, 3000) * np.arange(length) / RATE)
    return (np.sign(wave) * 0.5 if rng.random() < 0.3 else wave) * signal.windows.tukey(length, 0.1)


def _engine(rng: np.random.Generator) -> np.ndarray:
    length = round(rng.uniform(1, 5) * RATE)
    f = rng.uniform(25, 120) * 2 ** np.interp(np.arange(length), np.linspace(0, length, 5), rng.uniform(-0.5, 0.5, 5))
    wave = signal.sawtooth(2 * np.pi * np.cumsum(f) / RATE) * (1 + 0.5 * rng.standard_normal(length))
    return low_pass(wave, rng.uniform(300, 3000)) * signal.windows.tukey(length, 0.3)


_SOUNDS = (_impact, _step, _step, _sweep, _sweep, _chirp, _chirp, _beep, _engine)
