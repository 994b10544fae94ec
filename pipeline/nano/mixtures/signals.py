"""What all of the material shares: its sample rate, its two splits, and a few filters."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import signal

RATE = 22050
Split = Literal["train", "test"]


def rms(audio: np.ndarray) -> float:
    """Root of the mean square, in double precision."""
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))


def fit(audio: np.ndarray, length: int) -> np.ndarray:
    """Cut, or filled up with silence, to `length` samples."""
    return np.pad(audio[:length], (0, max(0, length - len(audio))))


def low_pass(audio: np.ndarray, hz: float) -> np.ndarray:
    """Butterworth, 36 dB an octave."""
    return signal.sosfilt(signal.butter(6, hz, fs=RATE, output="sos"), audio)


def equalise(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random response, about +-6 dB, in the frequency domain."""
    spectrum = np.fft.rfft(audio)
    gains = np.interp(np.linspace(0, 1, len(spectrum)) ** 0.5, np.linspace(0, 1, 8), rng.normal(0, 5, 8))
    return np.fft.irfft(spectrum * 10 ** (gains / 20), len(audio))


def room(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Decaying noise as an impulse response under the direct sound."""
    tail = rng.uniform(0.08, 0.6)
    length = round(tail * 3 * RATE)
    response = rng.standard_normal(length) * decay(length, tail / 2) * rng.uniform(0.01, 0.06)
    response[0] = 1
    return signal.oaconvolve(audio, response)[: len(audio)]


def decay(length: int, seconds: float) -> np.ndarray:
    """An exponential: 1/e after `seconds`."""
    return np.exp(-np.arange(length) / (seconds * RATE))
