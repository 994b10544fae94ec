"""Music without voices: scores of music21's corpus, arranged at random and played through a free soundfont."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from pipeline.nano.mixtures.signals import RATE, Split, rms, room
from pipeline.nano.packages import cache_folder, fetch
from pipeline.storage import Store, digest

SECONDS = 24.0
# Folders of music21's corpus whose works are in the public domain.
_SCORES = (
    "bach/*.mxl",
    "ryansMammoth/*.abc",
    "palestrina/*.krn",
    "monteverdi/*.mxl",
    "beethoven/**/*.mxl",
    "mozart/**/*.mxl",
    "oneills1850/*.abc",
)
# General MIDI programs without voices: 52 choir aahs, 53 voice oohs, 54 synth voice, 85 voice lead, 91 choir pad.
PROGRAMS = [p for p in range(112) if p not in {52, 53, 54, 85, 91}]


@cache
def score_paths(split: Split) -> tuple[Path, ...]:
    """Scores of one split; a work belongs to `test` by its folder and file name, one in ten."""
    import music21

    root = Path(music21.__file__).parent / "corpus"
    paths = [sorted(root.glob(pattern)) for pattern in _SCORES]
    chosen = [p for group in paths for p in group[:: max(1, len(group) // 60)]]
    held_out = {p: int(digest(p.relative_to(root).as_posix())[:8], 16) % 10 == 0 for p in chosen}
    return tuple(p for p in chosen if held_out[p] == (split == "test"))


@cache
def score(path: Path) -> np.ndarray:
    """Notes of a score: [M, 4] float64 of onset and length in quarter notes, MIDI pitch, part. Kept once parsed."""
    store = Store(cache_folder() / "scores")
    name = f"{digest([version('music21'), *path.parts[-2:]])[:16]}.npy"
    if not store.exists(name):
        notes = _parse(path)
        with store.write(name) as temporary, temporary.open("wb") as file:
            np.save(file, notes)
    with store.read(name) as local:
        return np.load(local)


def _parse(path: Path) -> np.ndarray:
    import music21

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score: Any = music21.converter.parse(path, forceSource=True, storePickle=False)
    if isinstance(score, music21.stream.Opus):  # several tunes in one file
        score = score.scores[0]
    notes = [
        (float(n.getOffsetInHierarchy(score)), float(n.quarterLength), p.midi, i)
        for i, part in enumerate(score.parts)
        for n in part.recurse().notes
        for p in n.pitches
        if n.quarterLength > 0
    ]
    return np.array(notes, float).reshape(-1, 4)


def draw_score(split: Split, rng: np.random.Generator) -> Path:
    """A random score of the split with at least 16 notes."""
    paths = score_paths(split)
    while len(score(path := paths[rng.integers(len(paths))])) < 16:
        pass
    return path


Event = tuple[float, float, int, int]
"""Onset and length in quarter notes, channel (9: drums), MIDI pitch."""


def excerpt(notes: np.ndarray, beats: float, rng: np.random.Generator) -> list[Event]:
    """Notes from a random bar on, in a random key; each of up to eight parts is a channel, and in its own octave."""
    start = rng.uniform(0, max(0.0, float(notes[:, :2].sum(1).max()) - beats * 0.9))
    start -= start % 4
    shift = int(rng.integers(-6, 7))
    played = notes[(notes[:, 0] >= start) & (notes[:, 0] < start + beats)]
    parts = sorted(set(played[:, 3]))[:8]
    octave = {p: int(rng.choice([0, 0, 0, 12, -12])) for p in parts}
    return [
        (onset - start, length, parts.index(part), int(pitch) + shift + octave[part])
        for onset, length, pitch, part in played.tolist()
        if part in octave
    ]


def music(split: Split, rng: np.random.Generator) -> np.ndarray:
    """An excerpt of a score with random instruments, tempo and key; tunes get chords and bass, many get drums."""
    notes = score(draw_score(split, rng))
    beat_s = 60 / rng.uniform(60, 170)
    beats = SECONDS / beat_s
    events = excerpt(notes, beats, rng)
    if len({channel for _, _, channel, _ in events}) < 3 or rng.random() < 0.2:
        events += accompaniment(events, beats, rng)
    beaten = drums(beats, rng) if rng.random() < 0.5 else []
    audio = _perform([*events, *beaten], beat_s, rng)
    if rng.random() < 0.15:
        audio = np.tanh(audio / (rms(audio) + 1e-9) * rng.uniform(0.3, 1.5))
    return room(audio, rng) if rng.random() < 0.5 else audio


def accompaniment(events: list[Event], beats: float, rng: np.random.Generator) -> list[Event]:
    """Bar by bar the triad that holds most of the tune's pitch classes, as a pad or arpeggio (8) with a bass (10)."""
    out: list[Event] = []
    figure = rng.integers(3)
    for bar in np.arange(0, beats, 4.0):
        heard = [e for e in events if bar <= e[0] < bar + 4]
        if not heard:
            continue
        root, third = triad(heard)
        chord = [48 + root, 48 + root + third, 55 + root]
        if figure == 0:
            out += [(bar, 4.0, 8, p) for p in chord]
        elif figure == 1:
            out += [(bar + i / 2, 0.5, 8, chord[i % 3] + 12 * (i % 4 == 3)) for i in range(8)]
        else:
            out += [(bar + i, 0.6, 8, p) for i in (1, 3) for p in chord]
        stride = int(rng.choice([1, 2]))
        out += [(bar + i, 1.0, 10, 36 + root + (7 if i == 2 else 0)) for i in range(0, 4, stride)]
    return out


def triad(events: Iterable[Event]) -> tuple[int, int]:
    """The triad that holds most of the notes' time: its root (0: C) and its third, 3 or 4 semitones."""
    weight = np.zeros(12)
    for _, length, _, pitch in events:
        weight[pitch % 12] += length
    fits = {
        (root, third): 1.2 * weight[root] + weight[(root + third) % 12] + weight[(root + 7) % 12]
        for root in range(12)
        for third in (3, 4)
    }
    return max(fits, key=lambda chord: fits[chord])


def drums(beats: float, rng: np.random.Generator) -> list[Event]:
    """A one-bar pattern of sixteenths, repeated: kick, snare, hats, and a crash now and then."""
    kick, snare, hat = rng.random((3, 16))
    out: list[Event] = []
    for step in np.arange(0, beats, 0.25):
        i = int(step * 4) % 16
        if i == 0 or kick[i] < 0.18:
            out.append((step, 0.2, 9, 36))
        if i % 8 == 4 or snare[i] < 0.07:
            out.append((step, 0.2, 9, 38))
        if hat[i] < 0.5:
            out.append((step, 0.1, 9, 42 if hat[i] < 0.42 else 46))
        if i == 0 and rng.random() < 0.1:
            out.append((step, 1.0, 9, 49))
    return out


def _perform(events: list[Event], beat_s: float, rng: np.random.Generator) -> np.ndarray:
    """Plays events on random instruments, some with vibrato, not quite in time; mono at `RATE`."""
    level, vibrato = rng.integers(60, 120, 16), np.where(rng.random(16) < 0.3, rng.uniform(100, 700, 16), 0)
    programs = [int(rng.integers(32, 40)) if c == 10 else int(rng.choice(PROGRAMS)) for c in range(16)]
    strokes: list[Stroke] = []
    for onset, length, channel, pitch in events:
        if 0 <= pitch < 128:
            swing = rng.normal(0, 0.006)
            velocity = int(np.clip(level[channel] + rng.normal(0, 10), 20, 127))
            strokes.append((onset * beat_s + swing, length * beat_s * 0.95, channel, pitch, velocity))
    return signal.resample_poly(play(strokes, programs, SECONDS, 2 * RATE, vibrato), 1, 2)


Stroke = tuple[float, float, int, int, int]
"""Onset and length in seconds, channel (9: drums), MIDI pitch, velocity."""


def play(
    strokes: Iterable[Stroke], programs: Sequence[int], seconds: float, rate: int, vibrato: np.ndarray | None = None
) -> np.ndarray:
    """Renders notes through the soundfont in steps of 10 ms: [seconds * rate] float32, mono.

    Args:
        strokes: the notes, in any order.
        programs: the General MIDI program of each of 16 channels; channel 9 has the drum kit of that number.
        seconds: whole hundredths.
        rate: Hz.
        vibrato: its depth for each channel, in steps of pitch bend (8192 are two semitones).
    """
    import tinysoundfont

    synth = tinysoundfont.Synth(samplerate=rate, gain=-6)
    synth.sfload(str(fetch("soundfont") / "TimGM6mb.sf2"))
    for channel, program in enumerate(programs):
        synth.program_change(channel, 0 if channel == 9 else program, channel == 9)
    queue: list[tuple[int, int, int, int]] = []
    for onset, length, channel, pitch, velocity in strokes:
        first = max(0, round(onset * 100))
        queue.append((first, velocity, channel, pitch))
        queue.append((first + max(2, round(length * 100)), 0, channel, pitch))
    queue.sort()
    depths = [] if vibrato is None else [(int(c), vibrato[c]) for c in np.flatnonzero(vibrato)]
    blocks, at = [], 0
    for tick in range(round(seconds * 100)):
        while at < len(queue) and queue[at][0] <= tick:
            _, velocity, channel, pitch = queue[at]
            if velocity:
                synth.noteon(channel, pitch, velocity)
            else:
                synth.noteoff(channel, pitch)
            at += 1
        for channel, depth in depths:
            synth.pitchbend(channel, round(8192 + depth * np.sin(2 * np.pi * (5 + channel / 10) * tick / 100)))
        blocks.append(np.frombuffer(synth.generate(rate // 100), np.float32).reshape(-1, 2).mean(1))
    return np.concatenate(blocks)
