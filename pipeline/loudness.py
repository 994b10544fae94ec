"""Loudness of sound that is too long to hold: measured block by block, and brought to a level under a peak ceiling.

`codec.normalise` does this to a clip by one gain. A finished piece has to reach its loudness whatever its peaks, so
where one gain isn't enough a look-ahead limiter turns down what would pass the ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.codec import BLOCK_S, GATE_LUFS

PASS_S = 10  # seconds worked on at a time
LOOKAHEAD_S = 0.02  # over which the limiter's gain goes down before a peak, and comes up behind it
TOLERANCE_LU = 0.05
TRIES = 6  # gains tried; each is closer than the one before, if the loudness can be had at all

_HOPS = 4  # of a gating block, which overlap by three quarters
_REACH = 16  # samples on either side that an oversampled one depends on (10 in fact)
# De Man's filters: type, gain in dB, Q, frequency. pyloudnorm has them by the same numbers.
_K_WEIGHTING = (
    ("high_shelf_DeMan", 3.99984385397, 0.7071752369554193, 1681.9744509555319),
    ("high_pass_DeMan", 0.0, 0.5003270373253953, 38.13547087613982),
)


class LoudnessMeter:
    """Integrated loudness and true peak of a mono signal (ITU-R BS.1770-4, as `codec.normalise` measures them).

    Args:
        rate: Hz.
        peaks: whether the true peak is asked for, which is most of the work.
    """

    def __init__(self, rate: int, *, peaks: bool = True) -> None:
        from pyloudnorm.iirfilter import IIRfilter

        designed = [IIRfilter(gain, q, hertz, rate, kind) for kind, gain, q, hertz in _K_WEIGHTING]
        self._sections = np.array([np.concatenate([f.b * f.passband_gain, f.a]) / f.a[0] for f in designed])
        self._state = np.zeros((len(designed), 2))
        self._hop = round(rate * BLOCK_S / _HOPS)
        self._peaks = peaks
        self._rest = np.zeros(0)
        self._energies: list[np.ndarray] = []  # squares summed over each hop
        self._tail = np.zeros(2 * _REACH)
        self._peak = 0.0

    def feed(self, block: np.ndarray) -> None:
        """Takes the next samples, [n]."""
        from scipy.signal import sosfilt

        if not len(block):
            return
        weighted, self._state = sosfilt(self._sections, block.astype(np.float64), zi=self._state)
        squares = np.concatenate([self._rest, np.square(weighted)])
        whole = len(squares) // self._hop * self._hop
        self._energies.append(squares[:whole].reshape(-1, self._hop).sum(axis=1))
        self._rest = squares[whole:]
        if not self._peaks:
            return
        joined = np.concatenate([self._tail, block])
        self._peak = max(self._peak, float(_peaks(joined)[_REACH:-_REACH].max(initial=0.0)))
        self._tail = joined[-2 * _REACH :]

    @property
    def lufs(self) -> float:
        """Integrated loudness of all so far; `GATE_LUFS` where nothing is louder than that."""
        energies = np.concatenate([*self._energies, np.zeros(0)])
        if len(energies) < _HOPS:  # shorter than a block: measured as if silence followed
            blocks = np.array([energies.sum() + self._rest.sum()])
        else:
            blocks = np.convolve(energies, np.ones(_HOPS), "valid")
        blocks = blocks / (_HOPS * self._hop)
        heard = blocks[_lufs(blocks) >= GATE_LUFS]
        if not len(heard):
            return GATE_LUFS
        return float(_lufs(heard[_lufs(heard) > _lufs(heard.mean()) - 10].mean()))

    @property
    def peak_db(self) -> float:
        """The highest true peak so far, dBTP."""
        ended = _peaks(np.concatenate([self._tail, np.zeros(_REACH)]))[_REACH:-_REACH]
        peak = max(self._peak, float(ended.max()))
        return 20 * math.log10(peak) if peak else -math.inf


@dataclass(frozen=True)
class Mastering:
    """What is done to a signal to bring it to a level: `limited` with this gain.

    Attributes:
        before: integrated loudness as it is, LUFS.
        gain_db: what everything is multiplied by, ahead of the limiter; 0 for silence.
        lufs: integrated loudness that comes out.
    """

    before: float
    gain_db: float
    lufs: float


def master(signal: np.ndarray, rate: int, *, lufs: float, peak_db: float) -> Mastering:
    """The gain that brings a whole signal to a loudness while its true peaks are kept under a ceiling.

    A few lone clicks can't be made as loud as asked for; they come as close as `TRIES` gains get.

    Args:
        signal: [N] mono; a memory map if it is too long to hold: it is read a few times, a little at a time.
        rate: Hz.
        lufs: integrated loudness wanted.
        peak_db: ceiling, dBTP.
    """
    meter = LoudnessMeter(rate)
    for at in range(0, len(signal), PASS_S * rate):
        meter.feed(signal[at : at + PASS_S * rate])
    before = meter.lufs
    if before <= GATE_LUFS:
        return Mastering(before, 0.0, before)
    gain_db = lufs - before
    if meter.peak_db + gain_db <= peak_db:
        return Mastering(before, gain_db, lufs)
    found = []
    for _ in range(TRIES):
        meter = LoudnessMeter(rate, peaks=False)
        for block in limited(signal, rate, gain_db=gain_db, peak_db=peak_db):
            meter.feed(block)
        found.append(Mastering(before, gain_db, meter.lufs))
        if abs(lufs - meter.lufs) < TOLERANCE_LU:
            break
        gain_db += lufs - meter.lufs
    return min(found, key=lambda mastering: abs(lufs - mastering.lufs))


def limited(signal: np.ndarray, rate: int, *, gain_db: float, peak_db: float) -> Iterator[np.ndarray]:
    """A mono signal [N] times a gain, true peaks turned down to the ceiling; in blocks [n] float32.

    Each sample's gain is at most what the loudest sample within `LOOKAHEAD_S` allows: the running minimum over twice
    that, smoothed by two moving averages that together are no wider, can't rise above it at the peak itself.
    """
    from scipy.ndimage import minimum_filter1d, uniform_filter1d

    gain, ceiling = 10 ** (gain_db / 20), 10 ** (peak_db / 20)
    half = round(LOOKAHEAD_S * rate / 2)
    context, step = 4 * half + _REACH, PASS_S * rate
    for at in range(0, len(signal), step):
        first = max(0, at - context)
        piece = gain * np.asarray(signal[first : at + step + context], np.float64)
        allowed = ceiling / np.maximum(_peaks(piece), ceiling)
        if allowed.min() < 1:
            allowed = minimum_filter1d(allowed, 4 * half + 1, mode="nearest")
            for _ in range(2):
                allowed = uniform_filter1d(allowed, 2 * half + 1, mode="nearest")
            piece *= allowed
        yield piece[at - first :][:step].astype(np.float32)


def _peaks(signal: np.ndarray) -> np.ndarray:
    """[n] the highest magnitude at each sample and up to the next, oversampled four times as in BS.1770-4, annex 2."""
    from scipy.signal import resample_poly

    highest, between = np.abs(signal), np.abs(resample_poly(signal, 4, 1))
    for i in range(4):  # a maximum along an axis of 4 takes as long as the oversampling
        np.maximum(highest, between[i::4], out=highest)
    return highest


def _lufs(power: np.ndarray) -> np.ndarray:
    """Mean squares as loudness; silence is far below the gate."""
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))
