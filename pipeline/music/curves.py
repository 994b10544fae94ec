"""The curves of one source: 1 Hz measurements and the onset envelope, with their file format."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

FLOOR_DB = -100.0  # the level of digital silence
CEPSTRA, CHROMA = 13, 12  # coefficients of the timbre, pitch classes
COLOUR_HZ = 2  # rows of timbre and chroma per second
_STEM = "stem_db/"  # prefix of the stems' names in the file


def decibels(power: np.ndarray) -> np.ndarray:
    """Mean square to dBFS, not under `FLOOR_DB`; 0 dBFS is a mean square of 1."""
    return 10.0 * np.log10(np.maximum(power, 10.0 ** (FLOOR_DB / 10.0)))


@dataclass(frozen=True, eq=False)
class Curves:
    """Measurements of [start_ms, end_ms) of a source; second i begins i seconds after start_ms, the last may be short.

    All arrays are float32 where nothing else is said; n = ceil of the section's length in seconds.

    Attributes:
        start_ms: where the section begins in the source.
        end_ms: where it ends.
        mix_db: [n] RMS level of the mix, dBFS.
        stem_db: stem name -> [n] RMS level of the separated stem, dBFS.
        voice_ratio: [n] share of the vocals stem in the energy of the sum of all stems; 0 in seconds that are silent.
        silence: [n] share of the second's 50 ms frames that are under the silence level.
        music: [n] the detector's mean probability that there is music.
        speech: [n] the same for speech.
        singing: [n] the same for singing.
        speech_left: [n] the same for speech in the voice-free music: voices that the separation has missed.
        onset: [n] mean onset strength of the voice-free music.
        onset_envelope: [m] its onset strength; frame k lies k * onset_hop / onset_rate seconds after start_ms.
        timbre: [2 n, 13] its mel cepstrum (orthonormal DCT of the mean dB levels), twice a second.
        chroma: [2 n, 12] the share of each pitch class in its spectrum, C first, twice a second; 0 in silence.
        gaps_ms: [g, 2] int32, silences of `gap_s` and more: beginning and end in the source, to 50 ms.
        separated: [n] bool, whether the second was separated; where not, what is said of stems is that of silence.

    The last four are empty where nobody has measured them; then there are no gaps, and all was separated.
    """

    start_ms: int
    end_ms: int
    mix_db: np.ndarray
    stem_db: dict[str, np.ndarray]
    voice_ratio: np.ndarray
    silence: np.ndarray
    music: np.ndarray
    speech: np.ndarray
    singing: np.ndarray
    speech_left: np.ndarray
    onset: np.ndarray
    onset_envelope: np.ndarray
    timbre: np.ndarray = field(default_factory=lambda: np.zeros((0, CEPSTRA), np.float32))
    chroma: np.ndarray = field(default_factory=lambda: np.zeros((0, CHROMA), np.float32))
    gaps_ms: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    separated: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.mix_db)

    @property
    def separated_ms(self) -> int:
        """How much of the section was separated."""
        if not len(self.separated):
            return self.end_ms - self.start_ms
        short_ms = 1000 * len(self) - (self.end_ms - self.start_ms)  # of the last second
        return 1000 * int(self.separated.sum()) - short_ms * bool(self.separated[-1])

    def window(self, start_ms: int, end_ms: int) -> slice:
        """The seconds that [start_ms, end_ms) of the source touches."""
        first = max(0, start_ms - self.start_ms) // 1000
        last = max(0, -((self.start_ms - end_ms) // 1000))
        return slice(first, min(last, len(self)))

    def voice_share(self, seconds: slice | np.ndarray) -> float:
        """Share of the voices in the energy of some seconds: mean of `voice_ratio`, loud ones count for more."""
        energy = 10.0 ** (self.mix_db[seconds].astype(np.float64) / 10.0)
        return float(energy @ self.voice_ratio[seconds] / energy.sum()) if energy.any() else 0.0

    def to_file(self, path: str | Path) -> None:
        """Writes an .npz archive (no pickle) whose bytes depend on nothing but the curves."""
        arrays = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self) if f.name != "stem_db"}
        arrays |= {_STEM + name: levels for name, levels in self.stem_db.items()}
        with Path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def from_file(cls, path: str | Path) -> Curves:
        """Reads what `to_file` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            arrays = {n: archive[n] for n in archive.files if not n.startswith(_STEM)}
            stems = {n.removeprefix(_STEM): archive[n] for n in archive.files if n.startswith(_STEM)}
        start_ms, end_ms = int(arrays.pop("start_ms")), int(arrays.pop("end_ms"))
        return cls(start_ms, end_ms, stem_db=stems, **arrays)
