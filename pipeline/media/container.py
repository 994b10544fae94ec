"""Opening an untrusted file, choosing its streams, and the clock that all windows share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
from av.container import InputContainer

from pipeline.errors import SourceError

# Demuxers that read one plain file. Playlists (hls, dash, concat) are left out: they fetch what a stranger wrote.
DEMUXERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mp3,aac,flac,wav"


Kind = Literal["video", "audio"]


@contextmanager
def opened(path: str | Path) -> Iterator[InputContainer]:
    """An open container; whatever goes wrong in reading or decoding it becomes a `SourceError`.

    Raises:
        SourceError: `corrupt` if FFmpeg can't read or decode the file, `unsupported` if it has no decoder for it.
        OSError: the file isn't there or may not be read.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        raise SourceError(f"{path.name} is empty.", "corrupt", hint="Fetch or copy it again.")
    try:
        # `file:` keeps a colon in a name from being read as a protocol.
        container = av.open(
            f"file:{path}",
            options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"},
            metadata_errors="replace",  # a damaged file's tags may be no text
        )
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise SourceError(
            f"{path.name} is not a media file, or its index is missing.", "corrupt", hint="Fetch or copy it again."
        ) from error
    try:
        with container:
            yield container
    except av.error.DecoderNotFoundError as error:
        raise SourceError(f"{path.name} has a codec that can't be decoded here.", "unsupported") from error
    except av.error.FFmpegError as error:
        # A full or broken disk is not the file's fault; "not permitted" is how FFmpeg says that a seek failed.
        if isinstance(error, OSError) and not isinstance(error, PermissionError):
            raise
        raise SourceError(
            f"{path.name} is damaged: {error.strerror or error}.", "corrupt", hint="Fetch or copy it again."
        ) from error


def find_stream(container: InputContainer, kind: Kind) -> Any:
    """The stream of `kind` ("video" or "audio") that a player would show, or None; a cover picture is not a video.

    Raises:
        SourceError: `unsupported`, the stream is there but has no decoder.
    """
    stream = container.streams.best(kind)
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        return None
    if stream.codec_context is None:
        raise SourceError(f"{_name(container)} has a {kind} codec that can't be decoded here.", "unsupported")
    return stream


def need_stream(container: InputContainer, kind: Kind) -> Any:
    """`find_stream`, or a `SourceError` (`unsupported`) that says it's missing."""
    stream = find_stream(container, kind)
    if stream is None:
        raise SourceError(f"{_name(container)} has no {kind} stream.", "unsupported")
    return stream


def time_zero(container: InputContainer) -> Fraction:
    """The container's start time in seconds: FFmpeg rounds it to a microsecond, its stream has it exact."""
    zero = Fraction(container.start_time or 0, av.time_base)
    starts = [s.start_time * tick(s) for s in container.streams if s.start_time is not None]
    nearest = min(starts, key=lambda start: abs(start - zero), default=zero)
    return nearest if abs(nearest - zero) <= Fraction(1, av.time_base) else zero


def tick(timed: Any) -> Fraction:
    """The time base of a stream or frame in seconds (PyAV 19 has a rational type of its own)."""
    return Fraction(timed.time_base.numerator, timed.time_base.denominator)


def _name(container: InputContainer) -> str:
    return Path(container.name).name
