"""Compilations: tracks of which it is known when one becomes the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pipeline.nano.mixtures import music as scores
from pipeline.nano.mixtures.signals import RATE, Split, rms, room
from pipeline.nano.packages import cache_folder
from pipeline.storage import Store

TRACKS = 600  # that are kept for training
Join = Literal["cut", "fade", "gap"]
JOINS: tuple[Join, ...] = get_args(Join)


@dataclass(frozen=True)
class Compilation:
    """Tracks one after the other: [N] float32 at `RATE`, and when one becomes the next, seconds; a gap has a width."""

    audio: np.ndarray
    joins: tuple[tuple[float, float], ...]


def compilations(split: Split, count: int) -> Iterator[Compilation]:
    """Six tracks each, joined in every way by turns."""
    for number in range(count):
        rng = np.random.default_rng([11, split == "test", number])
        yield joined((track(split, rng) for _ in range(6)), ["fade", "gap", "cut", "fade", "gap"], rng)


def joined(tracks: Iterable[np.ndarray], kinds: Sequence[Join], rng: np.random.Generator) -> Compilation:
    """Tracks joined by hard cuts, cross-fades of 1 to 3 s, or silences of 0.6 to 2 s."""
    pieces = iter(tracks)
    audio, joins = next(pieces), []
    for kind, following in zip(kinds, pieces, strict=True):
        at = len(audio)
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
    return Compilation(audio.astype(np.float32), tuple(joins))


def training_track(number: int) -> np.ndarray:
    """Track n of `TRACKS`, rendered if it isn't in the media cache."""
    store, name = Store(cache_folder() / "tracks"), f"train-{number}.npy"
    if not store.exists(name):
        audio = track("train", np.random.default_rng([77, False, number]))
        with store.write(name) as path, path.open("wb") as file:
            np.save(file, np.clip(audio * 32768, -32768, 32767).astype(np.int16))
    with store.read(name) as path:
        return np.load(path) / 32768.0


def track(split: Split, rng: np.random.Generator) -> np.ndarray:
    """30 to 75 s: a score from somewhere on, round again if it is short, on one set of instruments, at -20 dBFS."""
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
