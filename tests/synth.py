"""Media made for tests: every picture carries its index, every quarter second of sound a tick of its own pitch.

All is defined in continuous time, so that what a window should hold can be computed for any rate.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.packet import Packet
from av.video.frame import VideoFrame

WIDTH, HEIGHT = 160, 96
GRID = 4  # index blocks per side, in the central square, so that a centre crop keeps them
TICK_EVERY_S = 0.25
TICK_S = 0.012
SWEEP_HZ = 1500


def picture(index: int, *, width: int = WIDTH, height: int = HEIGHT, backdrop: int = 60) -> np.ndarray:
    """[height, width, 3] uint8: the 16 bits of `index` as light and dark blocks, lowest first in reading order."""
    side = min(width, height)
    rgb = np.full((height, width, 3), backdrop, np.uint8)
    bits = [(index >> bit) & 1 for bit in range(GRID * GRID)]
    blocks = np.where(np.array(bits).reshape(GRID, GRID), 220, 30).astype(np.uint8)
    square = np.kron(blocks, np.ones((side // GRID, side // GRID), np.uint8))
    top, left = (height - square.shape[0]) // 2, (width - square.shape[1]) // 2
    rgb[top : top + square.shape[0], left : left + square.shape[1]] = square[:, :, None]
    return rgb


def read_index(rgb: np.ndarray) -> int:
    """The index in a picture of any size that shows the whole central square."""
    height, width = rgb.shape[:2]
    side = min(width, height)
    top, left = (height - side) / 2, (width - side) / 2
    index = 0
    for bit in range(GRID * GRID):
        row, column = divmod(bit, GRID)
        y, x = int(top + (row + 0.5) * side / GRID), int(left + (column + 0.5) * side / GRID)
        reach = max(1, side // (GRID * 6))
        index |= int(rgb[y - reach : y + reach, x - reach : x + reach].mean() > 125) << bit
    return index


def shots(
    stamps: Sequence[Fraction], cuts: Sequence[Fraction], *, width: int = 320, height: int = 180
) -> Iterator[np.ndarray]:
    """Pictures that pan over a patchwork of blocks, another one from each of `cuts` on."""
    for index, stamp in enumerate(stamps):
        random = np.random.default_rng(sum(stamp >= cut for cut in cuts))
        rgb = np.full((height, width, 3), random.integers(0, 255, 3), np.uint8)
        for _ in range(12):
            y, x = random.integers(0, height - 30), random.integers(0, width - 30)
            rgb[y : y + 30, x : x + 30] = random.integers(0, 255, 3)
        yield np.roll(rgb, index, axis=1)


def even_stamps(rate: Fraction, seconds: float, start: Fraction = Fraction(0)) -> list[Fraction]:
    """Times of pictures at a constant rate."""
    return [start + index / rate for index in range(round(rate * Fraction(seconds)))]


def uneven_stamps(seconds: float, seed: int = 0, unit: Fraction = Fraction(1, 90000)) -> list[Fraction]:
    """Times of pictures 8 to 120 ms apart, on ticks of `unit`."""
    random = np.random.default_rng(seed)
    stamps, at = [], Fraction(0)
    while at < seconds:
        stamps.append(at)
        at += math.ceil(random.uniform(0.008, 0.12) / unit) * unit
    return stamps


def shown_index(stamps: Sequence[Fraction], t: Fraction, unit: Fraction = Fraction(1, 90000)) -> int:
    """The index of the picture that should be shown at t, with stamps rounded to ticks of `unit`."""
    rounded = [round(stamp / unit) * unit for stamp in stamps]
    return max([index for index, stamp in enumerate(rounded) if stamp <= t + unit / 2], default=0)


def ticks(seconds: float, rate: int, *, channels: int = 1, start_s: float = 0.0) -> np.ndarray:
    """[channels, n] float32, sample k at start_s + k / rate: at each n / 4 s, n >= 0, a 12 ms burst that says n."""
    t = start_s + np.arange(round(seconds * rate)) / rate
    n = np.maximum(np.floor(t / TICK_EVERY_S), 0)
    since = t - n * TICK_EVERY_S
    sweep = (pitch(n) + SWEEP_HZ * since / TICK_S / 2) * since  # a chirp: its match has one peak, not one per period
    burst = np.sin(np.pi * since / TICK_S) ** 2 * np.sin(2 * np.pi * sweep)
    sound = np.where((since >= 0) & (since < TICK_S), 0.6 * burst, 0.0).astype(np.float32)
    return np.repeat(sound[None], channels, axis=0)


def pitch(n: np.ndarray) -> np.ndarray:
    """Hz at which tick n starts."""
    return 600 + 40 * (n % 40)


def tick_errors(window: np.ndarray, rate: int, start_s: float) -> list[int]:
    """For every tick that a mono window [n] should hold whole: how many samples late it is; a million: missing."""
    errors, reach = [], round(0.03 * rate)
    first = max(0, math.ceil((start_s + 0.03) / TICK_EVERY_S))
    last = math.floor((start_s + len(window) / rate - TICK_S - 0.03) / TICK_EVERY_S)
    for n in range(first, last + 1):
        at = n * TICK_EVERY_S - start_s
        begin = round(at * rate)
        template = ticks(TICK_S, rate, start_s=start_s + begin / rate)[0]
        piece = window[begin - reach : begin + reach + len(template)]
        match = np.correlate(piece, template, "valid") / np.dot(template, template)
        found = int(match.argmax())
        errors.append(found - reach if match[found] > 0.5 else 10**6)
    return errors


def write(
    path: Path,
    *,
    stamps: Sequence[Fraction] | None = None,
    pictures: Iterable[np.ndarray] | None = None,
    audio: np.ndarray | None = None,
    audio_rate: int = 44100,
    audio_start: Fraction = Fraction(0),
    unit: Fraction = Fraction(1, 90000),
    codec: str = "libx264",
    audio_codec: str = "aac",
    audio_format: str = "fltp",
    options: dict[str, str] | None = None,
    audio_options: dict[str, str] | None = None,
    layout: str | None = None,
    rotation: float = 0,
    mirrored: bool = False,
    pixel_aspect: Fraction | None = None,
    keep: Callable[[Packet], bool] = lambda packet: True,
    muxer_options: dict[str, str] | None = None,
) -> Path:
    """Writes a file of any container (by suffix) with exact times; returns its path.

    Args:
        path: where; the suffix says the container.
        stamps: seconds of each picture on the container's clock.
        pictures: one per stamp; `picture(index)` by default.
        audio: [C, N] in -1..1 (AAC without noise substitution by default, so that it decodes alike from any point).
        audio_rate: samples per second.
        audio_start: seconds of sample 0 on the container's clock.
        unit: the video's time base.
        codec: video encoder; x264 gets three B-frames and a key frame every 25 by default.
        audio_codec: audio encoder.
        audio_format: sample format handed to it.
        options: of the video encoder.
        audio_options: of the audio encoder.
        layout: of the channels, mono or stereo by default.
        rotation: degrees anticlockwise, in the display matrix.
        mirrored: left to right, in the display matrix.
        pixel_aspect: sample aspect ratio.
        keep: packets for which this is false are dropped, as a lost segment drops them.
        muxer_options: of the container.
    """
    exact = {"movie_timescale": "90000"} if path.suffix == ".mp4" else {}  # else edit lists are rounded to 1 ms
    with av.open(str(path), "w", options={**exact, **(muxer_options or {})}) as container:
        streams: list[Iterator[Packet]] = []
        if stamps is not None:
            shown = iter(pictures) if pictures is not None else (picture(index) for index in range(len(stamps)))
            first = next(shown)
            default = {"preset": "veryfast", "crf": "18", "g": "25", "bf": "3"} if codec == "libx264" else {}
            rate = (len(stamps) - 1) / (stamps[-1] - stamps[0]) if len(stamps) > 1 else Fraction(25)
            rate = rate.limit_denominator(1001)
            video = container.add_stream(codec, rate=rate, options={**default, **(options or {})})
            video.height, video.width = first.shape[:2]
            video.pix_fmt = "yuv420p"
            video.codec_context.time_base = unit
            if pixel_aspect is not None:
                video.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation or mirrored:
                video.set_display_rotation(rotation, hflip=mirrored)
            streams.append(_video_packets(video, [first, *shown], stamps, unit))
        if audio is not None:
            layout = layout or {1: "mono", 2: "stereo"}[audio.shape[0]]
            chosen = {"aac_pns": "0", "b": "192k"} if audio_codec == "aac" else {}
            chosen.update(audio_options or {})
            sound = container.add_stream(
                audio_codec, rate=audio_rate, layout=layout, format=audio_format, options=chosen
            )
            streams.append(_audio_packets(sound, audio, audio_rate, audio_start, audio_format, layout))
        for packet in heapq.merge(*streams, key=lambda packet: packet.dts * packet.time_base):
            if keep(packet):
                container.mux(packet)
    return path


def _video_packets(
    stream: Any, pictures: Sequence[np.ndarray], stamps: Sequence[Fraction], unit: Fraction
) -> Iterator[Packet]:
    for rgb, stamp in zip(pictures, stamps, strict=True):
        frame = VideoFrame.from_ndarray(rgb, format="rgb24")
        frame.pts, frame.time_base = round(stamp / unit), unit
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _audio_packets(
    stream: Any, audio: np.ndarray, rate: int, start: Fraction, sample_format: str, layout: str
) -> Iterator[Packet]:
    for at in range(0, audio.shape[1], 1024):
        samples = audio[:, at : at + 1024].astype(np.float64)
        match sample_format.removesuffix("p"):
            case "u8":
                samples = (np.round(samples * 2**7) + 2**7).clip(0, 2**8 - 1).astype(np.uint8)
            case "s16":
                samples = np.round(samples * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
            case "s32":
                samples = np.round(samples * 2**31).clip(-(2**31), 2**31 - 1).astype(np.int32)
            case _:
                samples = samples.astype(np.float32)
        if not sample_format.endswith("p"):
            samples = samples.T.reshape(1, -1)
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=sample_format, layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start * rate) + at
        yield from stream.encode(frame)
    yield from stream.encode(None)
