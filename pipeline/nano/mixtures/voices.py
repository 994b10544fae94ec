"""Voices: speech of eSpeak NG and of a few recordings, and singing made from it by a source-filter vocoder."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
from scipy import signal

from pipeline.nano.mixtures.signals import RATE, Split, fit
from pipeline.nano.packages import fetch

SECONDS = 12.0
LANGUAGES: dict[Split, tuple[str, ...]] = {
    "train": (
        *("en-us", "en", "de", "fr", "es", "it", "pt-br", "nl", "sv", "cs", "hu", "ro", "id", "sw", "lt", "hr"),
        *("ca", "la", "eo", "da", "sq", "mt", "vi"),
    ),
    "test": ("en-us", "en-gb-scotland", "pl", "tr", "fi", "es-419", "fr-be"),
}
VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("m1", "m2", "m3", "m5", "m6", "m8", "f1", "f2", "f3", "f5", "klatt", "klatt3", "klatt5", "Alex", "Andy"),
        *("Annie", "Denis", "Diogo", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Michael", "adam", "anika", "antonio"),
        *("aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "gustave"),
        *("ian", "john", "linda", "max", "michel", "miguel", "norbert", "pablo", "paul", "quincy", "rob", "robert"),
        *("sandro", "shelby", "steph", "travis", "victor", "zac", "whisper"),
    ),
    "test": ("m4", "m7", "f4", "klatt2", "klatt4", "Alicia", "Andrea", "Mario", "Mike", "iven", "marcelo", "steph2"),
}


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

    The library keeps state from call to call: the same words differ in their noise and phase, equal only where a
    process makes the same calls in the same order.

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


def speech(split: Split, rng: np.random.Generator) -> np.ndarray:
    """Twelve seconds of one voice; now and then a second one answers. Every third clip is a recording."""
    if rng.random() < 0.35:
        audio = _recorded(split, rng)
        return vocode(audio, _contour(len(audio), rng), 1.0, rng) if rng.random() < 0.2 else audio
    pieces = []
    for _ in range(1 if rng.random() < 0.8 else 2):
        voice = f"{rng.choice(LANGUAGES[split])}+{rng.choice(VARIANTS[split])}"
        rate, pitch, span = int(rng.integers(120, 230)), int(rng.integers(15, 90)), int(rng.integers(20, 95))
        pieces.append(say(_words(14, rng), voice, rate=rate, pitch=pitch, pitch_range=span))
    audio = np.concatenate(pieces)
    while len(audio) < SECONDS * RATE:
        voice = f"{rng.choice(LANGUAGES[split])}+{rng.choice(VARIANTS[split])}"
        audio = np.concatenate([audio, say(_words(14, rng), voice, pitch=int(rng.integers(15, 90)))])
    if rng.random() < 0.35:  # the same words through the vocoder: another kind of voice, with a natural f0 contour
        audio = vocode(audio, _contour(len(audio), rng), 1.0, rng)
    return audio


def singing(split: Split, rng: np.random.Generator) -> np.ndarray:
    """Speech with its vowels drawn out and its pitch on a melody with glides and vibrato; sometimes two or three."""
    length = round(SECONDS * RATE)
    total = np.zeros(length)
    melody = None
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        voice = f"{rng.choice(LANGUAGES[split])}+{rng.choice(VARIANTS[split])}"
        stretch = rng.uniform(1.3, 3.0)
        if rng.random() < 0.35:
            audio = _recorded(split, rng)
        else:
            audio = say(_words(16, rng), voice, rate=int(rng.integers(130, 200)), pitch=50, pitch_range=20)
        audio = fit(audio, round(length / 1.2))
        if melody is None:
            melody = _melody(length * 4, rng)
        total += fit(vocode(audio, melody * 2 ** (rng.normal(0, 0.006)), stretch, rng), length)
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


def vocode(audio: np.ndarray, f0: np.ndarray, stretch: float, rng: np.random.Generator) -> np.ndarray:
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
    index = (
        np.interp(
            np.arange(0, np.sum(1 + (stretch - 1) * voiced)),
            np.cumsum(1 + (stretch - 1) * voiced),
            np.arange(len(voiced)),
        )
        .round()
        .astype(int)
    )
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
