"""Sounds of which everything is known: labelled mixtures of music, voices and effects, and compilations of tracks.

The material is that of the nano separator (`pipeline.nano.mixtures`): `train` is for setting thresholds, `test` is held
out. They share neither a score nor a voice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from scipy import signal

from pipeline.nano.mixtures import RATE, Kind, bank
from pipeline.nano.mixtures import music as scores
from pipeline.nano.mixtures.signals import Split, rms, room

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


@dataclass(frozen=True)
class Compilation:
    """Tracks one after the other: [N] float32 at `RATE`, and when one becomes the next, seconds; a gap has a width."""

    audio: np.ndarray
    joins: tuple[tuple[float, float], ...]


def compilations(split: Split, count: int, tracks: int = 6) -> Iterator[Compilation]:
    """Tracks of 30 to 75 s, joined by a hard cut, a cross-fade of 1 to 3 s, or a silence of 0.6 to 2 s."""
    for number in range(count):
        rng = np.random.default_rng([11, split == "test", number])
        audio, joins = _track(split, rng), []
        for i in range(1, tracks):
            following, at = _track(split, rng), len(audio)
            kind = ("cut", "fade", "gap")[i % 3]
            if kind == "gap":
                gap = round(rng.uniform(0.6, 2) * RATE)
                joins.append((at / RATE, (at + gap) / RATE))
                audio = np.concatenate([audio, np.zeros(gap), following])
                continue
            overlap = round(rng.uniform(1, 3) * RATE) if kind == "fade" else 0
            rise = np.sqrt(np.linspace(0, 1, overlap))
            both = audio[at - overlap :] * rise[::-1] + following[:overlap] * rise
            joins.append(((at - overlap / 2) / RATE,) * 2)
            audio = np.concatenate([audio[: at - overlap], both, following[overlap:]])
        yield Compilation(audio.astype(np.float32), tuple(joins))


def _track(split: Split, rng: np.random.Generator) -> np.ndarray:
    """One piece: a score from somewhere on, round again if it is short, on one set of instruments, at -20 dBFS."""
    seconds = float(rng.integers(30, 76))
    notes = scores.score(scores.draw_score(split, rng))
    beat_s = 60 / rng.uniform(70, 150)
    beats, length = seconds / beat_s, float(np.ceil(notes[:, :2].sum(1).max() / 4) * 4)
    rounds = int(np.ceil(1.2 * beats / length)) + 1
    notes = np.concatenate([notes + np.array([i * length, 0, 0, 0]) for i in range(rounds)])
    events = scores.excerpt(notes, 1.2 * beats, rng)  # an excerpt may end up to a tenth before its time
    if len({channel for _, _, channel, _ in events}) < 3:
        events += scores.accompaniment(events, beats, rng)
    events += scores.drums(beats, rng) if rng.random() < 0.5 else []
    programs = [int(rng.choice(scores.PROGRAMS)) for _ in range(16)]
    level = rng.integers(60, 110, 16)
    strokes: Iterable[scores.Stroke] = [
        (onset * beat_s, held * beat_s * 0.95, channel, pitch, int(level[channel]))
        for onset, held, channel, pitch in events
        if 0 <= pitch < 128
    ]
    audio = scores.play(strokes, programs, seconds, RATE)
    audio = room(audio, rng) if rng.random() < 0.5 else audio
    return audio / rms(audio) * 0.1
