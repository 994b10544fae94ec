"""Windows of sound at any rate: blocks that follow each other to the sample, zeros where the file has no sound.

A stream is read as one endless signal on a grid of native samples that starts at time zero. Every window is resampled
from a point that both grids share, so a window equals the same span of the whole file decoded at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer

from pipeline.errors import SourceError
from pipeline.media.container import need_stream, opened, tick, time_zero
from pipeline.media.probe import probe

# Timestamps are trusted over the count of samples only when they disagree by more: matroska and flv round to 1 ms, and
# cutting or filling at every rounding would splice the sound. Half a frame of 25 fps video is 20 ms.
DRIFT_S = Fraction(25, 1000)
PREROLL_S = 1  # decoded and thrown away after a seek: AAC's overlap, SBR's state, MP3's bit reservoir
MARGIN_S = Fraction(1, 10)  # fed to the resampler ahead of a window; its filter is far shorter


def audio_blocks(
    path: str | Path,
    *,
    rate: int,
    channels: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    block_s: float = 10.0,
) -> Iterator[np.ndarray]:
    """The sound of [start_s, end_s) in blocks, decoded once in bounded memory.

    Sample k of the whole file lies k / rate seconds after time zero; the window starts at sample round(start_s * rate)
    and its blocks hold round((end_s - start_s) * rate) samples together. Where the stream has none (a delayed start, a
    gap of more than 25 ms, after its end) they hold zeros. Mono is the mean of left and right; surround is mixed down
    by ITU-R BS.775 without its LFE, scaled so that it can't clip.

    Args:
        path: a file with sound.
        rate: samples per second asked for; libswresample's polyphase filter converts.
        channels: 1 or 2.
        start_s: seconds from time zero, 0 or later.
        end_s: seconds from time zero; None is the end of the file's longest stream.
        block_s: seconds per block; the last is shorter.

    Yields:
        [channels, n] float32.

    Raises:
        SourceError: `unsupported` without an audio stream; `corrupt` if the sound can't be decoded.
        ValueError: a window or layout that can't be.
    """
    if channels not in (1, 2):
        raise ValueError(f"channels is 1 or 2, not {channels}.")
    begin = _microseconds(start_s)
    end = Fraction(probe(path).duration_ms, 1000) if end_s is None else _microseconds(end_s)
    if begin < 0 or end < begin:
        raise ValueError(f"No window from {start_s} s to {float(end)} s.")
    return _blocks(path, rate, channels, _nearest(begin * rate), _nearest((end - begin) * rate), round(block_s * rate))


def audio_window(path: str | Path, *, rate: int, channels: int, start_s: float, end_s: float) -> np.ndarray:
    """`audio_blocks` in one piece: [channels, round((end_s - start_s) * rate)] float32."""
    blocks = audio_blocks(path, rate=rate, channels=channels, start_s=start_s, end_s=end_s)
    return np.concatenate([np.empty((channels, 0), np.float32), *blocks], axis=1)


def _blocks(path: str | Path, rate: int, channels: int, first: int, total: int, block: int) -> Iterator[np.ndarray]:
    """`total` samples from sample `first` at `rate`, in blocks."""
    if total == 0:
        return
    with opened(path) as container:
        stream = need_stream(container, "audio")
        native = stream.codec_context.sample_rate
        # Sample i * step_in of the native grid is sample i * step_out of the wanted one.
        step_in, step_out = native // math.gcd(native, rate), rate // math.gcd(native, rate)
        shared = max(0, math.floor(Fraction(first, step_out) - MARGIN_S * native / step_in))
        signal = _regroup(_signal(container, stream, native, shared * step_in, channels), native)
        endless = itertools.chain(signal, itertools.repeat(np.zeros((channels, native), np.float32)))
        wanted = _cut(_resample(endless, native, rate, channels), first - shared * step_out, total)
        yield from _regroup(wanted, block)


def _signal(container: InputContainer, stream: Any, native: int, begin: int, channels: int) -> Iterator[np.ndarray]:
    """The stream from native sample `begin` (counted from time zero) to its end, [channels, n] each.

    Only mp4's index is exact to the sample, so only there is a far start sought; elsewhere all before it is decoded.
    After a seek the noise that some AAC files have their decoder make up (PNS) is another, at the same loudness.
    """
    zero, unit = time_zero(container), tick(stream)
    if "mov" in container.format.name and (1 / (unit * native)).denominator == 1 and begin > PREROLL_S * native:
        container.seek(int((Fraction(begin, native) - PREROLL_S + zero) / unit), stream=stream)
    sent, at = begin, None  # the next sample owed, and where the next one decoded belongs
    for frame in container.decode(stream):
        if frame.sample_rate != native:
            raise SourceError(
                f"{Path(container.name).name} changes its sample rate from {native} to {frame.sample_rate} Hz midway.",
                "unsupported",
            )
        if frame.pts is not None:
            stamp = _nearest((frame.pts * unit - zero) * native)
            at = stamp if at is None or abs(stamp - at) > DRIFT_S * native else at
        place = at or 0
        at = place + frame.samples
        if at <= sent:
            continue
        while sent < place:
            gap = min(place - sent, native)
            yield np.zeros((channels, gap), np.float32)
            sent += gap
        yield downmix(frame, channels)[:, sent - place :]
        sent = at


def downmix(frame: AudioFrame, channels: int) -> np.ndarray:
    """The samples of a frame as [channels, n] float32 in -1..1; see `audio_blocks` for how channels are mixed."""
    samples = frame.to_ndarray()
    names = tuple(channel.name for channel in frame.layout.channels)
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(names)).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    return (_mixing(names, channels) @ samples).astype(np.float32, copy=False)


def _mixing(names: tuple[str, ...], channels: int) -> np.ndarray:
    """[channels, len(names)] float32 gains; a layout without names is mono or stereo, or else averaged."""
    half = math.sqrt(0.5)
    gains = {
        "FL": (1, 0), "FR": (0, 1), "FC": (half, half), "LFE": (0, 0), "BL": (half, 0), "BR": (0, half),
        "SL": (half, 0), "SR": (0, half), "BC": (0.5, 0.5), "FLC": (1, 0), "FRC": (0, 1), "DL": (1, 0), "DR": (0, 1),
    }  # fmt: skip
    if "NONE" in names and len(names) <= 2:  # plain WAV and AVI
        names = ("FC",) if len(names) == 1 else ("FL", "FR")
    if not set(names) <= gains.keys() or set(names) == {"LFE"}:
        return np.full((channels, len(names)), 1 / len(names), np.float32)
    stereo = np.array([gains[name] for name in names], np.float32).T
    stereo /= stereo.sum(1).max()
    return stereo if channels == 2 else stereo.mean(0, keepdims=True)


def _resample(pieces: Iterable[np.ndarray], native: int, rate: int, channels: int) -> Iterator[np.ndarray]:
    """From `native` to `rate`; the first sample in is the first sample out."""
    if native == rate:
        yield from pieces
        return
    layout = "mono" if channels == 1 else "stereo"
    resampler = AudioResampler("fltp", layout, rate)
    for piece in pieces:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=layout)
        frame.sample_rate = native
        for out in resampler.resample(frame):
            yield out.to_ndarray()


def _cut(pieces: Iterable[np.ndarray], skip: int, total: int) -> Iterator[np.ndarray]:
    """`total` samples after the first `skip`."""
    for piece in pieces:
        wanted = piece[:, skip : skip + total]
        skip -= min(skip, piece.shape[1])
        total -= wanted.shape[1]
        if wanted.shape[1]:
            yield wanted
        if total == 0:
            return


def _regroup(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in pieces of `size`; the last is shorter."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += piece.shape[1]
        while count >= size:
            whole = np.concatenate(held, axis=1)
            yield whole[:, :size]
            held, count = [whole[:, size:]], count - size
    if count:
        yield np.concatenate(held, axis=1)


def _microseconds(seconds: float) -> Fraction:
    """A float as the exact microsecond it stands for, so that 0.1 s is a tenth."""
    return Fraction(round(seconds * 1_000_000), 1_000_000)


def _nearest(x: Fraction) -> int:
    """The nearest integer; halves go up, as in `clips.samples`."""
    return math.floor(x + Fraction(1, 2))
