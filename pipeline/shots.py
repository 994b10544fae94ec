"""Shot boundaries: PySceneDetect's detectors with every parameter pinned, on our own decoder's exact times.

The detectors are fed directly. PySceneDetect's own backends (0.7.2, OpenCV and PyAV) find the same cuts at the same
cost, but count time from the first picture rather than from time zero, and pass over pictures that don't decode.

Looked at cut by cut on Big Buck Bunny: content at 27.0 finds 137 cuts, nine of them motion or scrolling, and misses
one; adaptive at 3.0 finds 127, none false, and misses one. But of the trailer's nine boundaries four are fades through
black, which content finds and adaptive can't. Promotional videos are full of them, hence the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import media
from pipeline.config import ShotSettings

if TYPE_CHECKING:
    from scenedetect.detector import SceneDetector

LONGEST = 256  # pixels of the longer side, as PySceneDetect's automatic downscaling


def find_cuts(path: str | Path, settings: ShotSettings) -> tuple[float, ...]:
    """When every shot but the first begins: seconds from time zero, to the millisecond, strictly increasing.

    Raises:
        SourceError: as `media.frames_at`.
    """
    from scenedetect import FrameTimecode

    detector = _detector(settings)
    times: list[Fraction] = []
    found: list[FrameTimecode] = []
    # Detectors see picture numbers only; a number's time is looked up, so no rate enters (25 is a dummy).
    for time, picture in media.every_frame(path, longest=LONGEST):
        found += detector.process_frame(FrameTimecode(len(times), fps=25.0), picture)
        times.append(time)
    return drop_close([times[cut.frame_num] for cut in found], times, settings.min_shot_s)


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


def _detector(settings: ShotSettings) -> SceneDetector:
    """PySceneDetect's detector; its own minimum length is off, as it works in frames or emits late."""
    from scenedetect import AdaptiveDetector, ContentDetector, HistogramDetector

    match settings.detector:
        case "content":
            weights = ContentDetector.Components(delta_hue=1.0, delta_sat=1.0, delta_lum=1.0, delta_edges=0.0)
            return ContentDetector(threshold=settings.threshold, min_scene_len=0, weights=weights)
        case "adaptive":
            return AdaptiveDetector(
                adaptive_threshold=settings.threshold, min_scene_len=0, window_width=2, min_content_val=15.0
            )
        case "histogram":
            return HistogramDetector(threshold=settings.threshold, bins=128, min_scene_len=0)
