"""The files a source leaves behind, named by source or clip and by key: the digest of all they were made from.

A stage whose file is there under its present key has nothing to do; one whose inputs, settings, weights or version
changed looks for another name, and is stale.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import Profile
from pipeline.ledger import ClipRow, MediaRow, SourceRow
from pipeline.process.decide import section
from pipeline.storage import Store, digest

if TYPE_CHECKING:
    from pipeline.music import Curves

# Raised when what a stage writes changes for the same inputs and settings.
VERSIONS = {"fetch": 1, "shots": 1, "fingerprint": 1, "music": 4, "decide": 3, "vision": 1, "codes": 1}
STEM_RATE = 32_000  # Hz: the rate of MusicGen's codec


class Artefacts:
    """Names, reads and writes the artefacts of a data folder under one profile.

    Args:
        store: the data folder.
        profile: settings.
    """

    def __init__(self, store: Store, profile: Profile) -> None:
        self.store = store
        self.profile = profile

    @cached_property
    def weights(self) -> dict[str, str]:
        """Digest of the weights of each model, by room; known without loading one."""
        from pipeline import codec, separate, vision

        return {
            "separate": separate.weights_digest(self.profile.separate),
            "vision": vision.weights_digest(self.profile.vision),
            "codec": codec.weights_digest(self.profile.codec),
        }

    @cached_property
    def done_key(self) -> str:
        """Names everything but the source that its clips are made from; a source finished under it is up to date."""
        settings = {n: v for n, v in self.profile.key().items() if n != "release"}
        return digest([VERSIONS, settings, self.weights])[:16]

    def media_key(self, source: SourceRow) -> str:
        """Key of what would be fetched for a source."""
        return digest([VERSIONS["fetch"], source.key, self.profile.fetch.key()])[:16]

    def media(self, source: SourceRow) -> str:
        """Name of the fetched file."""
        return f"media/{source.source_id}.mp4"

    def shots(self, media: MediaRow) -> str:
        """Name of the shot boundaries."""
        key = digest([VERSIONS["shots"], media.sha256, self.profile.shots.key()])
        return f"shots/{media.source_id}-{key[:16]}.json"

    def fingerprint(self, kind: str, source: SourceRow, media: MediaRow) -> str:
        """Name of the codes by which near-duplicates are found: of all of the picture, of the section's sound."""
        span = section(source, media.duration_ms) if kind == "sound" else ()
        key = digest([VERSIONS["fingerprint"], kind, media.sha256, span])
        return f"fingerprints/{source.source_id}-{kind}-{key[:16]}.npz"

    def curves(self, source: SourceRow, media: MediaRow) -> str:
        """Name of the per-second curves."""
        return f"curves/{source.source_id}-{self._music_key(source, media)[:16]}.npz"

    def stem(self, source: SourceRow, media: MediaRow) -> str:
        """Name of the voice-free music; kept only while the media is."""
        return f"stems/{source.source_id}-{self._music_key(source, media)[:16]}.flac"

    def vision(self, media: MediaRow, clip: ClipRow) -> str:
        """Name of a clip's visual features."""
        key = digest([VERSIONS["vision"], media.sha256, self.profile.vision.key(), self.weights["vision"]])
        return f"vision/{clip.clip_id}-{key[:16]}.safetensors"

    def codes(self, source: SourceRow, media: MediaRow, clip: ClipRow) -> str:
        """Name of a clip's codec tokens."""
        music = self._music_key(source, media)
        key = digest([VERSIONS["codes"], music, self.profile.codec.key(), self.weights["codec"]])
        return f"codes/{clip.clip_id}-{key[:16]}.safetensors"

    def write_cuts(self, media: MediaRow, cuts_s: tuple[float, ...]) -> None:
        """Stores the shot boundaries, seconds."""
        self.store.write_text(self.shots(media), json.dumps({"cuts_s": cuts_s}))

    def read_cuts(self, media: MediaRow) -> tuple[float, ...]:
        """The shot boundaries, seconds."""
        return tuple(json.loads(self.store.read_text(self.shots(media)))["cuts_s"])

    def read_curves(self, source: SourceRow, media: MediaRow) -> Curves:
        """The per-second curves."""
        from pipeline.music import Curves

        with self.store.read(self.curves(source, media)) as path:
            return Curves.from_file(path)

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray], **said: str | float) -> None:
        """Stores a clip's arrays as safetensors, with a few words and numbers in its header."""
        from safetensors.numpy import save_file

        with self.store.write(name) as path:
            save_file(
                {k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, {k: str(v) for k, v in said.items()}
            )

    def read_arrays(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """The arrays and the words that `write_arrays` stored."""
        from safetensors import safe_open

        with self.store.read(name) as path, safe_open(path, "numpy") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118

    def _music_key(self, source: SourceRow, media: MediaRow) -> str:
        settings = [self.profile.separate.key(), self.weights["separate"], self.profile.music.key(), STEM_RATE]
        return digest([VERSIONS["music"], media.sha256, section(source, media.duration_ms), *settings])
