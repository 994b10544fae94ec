"""Codes of sound and picture: 64 bits each, several a second, that survive what a re-upload does to a video.

Both are the signs of the lowest coefficients of a two-dimensional discrete cosine transform: of the picture itself
(pHash: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010), and of a 2 s patch of the
log-frequency spectrogram (after Haitsma and Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002, whose
bits are signs of energy differences along time and frequency, here smoother ones). The constant coefficients are left
out, so loudness, brightness and equalisation don't matter; broad bands make a shift of pitch by a few percent small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

SOUND_HZ = 8  # codes a second
PICTURE_HZ = 4
CROPS = (1.0, 0.94, 0.88, 0.82)  # shares of width and height: a copy may have lost its edges
BITS = 64
UNUSABLE = np.uint64(0)  # the code of a moment that says nothing: silence, a blank picture, a steady tone

_FRAME_HZ = 2 * SOUND_HZ  # spectra a second
_WINDOW_S = 0.186  # of a spectrum
_PATCH = 2 * _FRAME_HZ  # spectra in a code
_BANDS, _LOW_HZ, _HIGH_HZ = 20, 150.0, 3600.0
_TIME_ORDERS, _BAND_ORDERS = 8, 8
_FLOOR_DB = 50.0  # below the loudest band of the patch nothing counts
_QUIET_DB = -55.0  # mean level of a patch in dBFS under which it is silent
_STEADY_DB = 0.8  # RMS of a patch's kept coefficients, in dB per cell, under which nothing happens in it
_SIDE = 32  # pixels of a side of the picture that is transformed
_ORDERS = 9
_PLAIN = 3.0  # RMS of a picture's kept coefficients, in grey levels per pixel, under which it shows nothing


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of one source; row i belongs to i / hz seconds after `start_ms`.

    Attributes:
        hz: rows a second.
        start_ms: of row 0 in the source; of sound it is the middle of the first patch that would begin 1 s before.
        bits: [T, V] uint64; column v is the same moment seen another way (`CROPS`; sound has one). 0: unusable.
    """

    hz: int
    start_ms: int
    bits: np.ndarray

    def to_file(self, path: str | Path) -> None:
        """Writes an .npz archive."""
        with Path(path).open("wb") as file:
            np.savez(file, hz=np.int64(self.hz), start_ms=np.int64(self.start_ms), bits=self.bits)

    @classmethod
    def from_file(cls, path: str | Path) -> Codes:
        """Reads what `to_file` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            return cls(int(archive["hz"]), int(archive["start_ms"]), archive["bits"])


class SoundCodes:
    """Codes of a sound that comes in blocks; memory is flat but for the band levels, 1.3 kB a second.

    Args:
        rate: samples per second, 8 kHz or more.
        start_ms: of the first sample in the source.
    """

    def __init__(self, rate: int, start_ms: int = 0) -> None:
        self._start_ms = start_ms
        self._size = 2 ** round(math.log2(rate * _WINDOW_S))
        self._window = np.hanning(self._size).astype(np.float32)
        self._bank = _bank(rate, self._size)
        self._rate, self._next, self._begin = rate, 0, -self._size // 2
        self._held = np.zeros(self._size // 2, np.float32)  # spectra are centred, so the first begins before time zero
        self._bands: list[np.ndarray] = []

    def feed(self, mono: np.ndarray) -> None:
        """Takes the next samples, [n] float32 in -1..1."""
        self._held = np.concatenate([self._held, mono.astype(np.float32, copy=False)])
        while True:
            at = round(self._next * self._rate / _FRAME_HZ) - self._size // 2 - self._begin
            if at + self._size > len(self._held):
                break
            spectrum = np.fft.rfft(self._held[at : at + self._size] * self._window)
            self._bands.append(self._bank @ (spectrum.real**2 + spectrum.imag**2))
            self._next += 1
        drop = max(0, min(at, len(self._held)))
        self._held, self._begin = self._held[drop:], self._begin + drop

    def finish(self) -> Codes:
        """The codes of all that was fed, [T, 1]; none if it is shorter than 2 s."""
        if len(self._bands) < _PATCH:
            return Codes(SOUND_HZ, self._start_ms, np.zeros((0, 1), np.uint64))
        level = 10 * np.log10(np.maximum(np.stack(self._bands), 1e-12)).astype(np.float32)  # [N, B] dBFS
        patches = np.lib.stride_tricks.sliding_window_view(level, _PATCH, axis=0)[:: _FRAME_HZ // SOUND_HZ]  # [T, B, P]
        bits = np.zeros(len(patches), np.uint64)
        time, band = _cosines(_TIME_ORDERS + 1, _PATCH)[1:], _cosines(_BAND_ORDERS, _BANDS)
        for i in range(0, len(patches), 1024):
            part = patches[i : i + 1024]
            top = part.max(axis=(1, 2), keepdims=True)
            found = np.einsum("ub,tbp,vp->tuv", band, np.maximum(part, top - _FLOOR_DB), time, optimize=True)
            found = found.reshape(len(part), -1)
            loud = part.max(axis=1).mean(axis=1) > _QUIET_DB
            lively = np.sqrt((found**2).sum(axis=1) / (_PATCH * _BANDS)) > _STEADY_DB
            bits[i : i + 1024] = np.where(loud & lively, _packed(found), UNUSABLE)
        return Codes(SOUND_HZ, self._start_ms + 500 * _PATCH // _FRAME_HZ, bits[:, None])


class PictureCodes:
    """Codes of pictures that come in order; only those that stand on the grid of `PICTURE_HZ` are looked at."""

    def __init__(self) -> None:
        self._last: tuple[Fraction, np.ndarray] | None = None
        self._codes: list[np.ndarray] = []

    def feed(self, time: Fraction, picture: np.ndarray) -> None:
        """Takes a picture, [H, W, 3] uint8 BGR, that is shown from `time` on, in seconds."""
        self._hold(time)
        self._last = time, picture

    def finish(self) -> Codes:
        """The codes of all that was fed, [T, len(CROPS)]."""
        if self._last is not None:
            self._hold(self._last[0] + Fraction(1, 10**6))
        bits = np.stack(self._codes) if self._codes else np.zeros((0, len(CROPS)), np.uint64)
        return Codes(PICTURE_HZ, 0, bits)

    def _hold(self, until: Fraction) -> None:
        """Notes the last picture for every moment of the grid before `until`."""
        code = None
        while Fraction(len(self._codes), PICTURE_HZ) < until and self._last is not None:
            if code is None:
                code = picture_code(self._last[1])
            self._codes.append(code)


def picture_code(picture: np.ndarray) -> np.ndarray:
    """[len(CROPS)] uint64 of a picture [H, W, 3] uint8 BGR."""
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    height, width = grey.shape
    cosines = _cosines(_ORDERS + 2, _SIDE)
    rows, columns = _orders()
    found = np.empty((len(CROPS), BITS), np.float32)
    for i, share in enumerate(CROPS):
        top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
        inner = grey[top : height - top, left : width - left]
        small = cv2.resize(inner, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        found[i] = (cosines @ small @ cosines.T)[rows, columns]
    plain = np.sqrt((found[0] ** 2).sum()) / _SIDE < _PLAIN
    return np.full(len(CROPS), UNUSABLE) if plain else _packed(found)


def mirrored(bits: np.ndarray) -> np.ndarray:
    """The codes of the same pictures left to right: what is odd across changes its sign."""
    _, columns = _orders()
    mask = _packed(np.where(columns % 2 == 1, 1.0, -1.0)[None])[0]
    return np.where(bits == UNUSABLE, UNUSABLE, bits ^ mask)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many of the 64 bits differ, elementwise."""
    return np.bitwise_count(a ^ b)


@lru_cache
def _orders() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the picture's 64 lowest coefficients but the constant one, low ones first."""
    grid = [(u, v) for u in range(_ORDERS + 2) for v in range(_ORDERS + 2) if u + v]
    lowest = sorted(grid, key=lambda uv: (uv[0] + uv[1], max(uv), uv))[:BITS]
    rows, columns = np.array(lowest).T
    return rows, columns


@lru_cache
def _cosines(orders: int, size: int) -> np.ndarray:
    """[orders, size] float32: the first rows of the orthonormal DCT-II."""
    k, n = np.arange(orders)[:, None], np.arange(size)
    rows = np.cos(np.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.astype(np.float32)


def _bank(rate: int, size: int) -> np.ndarray:
    """[B, F] float32: mean power in bands of equal width on the logarithmic scale; full scale is 0 dB."""
    hz = np.fft.rfftfreq(size, 1 / rate)
    centres = np.geomspace(_LOW_HZ, _HIGH_HZ, _BANDS)
    width = math.log(centres[1] / centres[0])
    away = np.abs(np.log(np.maximum(hz, 1.0))[None] - np.log(centres)[:, None]) / width
    bank = np.maximum(0, 1 - away)
    return (bank / (np.hanning(size).sum() / 2) ** 2 / 2).astype(np.float32)


def _packed(values: np.ndarray) -> np.ndarray:
    """[N, 64] -> [N] uint64 of the signs; never `UNUSABLE`."""
    packed = np.packbits(values > 0, axis=1).view(np.uint64)[:, 0]
    return np.maximum(packed, 1)
