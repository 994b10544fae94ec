"""Playable files: H.264 and AAC in mp4, for people to look at and for tests."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame

from pipeline.errors import DvmsetError
from pipeline.media.container import need_stream, opened, tick, time_zero

METADATA = ("title", "artist", "album", "comment", "description", "date", "genre", "copyright")  # what mp4 has room for
AUDIO_FRAME = 1024  # samples of one AAC frame


def encode(
    path: str | Path,
    frames: Iterable[np.ndarray] | None,
    rate: Fraction,
    audio: np.ndarray | None,
    audio_rate: int,
    *,
    crf: int = 20,
) -> None:
    """Writes an mp4 of pictures at a constant rate, of sound, or of both, from time zero on.

    Args:
        path: written in place; the name needn't end in mp4.
        frames: [H, W, 3] uint8 RGB each, H and W even; taken one at a time. None: no video.
        rate: pictures per second.
        audio: [C, N] float32 in -1..1, C 1 or 2. None: no sound.
        audio_rate: samples per second.
        crf: x264's quality, 0 (lossless) to 51.

    Raises:
        ValueError: neither pictures nor sound, or pictures of odd size.
    """
    if frames is None and audio is None:
        raise ValueError("Nothing to encode: no frames and no audio.")
    with _mp4(path) as container:
        streams = []
        if frames is not None:
            streams.append(_encode_video(container, frames, rate, crf))
        if audio is not None:
            streams.append(_encode_audio(container, audio, audio_rate))
        _interleave(container, streams)


def mux(
    video_path: str | Path,
    audio: np.ndarray,
    audio_rate: int,
    out_path: str | Path,
    metadata: dict[str, str] | None = None,
) -> None:
    """Puts new sound under a file's video: the video packets are copied, time zero stays time zero.

    Args:
        video_path: a file with video; its own sound is left out.
        audio: [C, N] float32 in -1..1, sample 0 at time zero; encoded as AAC.
        audio_rate: samples per second.
        out_path: the mp4 to write.
        metadata: title, artist, album, comment, description, date, genre, copyright.

    Raises:
        SourceError: the video can't be read, or has none.
        DvmsetError: the video's codec has no place in mp4.
        ValueError: a metadata key that mp4 has no room for.
    """
    unknown = set(metadata or ()) - set(METADATA)
    if unknown:
        raise ValueError(f"mp4 has no room for metadata named {', '.join(sorted(unknown))}; use {', '.join(METADATA)}.")
    with opened(video_path) as source, _mp4(out_path) as container:
        container.metadata.update(metadata or {})
        _interleave(container, [_copy_video(source, container), _encode_audio(container, audio, audio_rate)])


@contextmanager
def _mp4(path: str | Path) -> Iterator[OutputContainer]:
    """An mp4 that plays while it loads, without dates or version strings: equal input gives equal bytes."""
    # An edit list delays a stream in units of movie_timescale; its default, a millisecond, is too coarse.
    options = {"movflags": "+faststart", "fflags": "+bitexact", "movie_timescale": "90000"}
    with av.open(f"file:{path}", "w", format="mp4", options=options) as container:
        yield container


def _encode_video(
    container: OutputContainer, frames: Iterable[np.ndarray], rate: Fraction, crf: int
) -> Iterator[Packet]:
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None or first.shape[0] % 2 or first.shape[1] % 2:
        raise ValueError("H.264 needs at least one frame, of even width and height.")
    stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
    stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
    stream.codec_context.time_base = 1 / rate

    def packets() -> Iterator[Packet]:
        for index, rgb in enumerate(itertools.chain([first], pictures)):
            picture = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            picture.pts, picture.time_base = index, 1 / rate
            yield from stream.encode(picture)
        yield from stream.encode(None)

    return packets()


def _encode_audio(container: OutputContainer, audio: np.ndarray, rate: int) -> Iterator[Packet]:
    layout = {1: "mono", 2: "stereo"}[audio.shape[0]]
    stream = container.add_stream("aac", rate=rate, layout=layout, options={"b": "192000"})

    def packets() -> Iterator[Packet]:
        for at in range(0, audio.shape[1], AUDIO_FRAME):
            samples = np.ascontiguousarray(audio[:, at : at + AUDIO_FRAME], dtype=np.float32)
            frame = AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return packets()


def _copy_video(source: InputContainer, container: OutputContainer) -> Iterator[Packet]:
    stream = need_stream(source, "video")
    codec = stream.codec_context.name
    if stream.codec_context.codec.canonical_name not in container.supported_codecs:
        raise DvmsetError(f"{codec} video can't be put into mp4.", hint="Convert the video to H.264 first.")
    copy = container.add_stream_from_template(stream)
    shift = round(time_zero(source) / tick(stream))

    def packets() -> Iterator[Packet]:
        waiting: list[Packet] = []
        for packet in source.demux(stream):
            if packet.size == 0:  # the decoder's flush signal
                continue
            waiting.append(packet)
            if packet.dts is None:
                continue
            # Matroska stores no decoding times. FFmpeg makes up all but the first few: those get the ticks before.
            for ahead, early in enumerate(reversed(waiting)):
                early.dts = packet.dts - shift - ahead
                early.pts = early.dts if early.pts is None else early.pts - shift
                early.stream = copy
            yield from waiting
            waiting = []

    return packets()


def _interleave(container: OutputContainer, streams: list[Iterator[Packet]]) -> None:
    """Muxes in the order of decoding, so that no stream has to wait in memory for another."""
    for packet in heapq.merge(*streams, key=lambda packet: (packet.dts or 0) * tick(packet)):
        container.mux(packet)
