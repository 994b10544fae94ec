"""Sounds of which everything is known: labelled mixtures of music, voices and effects.

The material is that of the nano separator (`pipeline.nano.mixtures`): `train` is for setting thresholds, `test` is held
out. They share neither a score nor a voice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from scipy import signal

from pipeline.nano.mixtures import RATE, Kind, bank
from pipeline.nano.mixtures.signals import Split, rms

SECONDS = 10
Fate = Literal["keep", "drop", "between"]


@dataclass(frozen=True)
class Case:
    """A kind of mixture.

    Attributes:
        name: what a person calls it.
        parts: kinds of sound, of the banks or made here.
        snr_db: how far the voice stands over the rest.
        clear: whether anybody would say the same of it: what the verdict has to get right.
    """

    name: str
    parts: tuple[str, ...]
    snr_db: float | None = None
    clear: bool = False

    @property
    def sings(self) -> bool:
        """Whether somebody sings in it."""
        return "singing" in self.parts


CASES = (
    Case("music alone", ("music",), clear=True),
    Case("music, fading out and in", ("music", "fade"), clear=True),
    *(Case(f"speech over music {db:+d} dB", ("music", "speech"), db, clear=db >= 0) for db in (-20, -10, -5, 0, 5, 10)),
    Case("speech alone", ("speech",), clear=True),
    Case("singing over music 0 dB", ("music", "singing"), 0),
    Case("singing alone", ("singing",)),
    Case("effects alone", ("effects",), clear=True),
    Case("music and effects -10 dB", ("music", "effects")),
    Case("noise", ("noise",), clear=True),
    Case("silence", (), clear=True),
)


@dataclass(frozen=True)
class Mixture:
    """`other` (all but voices) and `vocals`, [N] float32 at `RATE`; `music`: whether there is music in it."""

    case: Case
    other: np.ndarray
    vocals: np.ndarray

    @property
    def mix(self) -> np.ndarray:
        """What is heard."""
        return self.other + self.vocals

    @property
    def voice_ratio(self) -> np.ndarray:
        """Energy of the vocals over all energy in each second, [10]."""
        vocals, other = (np.square(a).reshape(SECONDS, RATE).sum(1) for a in (self.vocals, self.other))
        return vocals / np.maximum(vocals + other, 1e-9)

    @property
    def fate(self) -> Fate:
        """What the policy makes of the whole window."""
        vocals, other = float(np.sum(self.vocals**2)), float(np.sum(self.other**2))
        share = vocals / max(vocals + other, 1e-9)
        if "music" not in self.case.parts or share >= 0.3:
            return "drop"
        return "keep" if share <= 0.05 else "between"


def mixture(case: Case, split: Split, number: int) -> Mixture:
    """Mixture number n of a case: ten seconds at -20 dBFS."""
    rng = np.random.default_rng([7, split == "test", CASES.index(case), number])
    length = SECONDS * RATE
    other, vocals = 1e-5 * rng.standard_normal(length) * (case.parts != ()), np.zeros(length)
    for part in case.parts:
        if part == "fade":
            other *= np.interp(np.arange(length), [0, length * 0.3, length * 0.6, length], [0.1, 1, 1, 0.1])
        elif part == "noise":
            other += signal.lfilter([1], [1, -rng.uniform(0, 0.97)], rng.standard_normal(length))
        else:
            audio = _part(cast(Kind, part), split, rng, length)
            if part in {"speech", "singing"}:
                vocals += audio * (1.0 if case.snr_db is None else 10 ** (case.snr_db / 20))
            else:
                other += audio * (10**-0.5 if part == "effects" and len(case.parts) > 1 else 1.0)
    scale = 0.1 / max(rms(other + vocals), 1e-3)
    return Mixture(case, (other * scale).astype(np.float32), (vocals * scale).astype(np.float32))


def _part(kind: Kind, split: Split, rng: np.random.Generator, length: int) -> np.ndarray:
    """An excerpt of the bank at unit RMS that is not mostly a pause."""
    clips = bank(split, kind)
    while True:
        clip = clips[rng.integers(len(clips))]
        start = rng.integers(0, len(clip) - length + 1)
        audio = clip[start : start + length] / 32768
        if rms(audio) > 0.02:
            return audio / rms(audio)
