"""PySceneDetect's detectors, with every parameter pinned.

Looked at cut by cut on Big Buck Bunny: content at 27.0 finds 137 cuts, nine of them motion or scrolling, and misses
one; adaptive at 3.0 finds 127, none false, and misses one. Of the trailer's nine boundaries four are fades through
black, which content finds and adaptive can't.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import scenedetect.detector

THRESHOLDS = {"content": 27.0, "adaptive": 3.0, "histogram": 0.2}


class SceneDetector:
    """Feeds one of them; its own minimum length is off, as it works in frames or emits late.

    Args:
        name: which.
        threshold: of it; None takes the one of `THRESHOLDS`.
    """

    def __init__(self, name: Literal["content", "adaptive", "histogram"], threshold: float | None) -> None:
        self._detector = _detector(name, THRESHOLDS[name] if threshold is None else threshold)
        self._times: list[Fraction] = []

    def feed(self, time: Fraction, picture: np.ndarray) -> list[Fraction]:
        """Takes the next picture; returns the cuts that it makes clear."""
        from scenedetect import FrameTimecode

        # Detectors see picture numbers only; a number's time is looked up, so no rate enters (25 is a dummy).
        found = self._detector.process_frame(FrameTimecode(len(self._times), fps=25.0), picture)
        self._times.append(time)
        return [self._times[cut.frame_num] for cut in found]

    def finish(self) -> list[Fraction]:
        """Nothing: what these detectors find they tell at once."""
        return []


def _detector(name: str, threshold: float) -> scenedetect.detector.SceneDetector:
    from scenedetect import AdaptiveDetector, ContentDetector, HistogramDetector

    match name:
        case "content":
            weights = ContentDetector.Components(delta_hue=1.0, delta_sat=1.0, delta_lum=1.0, delta_edges=0.0)
            return ContentDetector(threshold=threshold, min_scene_len=0, weights=weights)
        case "adaptive":
            return AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=0, window_width=2, min_content_val=15.0)
        case _:
            return HistogramDetector(threshold=threshold, bins=128, min_scene_len=0)
