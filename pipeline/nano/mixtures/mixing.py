"""Banks of rendered clips, kept in the media cache, and mixtures drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast, get_args

import numpy as np

from pipeline.nano.mixtures import effects, music, voices
from pipeline.nano.mixtures.compilations import TRACKS, training_track
from pipeline.nano.mixtures.signals import RATE, Split, equalise, fit, low_pass, rms, room
from pipeline.nano.packages import cache_folder
from pipeline.storage import Store, digest

VERSION = 1
"""Raised when the rendering changes, so that no stale cache is read."""

Kind = Literal["music", "speech", "singing", "effects"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COUNTS: dict[Split, dict[Kind, int]] = {
    "train": {"music": 240, "speech": 600, "singing": 400, "effects": 1000},
    "test": {"music": 32, "speech": 32, "singing": 24, "effects": 24},
}
SECONDS: dict[Kind, float] = {
    "music": music.SECONDS,
    "speech": voices.SECONDS,
    "singing": voices.SECONDS,
    "effects": effects.SECONDS,
}


def render(kind: Kind, rng: np.random.Generator, split: Split = "test") -> np.ndarray:
    """One clip of a kind, of the split's scores or voices: [N] at any level."""
    source: dict[Kind, Callable[[Split, np.random.Generator], np.ndarray]] = {
        "music": music.music,
        "speech": voices.speech,
        "singing": voices.singing,
        "effects": effects.effects,
    }
    return source[kind](split, rng)


@cache
def bank(split: Split, kind: Kind) -> np.ndarray:
    """All clips of a kind, rendered if they aren't in the cache: [N, samples] int16, peak-normalised."""
    plan = {"version": VERSION, "n": COUNTS[split][kind], "s": SECONDS[kind], "split": split, "kind": kind}
    store = Store(cache_folder() / "separator")
    name = f"{split}-{kind}-{digest(plan)[:8]}.npy"
    if not store.exists(name):
        length = round(SECONDS[kind] * RATE)
        clips = np.zeros((COUNTS[split][kind], length), np.int16)
        for i in range(len(clips)):
            rng = np.random.default_rng([split == "test", KINDS.index(kind), i])
            audio = fit(render(kind, rng, split), length)
            clips[i] = np.round(audio / (np.abs(audio).max() + 1e-9) * 32000)
        with store.write(name) as path, path.open("wb") as file:
            np.save(file, clips)
    with store.read(name) as path:
        return np.load(path, mmap_mode="r") if store.is_local else np.load(path)


@dataclass(frozen=True)
class Mixture:
    """One example: `other` (music and effects) and `vocals` [N] float32; their sum is the input."""

    other: np.ndarray
    vocals: np.ndarray

    @property
    def mix(self) -> np.ndarray:
        """The input [N]."""
        return self.other + self.vocals


FROM_TRACKS = 0.7  # of the music in training: the other kind of track in `compilations`
# What a training example is made of, and how often.
_CASES: tuple[tuple[str, float], ...] = (
    ("music", 0.13),
    ("music speech", 0.30),
    ("music singing", 0.14),
    ("music effects", 0.06),
    ("music speech effects", 0.07),
    ("speech", 0.08),
    ("singing", 0.05),
    ("speech effects", 0.05),
    ("effects", 0.10),
    ("", 0.02),
)


def training_mixture(rng: np.random.Generator, seconds: float) -> Mixture:
    """A random mixture of the training banks, as web audio may sound; voices at -20 to +12 dB, mostly near 0."""
    length = round(seconds * RATE)
    case = cast(list[Kind], str(rng.choice([c for c, _ in _CASES], p=[p for _, p in _CASES])).split())
    parts = {kind: _voice_or_rest(kind, rng, length) for kind in case}
    hiss = rng.standard_normal(length) * 10 ** rng.uniform(-5, -3.2)
    other = hiss + sum((parts[k] * 10 ** (rng.uniform(-12, 6) / 20) for k in ("effects",) if k in parts), 0.0)
    other = other + parts.get("music", 0.0)
    vocals = np.zeros(length)
    for kind in ("speech", "singing"):
        if kind in parts:
            over = 10 ** (rng.triangular(-20, 0, 12) / 20)
            vocals = parts[kind] * over * (rms(other) if len(case) > 1 else 1.0)
    if rng.random() < 0.4:  # coded audio is band-limited; both stems alike, so that the sum stays the input
        cut = rng.uniform(3500, 10500)
        other, vocals = low_pass(other, cut), low_pass(vocals, cut)
    scale = 0.1 / (rms(other + vocals) + 1e-4)
    return Mixture((other * scale).astype(np.float32), (vocals * scale).astype(np.float32))


def test_mixture(case: str, index: int, snr_db: float | None, seconds: float = 8.0) -> Mixture:
    """Held-out mixture number `index` of a case such as "music speech"; the voice stands `snr_db` over the rest."""
    length = round(seconds * RATE)
    rng = np.random.default_rng([99, index])
    other, vocals = np.zeros(length), np.zeros(length)
    for kind in case.split():
        clips = bank("test", cast(Kind, kind))
        clip = clips[index % len(clips)]
        start = rng.integers(0, len(clip) - length + 1)
        audio = clip[start : start + length] / 32768
        audio = audio / (rms(audio) + 1e-9)
        if kind in {"speech", "singing"}:
            vocals = vocals + audio
        else:
            other = other + audio
    if snr_db is not None:
        vocals = vocals * 10 ** (snr_db / 20)
    scale = 0.1 / (rms(other + vocals) + 1e-9)
    return Mixture((other * scale).astype(np.float32), (vocals * scale).astype(np.float32))


test_mixture.__test__ = False  # type: ignore[attr-defined]  # not a test, for pytest


def _voice_or_rest(kind: Kind, rng: np.random.Generator, length: int) -> np.ndarray:
    """A random excerpt of a bank at unit RMS; voices often begin or end inside it; some get a room or an equaliser."""
    if kind == "music" and rng.random() < FROM_TRACKS:
        clip = training_track(int(rng.integers(TRACKS)))
    else:
        clips = bank("train", kind)
        clip = clips[rng.integers(len(clips))] / 32768
    start = rng.integers(0, len(clip) - length + 1)
    audio = clip[start : start + length]
    if rng.random() < 0.4:
        audio = equalise(audio, rng)
    if rng.random() < (0.5 if kind in {"speech", "singing"} else 0.2):
        audio = room(audio, rng)
    audio = audio / (rms(audio) + 1e-3)
    if kind in {"speech", "singing"} and rng.random() < 0.5:
        edge = int(rng.integers(length // 8, length))
        ramp = np.clip((np.arange(length) - edge) / (0.03 * RATE), 0, 1)
        audio = audio * (ramp if rng.random() < 0.5 else 1 - ramp)
    return audio
