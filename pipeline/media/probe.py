"""What a file holds, counted from its packets: headers of damaged or streamed files can't be believed."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet

from pipeline.errors import SourceError
from pipeline.media.container import find_stream, opened, tick, time_zero

IRREGULAR_SHARE = 0.01  # of a video's intervals may differ from the median before its rate counts as variable


@dataclass(frozen=True)
class VideoStream:
    """The video stream that is shown.

    Attributes:
        codec: FFmpeg's name of it.
        width: of the stored picture, before rotation.
        height: of the stored picture, before rotation.
        rotation: degrees it is turned anticlockwise to be shown: 0, 90, 180 or 270.
        rate: pictures per second on average; None for a single picture.
        start_s: first picture, seconds from time zero.
        duration_s: from the first picture to the end of the last.
        frames: pictures.
        variable_rate: whether the pictures are unevenly spaced.
    """

    codec: str
    width: int
    height: int
    rotation: int
    rate: Fraction | None
    start_s: float
    duration_s: float
    frames: int
    variable_rate: bool


@dataclass(frozen=True)
class AudioStream:
    """The audio stream that is played; `start_s` is in seconds from time zero."""

    codec: str
    rate: int
    channels: int
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class MediaInfo:
    """A media file. `duration_ms` runs from time zero to the last end of either stream."""

    container: str
    duration_ms: int
    bytes: int
    video: VideoStream | None
    audio: AudioStream | None

    @property
    def av_offset_ms(self) -> float:
        """How much later the sound starts than the picture; windows of both are cut by absolute time. 0 without one."""
        if self.video is None or self.audio is None:
            return 0.0
        return round((self.audio.start_s - self.video.start_s) * 1000, 3)


@dataclass(frozen=True)
class Track:
    """The packets of one stream that are shown or heard (an edit list may hide some).

    Attributes:
        stamps: presentation times, seconds on the container's own clock, ascending; float64, for finding gaps.
        key_stamps: those of the key packets.
        interval: usual seconds between neighbours; 0 for a single packet.
        variable: whether they are unevenly spaced; one or two holes don't make a rate variable.
        start: of the first packet, exact.
        last: stamp of the last packet, exact.
        end: of the last packet, exact.
        packets: read from the file, hidden ones too.
        declared: packets that an mp4's index promises; 0 elsewhere (AVI counts pictures it has left out).
        broken: packets that the demuxer found cut short.
    """

    stamps: np.ndarray
    key_stamps: np.ndarray
    interval: float
    variable: bool
    start: Fraction
    last: Fraction
    end: Fraction
    packets: int
    declared: int
    broken: int


@dataclass(frozen=True)
class Survey:
    """What one reading of all packets finds; `declared_s` is the duration in the header, None if it has none."""

    info: MediaInfo
    declared_s: Fraction | None
    video: Track | None
    audio: Track | None


def probe(path: str | Path) -> MediaInfo:
    """What the file holds; reads every packet and decodes one picture.

    Raises:
        SourceError: `corrupt` if it can't be read, `unsupported` without a stream that can be decoded.
        OSError: the file isn't there.
    """
    return survey(path).info


def survey(path: str | Path) -> Survey:
    """`probe`, with the packet tables that the integrity gate looks at."""
    name = Path(path).name
    with opened(path) as container:
        streams = {"video": find_stream(container, "video"), "audio": find_stream(container, "audio")}
        if not any(streams.values()):
            raise SourceError(f"{name} has neither video nor audio.", "unsupported")
        tracks = _read_packets(container, [s for s in streams.values() if s])
        if not tracks:
            raise SourceError(f"{name} has no packets.", "corrupt", hint="Fetch it again.")
        video, audio = (tracks.get(s.index) if s else None for s in streams.values())
        zero = time_zero(container)
        info = MediaInfo(
            container=container.format.name,
            duration_ms=math.floor((max(t.end for t in tracks.values()) - zero) * 1000 + Fraction(1, 2)),
            bytes=Path(path).stat().st_size,
            video=_video(streams["video"], video, zero, _rotation(path)) if video else None,
            audio=_audio(streams["audio"], audio, zero) if audio else None,
        )
        declared_s = Fraction(container.duration, av.time_base) if container.duration else None
        return Survey(info, declared_s, video, audio)


def _video(stream: Any, track: Track, zero: Fraction, rotation: int) -> VideoStream:
    return VideoStream(
        codec=stream.codec_context.name,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        rotation=rotation,
        rate=_rate(stream, track),
        start_s=float(track.start - zero),
        duration_s=float(track.end - track.start),
        frames=len(track.stamps),
        variable_rate=track.variable,
    )


def _audio(stream: Any, track: Track, zero: Fraction) -> AudioStream:
    return AudioStream(
        codec=stream.codec_context.name,
        rate=stream.codec_context.sample_rate,
        channels=stream.codec_context.channels,
        start_s=float(track.start - zero),
        duration_s=float(track.end - track.start),
    )


def _rate(stream: Any, track: Track) -> Fraction | None:
    """Counted from the packets; the header's rate is taken where the two differ by no more than rounded stamps."""
    span = track.last - track.start
    if span <= 0:
        return None
    counted = (len(track.stamps) - 1) / span
    slack = 2 * tick(stream) / span
    said = [Fraction(r.numerator, r.denominator) for r in (stream.average_rate, stream.guessed_rate) if r]
    nearest = min(said, key=lambda rate: abs(rate / counted - 1), default=counted)
    return nearest if abs(nearest / counted - 1) <= slack else counted


def _rotation(path: str | Path) -> int:
    """Degrees anticlockwise, from the first picture: PyAV hands on the display matrix with pictures only."""
    with opened(path) as container:
        picture = next(container.decode(find_stream(container, "video")), None)
        if picture is None:
            raise SourceError(f"{Path(path).name}: no picture can be decoded.", "corrupt", hint="Fetch it again.")
        return int(round(picture.rotation / 90) * 90 % 360)


class _Tally:
    """Counts one stream's packets; 24 bytes each, so hours fit."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.packets, self.broken = stream, 0, 0
        self.stamps, self.key_stamps, self.ends = array("q"), array("q"), array("q")

    def add(self, packet: Packet) -> None:
        self.packets += 1
        self.broken += packet.is_corrupt
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or packet.is_discard:
            return
        self.stamps.append(stamp)
        self.ends.append(stamp + (packet.duration or 0))
        if packet.is_keyframe:
            self.key_stamps.append(stamp)

    def track(self) -> Track:
        unit = tick(self.stream)
        stamps = np.sort(np.frombuffer(self.stamps, np.int64))
        steps = np.diff(stamps)
        interval = int(np.sort(steps)[len(steps) // 2]) if len(steps) else 0
        regular = abs(steps - interval) <= 1  # a tick is lost or won where a container rounds
        # The last packet's length is often missing (matroska) or padded to fit the file's.
        end = max(max(self.ends), int(stamps[-1]) + interval if max(self.ends) == stamps[-1] else 0)
        begin = self.stream.start_time
        start = int(stamps[0]) if begin is None else max(int(stamps[0]), begin)  # a codec's priming is not heard
        return Track(
            stamps=stamps * float(unit),
            key_stamps=np.sort(np.frombuffer(self.key_stamps, np.int64)) * float(unit),
            interval=float(steps[regular].mean() * unit) if len(steps) else 0.0,
            variable=int((~regular).sum()) > max(2, IRREGULAR_SHARE * len(stamps)),
            start=start * unit,
            last=int(stamps[-1]) * unit,
            end=end * unit,
            packets=self.packets,
            declared=self.stream.frames if "mov" in self.stream.container.format.name else 0,
            broken=self.broken,
        )


def _read_packets(container: InputContainer, streams: list[Any]) -> dict[int, Track]:
    """By stream index; a stream without packets is left out."""
    tallies = {stream.index: _Tally(stream) for stream in streams}
    for packet in container.demux(streams):
        if packet.size:  # an empty one is the decoder's flush signal
            tallies[packet.stream_index].add(packet)
    return {index: tally.track() for index, tally in tallies.items() if tally.stamps}
