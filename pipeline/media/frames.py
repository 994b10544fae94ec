"""Pictures at exact times, scaled and cropped as open_clip's preprocessing does it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from pipeline.errors import SourceError
from pipeline.media.container import need_stream, opened, tick, time_zero

FAR_S = 10  # a step longer than this is worth a seek: x264's default distance between key frames at 25 fps


def frames_at(
    path: str | Path, times: Iterable[Fraction | int | float], *, size: int | None = None
) -> Iterator[np.ndarray]:
    """The picture that a player shows at each of `times`.

    That is the one with the largest timestamp <= t, with half a tick of the time base, but no more than half a
    millisecond, to spare: containers round.
    Before the first picture the first is held, after the last the last. Pictures come upright and in square pixels:
    rotation and mirroring of the display matrix are applied, anamorphic widths are stretched to the display width.

    Args:
        path: a file with video.
        times: seconds from time zero, ascending, taken one at a time. Dense ones are decoded in a row, far ones sought.
        size: scale the shorter side to `size` (bicubic with antialiasing, longer side rounded down, as torchvision's
            `Resize`), then cut the centre out (as its `CenterCrop`). None keeps the display size.

    Yields:
        [H, W, 3] uint8 RGB, one per time; [size, size, 3] with `size`. Read-only; a held picture is the same array.

    Raises:
        SourceError: `unsupported` without a video stream; `corrupt` if a picture that's needed can't be decoded.
        ValueError: a time before the one before it.
    """
    with opened(path) as container:
        stream = need_stream(container, "video")
        player, convert = _Player(container, stream), _Converter(size, pixel_aspect(stream))
        picture = None
        rgb = np.empty(0)
        for t in times:
            shown = player.at(Fraction(t))
            if shown is not picture:
                picture, rgb = shown, convert(shown)
            yield rgb


def every_frame(path: str | Path, *, longest: int) -> Iterator[tuple[Fraction, np.ndarray]]:
    """All pictures of a file in order, small, for detectors.

    Args:
        path: a file with video.
        longest: pixels of the longer side after (fast bilinear) scaling; smaller pictures keep their size.

    Yields:
        Seconds from time zero, exact, each later than the one before; [H, W, 3] uint8 BGR, as stored.

    Raises:
        SourceError: as `frames_at`.
    """
    with opened(path) as container:
        player, scaler = _Player(container, need_stream(container, "video")), VideoReformatter()
        while picture := player.next:
            share = min(1.0, longest / max(picture.width, picture.height))
            width, height = max(1, round(picture.width * share)), max(1, round(picture.height * share))
            fast = Interpolation.FAST_BILINEAR
            small = scaler.reformat(picture, width, height, "bgr24", interpolation=fast, threads=1)
            yield player.next_time, small.to_ndarray()
            player.advance()


class _Player:
    """The pictures of a stream by ascending time, decoded in a row; long steps are sought."""

    def __init__(self, container: InputContainer, stream: Any) -> None:
        stream.thread_type = "AUTO"
        self.container, self.stream, self.zero = container, stream, time_zero(container)
        self.slack = min(tick(stream), Fraction(1, 1000)) / 2
        self.last: Fraction | None = None
        self._start()
        if self.next is None:
            raise SourceError(f"{Path(container.name).name} has no picture that can be decoded.", "corrupt")
        self.shown = self.next

    def at(self, t: Fraction) -> VideoFrame:
        """The picture shown at t; t may not be less than before."""
        if self.last is not None and t < self.last:
            raise ValueError(f"Times must ascend: {float(t):.6f} s comes after {float(self.last):.6f} s.")
        if t - (self.last or 0) > FAR_S:
            self._jump(t)
        self.last = t
        while self.next and self.next_time <= t + self.slack:
            self.shown = self.next
            self.advance()
        return self.shown

    def _start(self) -> None:
        """Decodes from where the container stands."""
        self.pictures = self.container.decode(self.stream)
        self.next: VideoFrame | None = None
        self.next_time = Fraction(-(10**9))
        self.advance()

    def advance(self) -> None:
        """Takes up the next picture that comes later than the one before (damaged streams may step back)."""
        before = self.next_time
        for picture in self.pictures:
            stamp = picture.pts if picture.pts is not None else picture.dts
            if stamp is None:
                continue
            self.next, self.next_time = picture, stamp * tick(picture) - self.zero
            if self.next_time > before:
                return
        self.next = None

    def _jump(self, t: Fraction) -> None:
        """Goes on decoding at a key frame at or before t.

        Indexes are by decoding time, and a stream may not start with a key frame where the seek lands: if the first
        picture is later than t, the seek is tried again from further back, and in the end from the start.
        """
        back = Fraction(0)
        while t > back:
            try:
                self.container.seek(int((t - back + self.zero) / tick(self.stream)), stream=self.stream)
            except FFmpegError:  # past the last key frame of a container without an index
                back = max(2 * back, Fraction(1))
                continue
            self._start()
            if self.next and self.next_time <= t + self.slack:
                return
            back = max(2 * back, Fraction(1))
        self.container.seek(self.stream.start_time or 0, stream=self.stream)
        self._start()


class _Converter:
    """From decoded pictures to upright RGB arrays. Keeps one scaler: a new one per picture is eight times slower."""

    def __init__(self, size: int | None, pixel_aspect: Fraction) -> None:
        self.size, self.pixel_aspect = size, pixel_aspect
        self.scaler = VideoReformatter()
        self.turn: Turn | None = None

    def __call__(self, picture: VideoFrame) -> np.ndarray:
        width, height = round(picture.width * self.pixel_aspect), picture.height
        if self.size is not None:
            longer = int(self.size * max(width, height) / min(width, height))
            width, height = (longer, self.size) if width > height else (self.size, longer)
        if self.turn is None:
            # Once per stream: asking a picture for its side data ties it into a cycle, and memory fills with pictures.
            self.turn = read_turn(picture)
        # Scaling into planar RGB keeps the colour's resolution and costs a third less than into packed; converting
        # alone is the other way round. One thread: decoding has the others.
        form = "gbrp" if self.size is not None else "rgb24"
        scaled = self.scaler.reformat(picture, width, height, form, interpolation=Interpolation.BICUBIC, threads=1)
        rgb = self.turn.apply(scaled.to_ndarray())
        if self.size is not None:
            top, left = (round((side - self.size) / 2) for side in rgb.shape[:2])
            rgb = rgb[top : top + self.size, left : left + self.size]
        rgb = np.ascontiguousarray(rgb)
        rgb.setflags(write=False)
        return rgb


def pixel_aspect(stream: Any) -> Fraction:
    """Width over height of one stored pixel; 1 where the container doesn't say, or says what no camera makes."""
    aspect = stream.sample_aspect_ratio
    if not aspect or aspect.denominator == 0:
        return Fraction(1)
    aspect = Fraction(aspect.numerator, aspect.denominator)
    return aspect if Fraction(1, 4) <= aspect <= 4 else Fraction(1)


@dataclass(frozen=True)
class Turn:
    """Quarter turns and mirroring: transpose first, then reverse."""

    transpose: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """A view of `rgb` [H, W, 3], upright."""
        if self.transpose:
            rgb = rgb.transpose(1, 0, 2)
        return rgb[:: -1 if self.reverse_rows else 1, :: -1 if self.reverse_columns else 1]


def read_turn(picture: VideoFrame) -> Turn:
    """How the display matrix of `picture` has it shown.

    The matrix takes a stored point (x, y) to (a x + c y, b x + d y), see FFmpeg's libavutil/display.h.
    """
    matrix: Any = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn()
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if abs(b) > abs(a):
        return Turn(transpose=True, reverse_rows=bool(b < 0), reverse_columns=bool(c < 0))
    return Turn(reverse_rows=bool(d < 0), reverse_columns=bool(a < 0))
