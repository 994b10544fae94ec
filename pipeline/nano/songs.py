"""Songs with known tempo, caption and accents: what the nano codec, backbone and rhythm study hear.

A song is an excerpt of a public-domain score (`mixtures.music`) on random soft instruments. Accents are short strong
hits (crash, drums and a chord) laid over it at given or random times, which its beat does not foretell: where they
stand at the cuts of a video, only the video can tell when the next one comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.nano.mixtures import music
from pipeline.nano.mixtures.signals import Split

RATE = 32_000
GAP_S = 0.4
"""Random accents are at least this far apart."""

# General MIDI programs that leave room for accents, as captions name them.
_LEADS = {
    0: "piano",
    4: "electric piano",
    8: "celesta",
    10: "music box",
    11: "vibraphone",
    12: "marimba",
    16: "organ",
    21: "accordion",
    22: "harmonica",
    24: "guitar",
    27: "electric guitar",
    40: "violin",
    42: "cello",
    45: "plucked strings",
    46: "harp",
    48: "strings",
    56: "trumpet",
    60: "horn",
    68: "oboe",
    71: "clarinet",
    73: "flute",
    74: "recorder",
    75: "pan flute",
    80: "synthesizer",
    104: "sitar",
    105: "banjo",
    107: "koto",
}
_STABS = (0, 30, 48, 55, 61, 62)  # piano, distorted guitar, strings, orchestra hit, brass, synthetic brass
_KINDS = {"bach": "chorale", "palestrina": "hymn", "ryansMammoth": "fiddle tune", "oneills1850": "fiddle tune"}
_KEYS = ("C", "D flat", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
_HIT_S = 0.8


@dataclass(frozen=True)
class Song:
    """A rendered excerpt and what is known about it.

    Attributes:
        audio: [seconds * RATE] float32, mono, peak 0.9.
        caption: for instance "fast fiddle tune on accordion and harp with drums, C major, happy".
        tempo_bpm: quarter notes a minute.
        accents_s: times of the accents, seconds from the start, ascending.
    """

    audio: np.ndarray
    caption: str
    tempo_bpm: float
    accents_s: tuple[float, ...]


def song(
    rng: np.random.Generator,
    split: Split,
    seconds: int,
    *,
    accents_s: Sequence[float] | None = None,
    hushed: bool = True,
) -> Song:
    """A song that depends on `rng` and the split's scores alone; about 0.01 s of one core per second of music.

    Args:
        rng: drawn from for everything random.
        split: train and test share no score.
        seconds: its length.
        accents_s: where accents stand; None draws 0.15 to 1 a second at random in half of the songs, none in the rest.
        hushed: the music dips for 60 ms before each accent. It makes them clearer, but a decoder that has heard the dip
            knows that an accent follows, and needs no picture to tell it.
    """
    path = music.draw_score(split, rng)
    tempo = float(rng.uniform(60, 180))
    beat_s = 60 / tempo
    beats = seconds / beat_s
    events = [e for e in music.excerpt(_repeated(music.score(path), beats), beats, rng) if e[2] < 4]
    key = music.triad(events)
    if len({channel for _, _, channel, _ in events}) < 3:
        events += music.accompaniment(events, beats, rng)
    drummed = bool(rng.random() < 0.3)
    if drummed:
        events += [e for e in music.drums(beats, rng) if e[3] != 49]  # crashes are for accents
    drawn = _random_accents(rng, seconds)
    at = drawn if accents_s is None else tuple(sorted(accents_s))

    leads = [int(p) for p in rng.choice(list(_LEADS), 16)]
    programs = [int(rng.integers(32, 36)) if channel == 10 else leads[channel] for channel in range(16)]
    level = rng.integers(45, 85, 16)
    strokes: list[music.Stroke] = []
    for onset, length, channel, pitch in events:
        if 0 <= pitch < 128:
            velocity = int(np.clip(level[channel] + rng.normal(0, 8), 20, 100))
            strokes.append((onset * beat_s + rng.normal(0, 0.004), length * beat_s * 0.95, channel, pitch, velocity))
    audio = music.play(strokes, programs, seconds, RATE)
    audio = audio / (np.abs(audio).max() + 1e-9)
    hit = _hit(key, int(rng.choice(_STABS)))
    audio = _accented(audio, hit, at, rng.uniform(0.15, 0.3), rng, hushed=hushed)

    minor = key[1] == 3
    pace = ("slow", "moderate", "lively", "fast")[int(np.searchsorted([84, 112, 144], tempo))]
    mood = ("sad" if minor else "calm") if tempo < 112 else ("tense" if minor else "happy")
    channels = sorted({channel for _, _, channel, _ in events} - {9, 10})[:2]
    names = " and ".join(dict.fromkeys(_LEADS[leads[channel]] for channel in channels))
    extras = " with drums" * drummed + (" and accents" if drummed else " with accents") * bool(at)
    caption = f"{pace} {_kind(path)} on {names}{extras}, {_KEYS[key[0]]} {'minor' if minor else 'major'}, {mood}"
    return Song(audio.astype(np.float32), caption, tempo, at)


def _kind(path: Path) -> str:
    if "monteverdi" in path.parts:
        return "madrigal"
    return _KINDS.get(path.parts[-2], "classical piece")


def _repeated(notes: np.ndarray, beats: float) -> np.ndarray:
    """A score that is shorter than `beats` is played again, from the next whole bar."""
    period = 4 * math.ceil(float(notes[:, :2].sum(1).max()) / 4)
    return np.concatenate([notes + np.array([i * period, 0, 0, 0]) for i in range(math.ceil(beats / period))])


def _random_accents(rng: np.random.Generator, seconds: float) -> tuple[float, ...]:
    """In half of the songs a Poisson process with a dead time, 0.15 to 1 a second."""
    rate, present = rng.uniform(0.15, 1.0), rng.random() < 0.5
    gaps = GAP_S + rng.exponential(1 / rate - GAP_S, math.ceil(seconds / GAP_S))
    times = np.cumsum(gaps) - GAP_S
    return tuple(float(t) for t in times[times < seconds - 0.1]) if present else ()


def _hit(key: tuple[int, int], program: int) -> np.ndarray:
    """One accent: crash, bass drum and snare under a fortissimo chord of the key, faded out; peak 1."""
    root, third = key
    chord = [36 + root, 48 + root, 55 + root, 60 + root + third, 67 + root]
    strokes: list[music.Stroke] = [(0.0, 0.3, 0, pitch, 127) for pitch in chord]
    strokes += [(0.0, 1.0, 9, drum, 127) for drum in (36, 38, 49)]
    hit = music.play(strokes, [program] * 16, _HIT_S, RATE)
    return hit / np.abs(hit).max() * np.linspace(1, 0, len(hit))


def _accented(
    audio: np.ndarray, hit: np.ndarray, at: Sequence[float], level: float, rng: np.random.Generator, *, hushed: bool
) -> np.ndarray:
    """Lays hits over music brought to `level` of their peak; it dips under each, if `hushed` also before; peak 0.9."""
    if at:
        audio = audio * level
    length = len(audio)
    out = np.pad(audio, (0, len(hit)))
    dip = np.ones(length)
    for start in (round(t * RATE) for t in at):
        if hushed:
            dip[max(0, start - round(0.06 * RATE)) : start] = 0.1
        after = dip[start : start + round(0.15 * RATE)]
        after[:] = np.minimum(after, np.linspace(0.1, 1, len(after)))
    out[:length] *= dip
    for start in (round(t * RATE) for t in at):
        out[start : start + len(hit)] += hit * rng.uniform(0.8, 1.0)
    return out[:length] * (0.9 / (np.abs(out[:length]).max() + 1e-9))
