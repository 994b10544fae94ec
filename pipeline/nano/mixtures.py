"""Training and held-out material of the nano separator: music, voices and effects, rendered once, and mixtures of them.

Everything is made here from packages that pip brings: scores of music21's corpus through a free soundfont, speech of
eSpeak NG, singing made from that speech by a source-filter vocoder, and synthesised effects. Train and test share
neither a score nor a voice. Rendered clips lie as int16 arrays in the media cache, 22,050 Hz mono.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from scipy import signal

from pipeline.nano.packages import cache_folder, fetch
from pipeline.storage import Store, digest

RATE = 22050
VERSION = 1
"""Raised when the rendering changes, so that no stale cache is read."""

Split = Literal["train", "test"]
Kind = Literal["music", "speech", "singing", "effects"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COUNTS: dict[Split, dict[Kind, int]] = {
    "train": {"music": 240, "speech": 200, "singing": 140, "effects": 160},
    "test": {"music": 32, "speech": 32, "singing": 24, "effects": 24},
}
SECONDS: dict[Kind, float] = {"music": 24.0, "speech": 12.0, "singing": 12.0, "effects": 10.0}

# Folders of music21's corpus whose works are in the public domain.
SCORES = (
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

_LANGUAGES: dict[Split, tuple[str, ...]] = {
    "train": (
        *("en-us", "en", "de", "fr", "es", "it", "pt-br", "nl", "sv", "cs", "hu", "ro", "id", "sw", "lt", "hr"),
        *("ca", "la", "eo", "da", "sq", "mt", "vi"),
    ),
    "test": ("en-us", "en-gb-scotland", "pl", "tr", "fi", "es-419", "fr-be"),
}
_VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("m1", "m2", "m3", "m5", "m6", "m8", "f1", "f2", "f3", "f5", "klatt", "klatt3", "klatt5", "Alex", "Andy"),
        *("Annie", "Denis", "Diogo", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Michael", "adam", "anika", "antonio"),
        *("aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "gustave"),
        *("ian", "john", "linda", "max", "michel", "miguel", "norbert", "pablo", "paul", "quincy", "rob", "robert"),
        *("sandro", "shelby", "steph", "travis", "victor", "zac", "whisper"),
    ),
    "test": ("m4", "m7", "f4", "klatt2", "klatt4", "Alicia", "Andrea", "Mario", "Mike", "iven", "marcelo", "steph2"),
}


def render(kind: Kind, rng: np.random.Generator, split: Split = "test") -> np.ndarray:
    """One clip of a kind, of the split's scores or voices: [N] at any level."""
    source: dict[Kind, Callable[[Split, np.random.Generator], np.ndarray]] = {
        "music": _music,
        "speech": _speech,
        "singing": _singing,
        "effects": _effects,
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
            audio = _fit(render(kind, rng, split), length)
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


# What a training example is made of, and how often.
_CASES: tuple[tuple[str, float], ...] = (
    ("music", 0.15),
    ("music speech", 0.28),
    ("music singing", 0.12),
    ("music effects", 0.06),
    ("music speech effects", 0.08),
    ("speech", 0.11),
    ("singing", 0.07),
    ("speech effects", 0.05),
    ("effects", 0.06),
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
            vocals = parts[kind] * over * (_rms(other) if len(case) > 1 else 1.0)
    if rng.random() < 0.4:  # coded audio is band-limited; both stems alike, so that the sum stays the input
        cut = rng.uniform(3500, 10500)
        other, vocals = _low_pass(other, cut), _low_pass(vocals, cut)
    scale = 0.1 / (_rms(other + vocals) + 1e-4)
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
        audio = audio / (_rms(audio) + 1e-9)
        if kind in {"speech", "singing"}:
            vocals = vocals + audio
        else:
            other = other + audio
    if snr_db is not None:
        vocals = vocals * 10 ** (snr_db / 20)
    scale = 0.1 / (_rms(other + vocals) + 1e-9)
    return Mixture((other * scale).astype(np.float32), (vocals * scale).astype(np.float32))


test_mixture.__test__ = False  # type: ignore[attr-defined]  # not a test, for pytest


def _voice_or_rest(kind: Kind, rng: np.random.Generator, length: int) -> np.ndarray:
    """A random excerpt of a bank at unit RMS; voices often begin or end inside it; some get a room or an equaliser."""
    clips = bank("train", kind)
    clip = clips[rng.integers(len(clips))]
    start = rng.integers(0, len(clip) - length + 1)
    audio = clip[start : start + length] / 32768
    if rng.random() < 0.4:
        audio = _equalise(audio, rng)
    if rng.random() < (0.5 if kind in {"speech", "singing"} else 0.2):
        audio = _room(audio, rng)
    audio = audio / (_rms(audio) + 1e-3)
    if kind in {"speech", "singing"} and rng.random() < 0.5:
        edge = int(rng.integers(length // 8, length))
        ramp = np.clip((np.arange(length) - edge) / (0.03 * RATE), 0, 1)
        audio = audio * (ramp if rng.random() < 0.5 else 1 - ramp)
    return audio


# Music: scores and their arrangement


@dataclass(frozen=True)
class _Note:
    onset: float  # quarter notes
    length: float
    pitch: int
    part: int


@cache
def _score_paths(split: Split) -> tuple[Path, ...]:
    """Scores of one split; a work belongs to `test` by its folder and file name, one in ten."""
    import music21

    root = Path(music21.__file__).parent / "corpus"
    paths = [sorted(root.glob(pattern)) for pattern in SCORES]
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


def _music(split: Split, rng: np.random.Generator) -> np.ndarray:
    """An excerpt of a score with random instruments, tempo and key; tunes get chords and bass, many get drums."""
    paths = _score_paths(split)
    notes: tuple[_Note, ...] = ()
    while len(notes) < 16:
        notes = _score(paths[rng.integers(len(paths))])
    beat_s = 60 / rng.uniform(60, 170)
    seconds = SECONDS["music"]
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
        audio = np.tanh(audio / (_rms(audio) + 1e-9) * rng.uniform(0.3, 1.5))
    return _room(audio, rng) if rng.random() < 0.5 else audio


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
        program = int(rng.integers(32, 40)) if channel == 10 else int(rng.choice(PROGRAMS))
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


# Voices


@cache
def _espeak() -> tuple[ctypes.CDLL, list[np.ndarray], object]:
    """The library, the list its callback fills, and the callback (which must outlive the calls)."""
    root = fetch("espeak") / "espeakng_loader"
    library = ctypes.CDLL(str(root / "libespeak-ng.so"))
    if library.espeak_Initialize(2, 0, str(root).encode(), 0) != RATE:  # 2 = AUDIO_OUTPUT_SYNCHRONOUS
        raise RuntimeError("eSpeak NG did not start")
    chunks: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: object) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    return library, chunks, collect


def say(text: str, voice: str, *, rate: int = 160, pitch: int = 50, pitch_range: int = 50) -> np.ndarray:
    """Speech of eSpeak NG: [N] float32 at 22,050 Hz.

    Args:
        text: what is said, UTF-8.
        voice: a language, with a variant after a plus sign: "de+f2".
        rate: words per minute.
        pitch: 0 to 99.
        pitch_range: 0 (monotone) to 99.
    """
    library, chunks, _ = _espeak()
    chunks.clear()
    if library.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"eSpeak NG has no voice {voice!r}")
    for parameter, value in ((1, rate), (3, pitch), (4, pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    data = text.encode()
    library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 1, 0, 1, None, None)  # 1 = characters are UTF-8
    return np.concatenate([np.zeros(1, np.int16), *chunks]).astype(np.float32) / 32768


_ONSETS = (*"bdfghklmnprstvwz", "st", "tr", "pl", "sh", "ch")
_VOWELS = (*"aeiou", "ai", "ou")
_CODAS = tuple("nsrltm")


def _words(count: int, rng: np.random.Generator) -> str:
    """Invented words of open and closed syllables, in sentences: every language reads them by its own rules."""
    out = []
    for _ in range(count):
        syllables = ""
        for _ in range(int(rng.integers(1, 4))):
            syllables += rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if rng.random() < 0.4 else "")
        out.append(syllables + rng.choice(["", "", "", "", ",", ".", "?"]))
    return " ".join(out) + "."


@cache
def recordings(split: Split) -> tuple[np.ndarray, ...]:
    """Real voices: [N] float32 at `RATE`. Three speakers to train on, another recording held out."""
    import soundfile

    packages = ("sonnet", "numbers") if split == "train" else ("conversation",)
    out = []
    for path in sorted(p for name in packages for p in fetch(name).rglob("*.wav")):
        audio, rate = soundfile.read(path, dtype="float32")
        out.append(signal.resample_poly(audio, RATE, rate).astype(np.float32))
    return tuple(out)


def _recorded(split: Split, rng: np.random.Generator) -> np.ndarray:
    """Part of a recording, for training up to a sixth faster or slower: pitch and formants become another speaker's."""
    source = recordings(split)
    audio = source[rng.choice(len(source), p=[len(a) / sum(map(len, source)) for a in source])]
    length = min(len(audio), round(16 * RATE))
    start = rng.integers(0, len(audio) - length + 1)
    ratio = int(rng.integers(84, 119)) if split == "train" else 100
    return signal.resample_poly(audio[start : start + length], 100, ratio)


def _speech(split: Split, rng: np.random.Generator) -> np.ndarray:
    """Twelve seconds of one voice; now and then a second one answers. Every third clip is a recording."""
    if rng.random() < 0.35:
        audio = _recorded(split, rng)
        return _vocode(audio, _contour(len(audio), rng), 1.0, rng) if rng.random() < 0.2 else audio
    pieces = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        voice = f"{rng.choice(_LANGUAGES[split])}+{rng.choice(_VARIANTS[split])}"
        rate, pitch, span = int(rng.integers(120, 230)), int(rng.integers(15, 90)), int(rng.integers(20, 95))
        pieces.append(say(_words(14, rng), voice, rate=rate, pitch=pitch, pitch_range=span))
    audio = np.concatenate(pieces)
    while len(audio) < SECONDS["speech"] * RATE:
        voice = f"{rng.choice(_LANGUAGES[split])}+{rng.choice(_VARIANTS[split])}"
        audio = np.concatenate([audio, say(_words(14, rng), voice, pitch=int(rng.integers(15, 90)))])
    if rng.random() < 0.35:  # the same words through the vocoder: another kind of voice, with a natural f0 contour
        audio = _vocode(audio, _contour(len(audio), rng), 1.0, rng)
    return audio


def _singing(split: Split, rng: np.random.Generator) -> np.ndarray:
    """Speech with its vowels drawn out and its pitch on a melody with glides and vibrato; sometimes two or three."""
    length = round(SECONDS["singing"] * RATE)
    total = np.zeros(length)
    melody = None
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        voice = f"{rng.choice(_LANGUAGES[split])}+{rng.choice(_VARIANTS[split])}"
        stretch = rng.uniform(1.3, 3.0)
        if rng.random() < 0.35:
            audio = _recorded(split, rng)
        else:
            audio = say(_words(16, rng), voice, rate=int(rng.integers(130, 200)), pitch=50, pitch_range=20)
        audio = _fit(audio, round(length / 1.2))
        if melody is None:
            melody = _melody(length * 4, rng)
        total += _fit(_vocode(audio, melody * 2 ** (rng.normal(0, 0.006)), stretch, rng), length)
    return total


def _melody(length: int, rng: np.random.Generator) -> np.ndarray:
    """Fundamental frequency of a sung line, Hz per sample: a walk on a scale, glides of 60 ms, vibrato of 5-6.5 Hz."""
    scale = np.array([0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.5 else [0, 2, 3, 5, 7, 8, 10])
    low = rng.uniform(90, 330)
    steps: list[tuple[int, int]] = []
    note = int(rng.integers(0, 8))
    while sum(n for n, _ in steps) < length:
        note = int(np.clip(note + rng.integers(-3, 4), 0, 12))
        seconds = rng.choice([0.2, 0.3, 0.4, 0.6, 0.9, 1.4])
        steps.append((round(seconds * RATE), 12 * (note // 7) + int(scale[note % 7])))
    semitones = np.concatenate([np.full(n, s, float) for n, s in steps])[:length]
    kernel = np.hanning(round(0.06 * RATE))
    semitones = signal.oaconvolve(np.pad(semitones, len(kernel), mode="edge"), kernel / kernel.sum(), "same")[
        len(kernel) : len(kernel) + length
    ]
    vibrato = rng.uniform(0, 0.6) * np.sin(2 * np.pi * rng.uniform(5, 6.5) * np.arange(length) / RATE)
    return low * 2 ** ((semitones + vibrato) / 12)


def _contour(length: int, rng: np.random.Generator) -> np.ndarray:
    """A speaking fundamental, Hz per sample: slow random falls and rises with a little jitter."""
    knots = np.cumsum(rng.normal(0, 0.12, length // 4000 + 2))
    knots -= signal.lfilter([0.1], [1, -0.9], knots)
    log2 = np.interp(np.arange(length), np.arange(len(knots)) * 4000, knots)
    jitter = signal.lfilter([0.02], [1, -0.98], rng.normal(0, 0.03, length))
    return rng.uniform(85, 260) * 2 ** (log2 + jitter)


def _vocode(audio: np.ndarray, f0: np.ndarray, stretch: float, rng: np.random.Generator) -> np.ndarray:
    """Source-filter resynthesis: the cepstrally smoothed envelope of `audio` on pulses of `f0` and on noise.

    Voiced frames (most energy under 2 kHz) are held `stretch` times as long; the others keep their length.
    """
    n, hop = 1024, 256
    _, _, spectrum = signal.stft(audio, nperseg=n, noverlap=n - hop)
    log = np.log(np.abs(spectrum) + 1e-5)
    cepstrum = np.fft.irfft(log, axis=0)
    cepstrum[int(RATE / 480) : -int(RATE / 480) + 1] = 0
    envelope = np.exp(np.fft.rfft(cepstrum, axis=0).real)
    power = np.abs(spectrum) ** 2
    low = power[: int(2000 / RATE * n)].sum(0) / (power.sum(0) + 1e-9)
    voiced = np.clip((signal.medfilt(low, 5) - 0.5) * 4, 0, 1)
    index = np.interp(
        np.arange(0, np.sum(1 + (stretch - 1) * voiced)), np.cumsum(1 + (stretch - 1) * voiced), np.arange(len(voiced))
    ).round().astype(int)
    envelope, voiced = envelope[:, index], voiced[index]
    length = min(len(f0), (len(index) - 1) * hop)
    phase = 2 * np.pi * np.cumsum(f0[:length]) / RATE + 1e-4
    harmonics = int(RATE / 2 / f0[:length].max())
    pulses = np.sin((harmonics + 0.5) * phase) / (2 * np.sin(phase / 2) + 1e-9)  # Dirichlet kernel: sum of cosines
    pulses = np.clip(pulses, -harmonics - 1, harmonics + 1) / np.sqrt(harmonics)
    noise = rng.standard_normal(length)
    breath = rng.uniform(0.02, 0.2)
    _, _, source = signal.stft(pulses, nperseg=n, noverlap=n - hop)
    _, _, air = signal.stft(noise, nperseg=n, noverlap=n - hop)
    frames = min(source.shape[1], envelope.shape[1])
    v = voiced[:frames]
    shaped = (source[:, :frames] * v + air[:, :frames] * (1 - v + breath * v)) * envelope[:, :frames]
    return signal.istft(shaped, nperseg=n, noverlap=n - hop)[1][:-n]  # without the last window, which ends in a click


# Effects


def _effects(_split: Split, rng: np.random.Generator) -> np.ndarray:
    """Ten seconds of made-up sounds of the world: ambience, and impacts, steps, sweeps, chirps, beeps and engines."""
    length = round(SECONDS["effects"] * RATE)
    out = _ambience(length, rng) * rng.choice([0.0, 0.05, 0.3, 1.0])
    for _ in range(int(rng.integers(2, 14))):
        sound = _SOUNDS[rng.integers(len(_SOUNDS))](rng)
        for start in _repeats(length, rng):
            piece = sound[: length - start]
            out[start : start + len(piece)] += piece * rng.uniform(0.2, 1)
    return out


def _repeats(length: int, rng: np.random.Generator) -> Iterable[int]:
    start, period = int(rng.integers(0, length)), int(rng.uniform(0.15, 1.2) * RATE)
    for i in range(int(rng.choice([1, 1, 2, 6]))):
        if start + i * period < length:
            yield start + i * period


def _ambience(length: int, rng: np.random.Generator) -> np.ndarray:
    """Wind, rain or rumble: noise of a random colour under a slow swell."""
    colour = rng.uniform(0, 2)
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum /= (np.arange(len(spectrum)) / 40 + 1) ** (colour / 2 + 0.1)
    swell = np.interp(np.arange(length), np.linspace(0, length, 12), rng.uniform(0.2, 1, 12))
    noise = np.fft.irfft(spectrum, length) * swell
    return noise / (np.abs(noise).max() + 1e-9)


def _decay(length: int, seconds: float) -> np.ndarray:
    return np.exp(-np.arange(length) / (seconds * RATE))


def _impact(rng: np.random.Generator) -> np.ndarray:
    length = round(rng.uniform(0.1, 1.5) * RATE)
    t = np.arange(length) / RATE
    modes = sum(np.sin(2 * np.pi * f * t) * _decay(length, rng.uniform(0.02, 0.3)) for f in rng.uniform(50, 4000, 5))
    return modes / 5 + rng.standard_normal(length) * _decay(length, rng.uniform(0.005, 0.08))


def _step(rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(round(0.12 * RATE)) * _decay(round(0.12 * RATE), rng.uniform(0.01, 0.04))
    return _low_pass(noise, rng.uniform(400, 5000))


def _sweep(rng: np.random.Generator) -> np.ndarray:
    """A whoosh: noise through a moving band, or a gliding tone."""
    length = round(rng.uniform(0.3, 2) * RATE)
    first, last = rng.uniform(80, 6000, 2)
    f = np.geomspace(first, last, length)
    tone = np.sin(2 * np.pi * np.cumsum(f) / RATE)
    if rng.random() < 0.6:
        tone = tone * signal.lfilter([0.05], [1, -0.95], rng.standard_normal(length)) * 4
    return tone * np.hanning(length)


def _chirp(rng: np.random.Generator) -> np.ndarray:
    """A bird's or an insect's call: fast frequency modulation between 1.5 and 8 kHz."""
    length = round(rng.uniform(0.05, 0.4) * RATE)
    t = np.arange(length) / RATE
    centre, width = rng.uniform(1500, 6000), rng.uniform(200, 2000)
    f = centre + width * np.sin(2 * np.pi * rng.uniform(3, 40) * t + rng.uniform(0, 6))
    return np.sin(2 * np.pi * np.cumsum(f) / RATE) * np.hanning(length)


def _beep(rng: np.random.Generator) -> np.ndarray:
    length = round(rng.uniform(0.05, 0.6) * RATE)
    wave = np.sin(2 * np.pi * rng.uniform(200, 3000) * np.arange(length) / RATE)
    return (np.sign(wave) * 0.5 if rng.random() < 0.3 else wave) * signal.windows.tukey(length, 0.1)


def _engine(rng: np.random.Generator) -> np.ndarray:
    length = round(rng.uniform(1, 5) * RATE)
    f = rng.uniform(25, 120) * 2 ** np.interp(np.arange(length), np.linspace(0, length, 5), rng.uniform(-0.5, 0.5, 5))
    wave = signal.sawtooth(2 * np.pi * np.cumsum(f) / RATE) * (1 + 0.5 * rng.standard_normal(length))
    return _low_pass(wave, rng.uniform(300, 3000)) * signal.windows.tukey(length, 0.3)


_SOUNDS = (_impact, _step, _step, _sweep, _sweep, _chirp, _chirp, _beep, _engine)


# Signal helpers


def _rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))


def _fit(audio: np.ndarray, length: int) -> np.ndarray:
    return np.pad(audio[:length], (0, max(0, length - len(audio))))


def _low_pass(audio: np.ndarray, hz: float) -> np.ndarray:
    return signal.sosfilt(signal.butter(6, hz, fs=RATE, output="sos"), audio)


def _equalise(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A smooth random response, about +-6 dB, in the frequency domain."""
    spectrum = np.fft.rfft(audio)
    gains = np.interp(np.linspace(0, 1, len(spectrum)) ** 0.5, np.linspace(0, 1, 8), rng.normal(0, 5, 8))
    return np.fft.irfft(spectrum * 10 ** (gains / 20), len(audio))


def _room(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Decaying noise as an impulse response under the direct sound."""
    tail = rng.uniform(0.08, 0.6)
    length = round(tail * 3 * RATE)
    response = rng.standard_normal(length) * _decay(length, tail / 2) * rng.uniform(0.01, 0.06)
    response[0] = 1
    return signal.oaconvolve(audio, response)[: len(audio)]
