"""Playable files: H.264 and AAC in mp4, new sound under old pictures, and sound alone."""

from __future__ import annotations

import heapq
import io
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

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
LAYOUTS = {1: "mono", 2: "stereo"}


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
    audio: np.ndarray | Iterable[np.ndarray],
    audio_rate: int,
    out_path: str | Path,
    metadata: dict[str, str] | None = None,
) -> None:
    """Puts new sound under a file's video: the video packets are copied, time zero stays time zero.

    Args:
        video_path: a file with video; its own sound is left out.
        audio: [C, N] float32 in -1..1, whole or in pieces, sample 0 at time zero; encoded as AAC.
        audio_rate: samples per second.
        out_path: the mp4 to write.
        metadata: title, artist, album, comment, description, date, genre, copyright.

    Raises:
        SourceError: the video can't be read, or has none.
        DvmsetError: the video's codec has no place in mp4.
        ValueError: a metadata key that mp4 has no room for.
    """
    with opened(video_path) as source, _mp4(out_path) as container:
        container.metadata.update(_known(metadata))
        _interleave(container, [_copy_video(source, container), _encode_audio(container, audio, audio_rate)])


def check_mux(video_path: str | Path) -> None:
    """Raises as `mux` would for this video, before there is any sound to put under it."""
    with opened(video_path) as source, av.open(io.BytesIO(), "w", format="mp4") as container:
        _add_copy(source, container)


def write_wav(
    path: str | Path,
    audio: np.ndarray | Iterable[np.ndarray],
    audio_rate: int,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes sound alone, as 24-bit PCM in a WAV file.

    Args:
        path: written in place; the name needn't end in wav.
        audio: [C, N] float32 in -1..1, C 1 or 2, whole or in pieces.
        audio_rate: samples per second.
        metadata: as `mux` takes it; goes into the file's INFO chunk.

    Raises:
        ValueError: as `mux`.
    """
    with av.open(f"file:{path}", "w", format="wav", options={"fflags": "+bitexact"}) as container:
        container.metadata.update(_known(metadata))
        for packet in _encode_pcm(container, audio, audio_rate):
            container.mux(packet)


def _known(metadata: dict[str, str] | None) -> dict[str, str]:
    unknown = set(metadata or ()) - set(METADATA)
    if unknown:
        raise ValueError(f"mp4 has no room for metadata named {', '.join(sorted(unknown))}; use {', '.join(METADATA)}.")
    return metadata or {}


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


def _encode_audio(container: OutputContainer, audio: np.ndarray | Iterable[np.ndarray], rate: int) -> Iterator[Packet]:
    channels, pieces = _pieces(audio)
    stream = container.add_stream("aac", rate=rate, layout=LAYOUTS[channels], options={"b": "192000"})
    return _encode_pieces(stream, (piece.astype(np.float32) for piece in pieces), "fltp")


def _encode_pcm(container: OutputContainer, audio: np.ndarray | Iterable[np.ndarray], rate: int) -> Iterator[Packet]:
    """24 bits, the upper ones of s32."""
    channels, pieces = _pieces(audio)
    stream = container.add_stream("pcm_s24le", rate=rate, layout=LAYOUTS[channels])
    scaled = (np.rint(piece.astype(np.float64) * 2**23).clip(-(2**23), 2**23 - 1) for piece in pieces)
    whole = (piece.T.reshape(1, -1).astype(np.int32) << 8 for piece in scaled)
    return _encode_pieces(stream, whole, "s32")


def _pieces(audio: np.ndarray | Iterable[np.ndarray]) -> tuple[int, Iterator[np.ndarray]]:
    """Channels, and the audio in pieces of one AAC frame, [C, AUDIO_FRAME] each; the last is shorter."""
    given = iter([audio] if isinstance(audio, np.ndarray) else audio)
    first = next(given, None)
    if first is None:
        raise ValueError("No audio to encode.")

    def pieces() -> Iterator[np.ndarray]:
        rest = first[:, :0]
        for piece in itertools.chain([first], given):
            joined = np.concatenate([rest, piece], axis=1) if rest.shape[1] else piece
            whole = joined.shape[1] // AUDIO_FRAME * AUDIO_FRAME
            for at in range(0, whole, AUDIO_FRAME):
                yield joined[:, at : at + AUDIO_FRAME]
            rest = joined[:, whole:]
        if rest.shape[1]:
            yield rest

    return len(first), pieces()


def _encode_pieces(stream: Any, pieces: Iterable[np.ndarray], form: str) -> Iterator[Packet]:
    layout, rate, at = stream.layout.name, stream.rate, 0
    for piece in pieces:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(piece), format=form, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        at += frame.samples
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _copy_video(source: InputContainer, container: OutputContainer) -> Iterator[Packet]:
    stream, copy = _add_copy(source, container)
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


def _add_copy(source: InputContainer, container: OutputContainer) -> tuple[Any, Any]:
    """The source's video stream, and one like it in the container."""
    stream = need_stream(source, "video")
    if stream.codec_context.codec.canonical_name not in container.supported_codecs:
        codec = stream.codec_context.name
        raise DvmsetError(f"{codec} video can't be put into mp4.", hint="Convert the video to H.264 first.")
    return stream, container.add_stream_from_template(stream)


def _interleave(container: OutputContainer, streams: list[Iterator[Packet]]) -> None:
    """Muxes in the order of decoding, so that no stream has to wait in memory for another."""
    for packet in heapq.merge(*streams, key=lambda packet: (packet.dts or 0) * tick(packet)):
        container.mux(packet)
