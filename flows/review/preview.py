"""Small playable files of single windows, for media that a browser can't play or that lies in a bucket."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.errors import DvmsetError
from pipeline.process import Desk, section
from pipeline.review.view import context
from pipeline.review.windows import Window

FPS = 12
HEIGHT = 240
AUDIO_RATE = 44_100


class Previews:
    """Makes each preview once.

    Args:
        desk: of the data folder.
        folder: where they lie; not in the data folder.
    """

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk = desk
        self.folder = folder
        self.lock = threading.Lock()

    def of(self, window: Window) -> Path:
        """The preview of a window and what is shown around it.

        Raises:
            DvmsetError: the media is gone.
        """
        from pipeline.media import audio_window, encode, frames_at

        target = self.folder / f"{window.window_id}.mp4"
        media = self.desk.ledger.media(window.source_id)
        if media is None or not self.desk.store.exists(media.name):
            raise DvmsetError("The media of this source is gone.", hint="Build with --set fetch.keep_media=true.")
        with self.lock:
            if target.exists():
                return target
            source = self.desk.ledger.source(window.source_id)
            start_s, end_s = context(window, *section(source, media.duration_ms))
            span = {"start_s": start_s, "end_s": end_s}
            count = round((end_s - start_s) * FPS)
            times = [Fraction(round(start_s * 1000), 1000) + Fraction(i, FPS) for i in range(count)]
            with self.desk.store.read(media.name) as path:
                audio = audio_window(path, rate=AUDIO_RATE, channels=2, **span)
                frames = (_small(frame) for frame in frames_at(path, times))
                part = target.with_suffix(".part")
                encode(part, frames, Fraction(FPS), audio, AUDIO_RATE, crf=28)
            part.replace(target)
        return target


def _small(frame: np.ndarray) -> np.ndarray:
    """[H, W, 3] -> about `HEIGHT` lines, by leaving out lines and columns; sides even, as H.264 wants them."""
    step = max(1, frame.shape[0] // HEIGHT)
    small = frame[::step, ::step]
    return small[: small.shape[0] // 2 * 2, : small.shape[1] // 2 * 2]
