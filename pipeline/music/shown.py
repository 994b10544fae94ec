"""Curves as people see them: where nothing was separated, nothing is known of voices and stems, and there is a gap."""

from __future__ import annotations

import numpy as np

from pipeline.music.curves import Curves

_OF_STEMS = ("voice_ratio", "speech_left", "onset")


def shown(curves: Curves, name: str) -> np.ndarray:
    """[n] a curve by its name, NaN in seconds of which it says nothing."""
    values: np.ndarray = getattr(curves, name)
    return _separated(curves, values) if name in _OF_STEMS else values


def shown_stems(curves: Curves) -> dict[str, np.ndarray]:
    """[n] the level of each stem in dBFS, NaN in seconds that were not separated."""
    return {name: _separated(curves, levels) for name, levels in curves.stem_db.items()}


def shown_share(curves: Curves, seconds: slice) -> float | None:
    """Share of the voices in the energy of those of some seconds that were separated; None if none was."""
    if not len(curves.separated):
        return curves.voice_share(seconds)
    known = seconds.start + np.flatnonzero(curves.separated[seconds])
    return curves.voice_share(known) if len(known) else None


def numbers(values: np.ndarray, digits: int = 4) -> list[float | None]:
    """Values for JSON: rounded, None for NaN."""
    return [None if np.isnan(v) else round(float(v), digits) for v in values]


def _separated(curves: Curves, values: np.ndarray) -> np.ndarray:
    return np.where(curves.separated, values, np.nan) if len(curves.separated) else values
