"""Music without voices: scores of music21's corpus, arranged at random and played through a free soundfont."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import signal

from pipeline.nano.mixtures.signals import RATE, Split, rms, room
from pipeline.nano.packages import fetch
from pipeline.storage import digest

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
_PROGRAMS = [p for p in range(112) if p not in {52, 53, 54, 85, 91}]


@dataclass(frozen=True)
class _Note:
    onset: float  # quarter notes
    length: float
    pitch: int
    part: int


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
def _score(path: Path) -> tuple[_Note, ...]:
    import music21

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score: Any = music21.converter.parse(path, forceSource=True, storePickle=False)
    if isinstance(score, music21.stream.Opus):  # several tunes in one file
        score = score.scores[0]
    return tuple(
        _Note(float(n.getOffsetInHierarchy(score)), float(n.quarterLength), p.midi, i)
        for i, part in enumerate(score.parts)
        for n in part.recurse().notes
        for p in n.pitches
        if n.quarterLength > 0
    )


def music(split: Split, rng: np.random.Generator) -> np.ndarray:
    """An excerpt of a score with random instruments, tempo and key; tunes get chords and bass, many get drums."""
    paths = score_paths(split)
    notes: tuple[_Note, ...] = ()
    while len(notes) < 16:
        notes = _score(paths[rng.integers(len(paths))])
    beat_s = 60 / rng.uniform(60, 170)
    seconds = SECONDS
    end = max(n.onset + n.length for n in notes)
    start = rng.uniform(0, max(0.0, end - seconds / beat_s * 0.9))
    start -= start % 4
    shift = int(rng.integers(-6, 7))
    played = [n for n in notes if start <= n.onset < start + seconds / beat_s]
    parts = sorted({n.part for n in played})[:8]
    voices = {p: i for i, p in enumerate(parts)}
    octave = {p: int(rng.choice([0, 0, 0, 12, -12])) for p in parts}
    events = [
        (n.onset - start, n.length, voices[n.part], n.pitch + shift + octave[n.part])
        for n in played
        if n.part in voices
    ]
    if len(parts) < 3 or rng.random() < 0.2:
        events += _accompaniment(events, seconds / beat_s, rng)
    drums = _drums(seconds / beat_s, rng) if rng.random() < 0.5 else []
    audio = _play(events, drums, beat_s, seconds, rng)
    if rng.random() < 0.15:
        audio = np.tanh(audio / (rms(audio) + 1e-9) * rng.uniform(0.3, 1.5))
    return room(audio, rng) if rng.random() < 0.5 else audio


_Event = tuple[float, float, int, int]  # onset and length in beats, channel, MIDI pitch


def _accompaniment(events: list[_Event], beats: float, rng: np.random.Generator) -> list[_Event]:
    """Bar by bar the triad that holds most of the tune's pitch classes, as a pad or arpeggio (8) with a bass (10)."""
    out: list[_Event] = []
    figure = rng.integers(3)
    for bar in np.arange(0, beats, 4.0):
        weight = np.zeros(12)
        for onset, length, _, pitch in events:
            if bar <= onset < bar + 4:
                weight[pitch % 12] += length
        if not weight.any():
            continue
        fits = {
            (root, third): 1.2 * weight[root] + weight[(root + third) % 12] + weight[(root + 7) % 12]
            for root in range(12)
            for third in (3, 4)
        }
        root, third = max(fits, key=lambda triad: fits[triad])
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


def _drums(beats: float, rng: np.random.Generator) -> list[_Event]:
    """A one-bar pattern of sixteenths, repeated: kick, snare, hats, and a crash now and then."""
    kick, snare, hat = rng.random((3, 16))
    out: list[_Event] = []
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


def _play(
    events: list[_Event], drums: list[_Event], beat_s: float, seconds: float, rng: np.random.Generator
) -> np.ndarray:
    """Renders events through the soundfont at 44.1 kHz, in blocks of 10 ms; mono at `RATE`."""
    import tinysoundfont

    synth = tinysoundfont.Synth(samplerate=2 * RATE, gain=-6)
    synth.sfload(str(fetch("soundfont") / "TimGM6mb.sf2"))
    level, vibrato = rng.integers(60, 120, 16), np.where(rng.random(16) < 0.3, rng.uniform(100, 700, 16), 0)
    for channel in range(16):
        program = int(rng.integers(32, 40)) if channel == 10 else int(rng.choice(_PROGRAMS))
        synth.program_change(channel, 0 if channel == 9 else program, channel == 9)
    queue: list[tuple[int, int, int, int]] = []
    for onset, length, channel, pitch in [*events, *drums]:
        if 0 <= pitch < 128:
            swing = rng.normal(0, 0.006)
            first = max(0, round((onset * beat_s + swing) * 100))
            velocity = int(np.clip(level[channel] + rng.normal(0, 10), 20, 127))
            queue.append((first, velocity, channel, pitch))
            queue.append((first + max(2, round(length * beat_s * 95)), 0, channel, pitch))
    queue.sort()
    blocks, at = [], 0
    for tick in range(round(seconds * 100)):
        while at < len(queue) and queue[at][0] <= tick:
            _, velocity, channel, pitch = queue[at]
            if velocity:
                synth.noteon(channel, pitch, velocity)
            else:
                synth.noteoff(channel, pitch)
            at += 1
        for bent in np.flatnonzero(vibrato):
            bend = vibrato[bent] * np.sin(2 * np.pi * (5 + bent / 10) * tick / 100)
            synth.pitchbend(int(bent), round(8192 + bend))
        blocks.append(np.frombuffer(synth.generate(2 * RATE // 100), np.float32).reshape(-1, 2).mean(1))
    return signal.resample_poly(np.concatenate(blocks), 1, 2)
