"""The benchmark set: videos with known cuts, each with two pieces of music, one that follows the cuts and one that
ignores them. In both, accents are as many and as irregular; only where they stand differs.

A follower puts an accent on most cuts, passes over some, and has a few accents where nothing is cut. The music that
ignores the picture has its accents at the cuts of another video. Training differs from validation and test by footage
and by scores. The two releases that the trainer reads differ in nothing but codes and what belongs to them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model.nano.study.videos import Footage, apart, composed, draw_cuts, footage
from model.settings import Reduction
from pipeline.clips import clip_id
from pipeline.codec import Codec, load_codec, normalise
from pipeline.codec import weights_digest as codec_digest
from pipeline.config import Profile, Split
from pipeline.nano.songs import RATE, Song, song
from pipeline.release.manifest import Tally, make_manifest
from pipeline.shards import Model, Row, Spec, write_shard
from pipeline.shards.validator import MANIFEST, release_digest, release_id
from pipeline.storage import Store, digest, file_digest
from pipeline.vision import FPS, load_vision
from pipeline.vision import weights_digest as vision_digest

VERSION = 2  # raised when videos or songs are made otherwise, so that nothing stale is read
PART = 16  # clips that are made at a time
FOLLOWED = 0.85  # share of cuts with an accent
STRAY = 0.1  # accents per second where nothing is cut
LICENCE = "CC BY 3.0, (c) 2008 Blender Foundation, www.bigbuckbunny.org; music rendered from public-domain scores"

Music = Literal["follows", "ignores"]
MUSIC: tuple[Music, ...] = ("follows", "ignores")
CURVES: tuple[Reduction, ...] = ("patch_distance", "patch_distance_flat", "cls_distance")
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Size:
    """How large the set is.

    Attributes:
        seconds: of a clip.
        clips: by split.
        train_s, test_s: stretches of the film that the footage is from, seconds.
    """

    seconds: int
    train: int
    validation: int
    test: int
    train_s: tuple[int, int]
    test_s: tuple[int, int]

    def clips(self, split: Split) -> int:
        """How many clips a split has."""
        return int(getattr(self, split))


@dataclass(frozen=True)
class Part:
    """Some clips of a split: what is made at a time.

    Attributes:
        first: number of its first clip within the split.
    """

    size: Size
    profile: Profile
    split: Split
    first: int

    @property
    def title(self) -> str:
        """For people."""
        return f"clips {self.split} {self.first} to {self.first + len(self) - 1}"

    @property
    def file(self) -> str:
        """Where it lies in the study's folder."""
        models = [vision_digest(self.profile.vision), codec_digest(self.profile.codec)]
        span = self.size.train_s if self.split == "train" else self.size.test_s
        settings = [self.profile.vision.key(), self.profile.codec.key()]
        key = digest([VERSION, self.split, self.first, len(self), self.size.seconds, span, models, settings])
        return f"clips/{self.split}-{self.first:04d}-{key[:12]}.npz"

    def __len__(self) -> int:
        return min(PART, self.size.clips(self.split) - self.first)

    def done(self, work: Store) -> bool:
        """Whether it lies in the study's folder."""
        return work.exists(self.file)

    def make(self, work: Store) -> None:
        """Makes its clips."""
        span = self.size.train_s if self.split == "train" else self.size.test_s
        shots = footage(work, span, load_vision(self.profile.vision).size)
        clips = [self._clip(shots, number) for number in range(self.first, self.first + len(self))]
        arrays: dict[str, Any] = {name: np.stack([arrays[name] for arrays, _ in clips]) for name in clips[0][0]}
        with work.write(self.file) as temporary, temporary.open("wb") as file:
            np.savez(file, facts=np.array(json.dumps([facts for _, facts in clips])), **arrays)

    def _clip(self, shots: Footage, number: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays of a clip, and what else is known of it."""
        size = self.size
        rng = np.random.default_rng([VERSION, _SPLITS.index(self.split), number])
        vision, codec = load_vision(self.profile.vision), load_codec(self.profile.codec)
        cuts = draw_cuts(rng, size.seconds)
        frames = composed(rng, shots, cuts, size.seconds * FPS, vision.size)
        arrays = dict(vars(vision.encode_frames(frames, neighbour=False)))
        facts: dict[str, Any] = {"cuts_s": [cut / FPS for cut in cuts]}
        for music in MUSIC:
            wanted = cuts if music == "follows" else draw_cuts(rng, size.seconds)
            scores: Literal["train", "test"] = "train" if self.split == "train" else "test"
            made = song(rng, scores, size.seconds, accents_s=_accents(rng, wanted, size.seconds), hushed=False)
            audio, loudness = normalise(
                made.audio, RATE, lufs=self.profile.codec.lufs, peak_db=self.profile.codec.peak_db
            )
            arrays[f"codes_{music}"] = codec.encode(audio)
            arrays[f"audio_{music}"] = (audio * 32767).astype(np.int16) if self.split == "test" else np.zeros(0)
            facts[music] = _facts(made, loudness.lufs)
        return arrays, facts


@dataclass(frozen=True)
class Clips:
    """The clips of a split.

    Attributes:
        arrays: by name, the first axis being the clips: features of `VisionFeatures`; codes_follows and codes_ignores,
            [n, K, T50] int16; audio_follows and audio_ignores, [n, N] int16 at 32 kHz in the test split.
        facts: of each: cuts_s, and for either music caption, tempo_bpm, lufs, accents_s.
    """

    arrays: dict[str, np.ndarray]
    facts: list[dict[str, Any]]


def parts(size: Size, profile: Profile) -> list[Part]:
    """All that the set is made of."""
    return [Part(size, profile, split, first) for split in _SPLITS for first in range(0, size.clips(split), PART)]


def read_clips(work: Store, size: Size, profile: Profile, split: Split) -> Clips:
    """The clips of a split, once their parts are made."""
    found = []
    for part in parts(size, profile):
        if part.split == split:
            with work.read(part.file) as path, np.load(path) as arrays:
                found.append(dict(arrays))
    facts = [fact for part in found for fact in json.loads(str(part.pop("facts")))]
    return Clips({name: np.concatenate([part[name] for part in found]) for name in found[0]}, facts)


def write_release(work: Store, size: Size, profile: Profile, music: Music) -> Path:
    """The release folder with one of the two kinds of music; made once, from parts that are there."""
    key = digest([part.file for part in parts(size, profile)])[:12]
    folder = f"releases/{music}-{key}"
    if work.exists(f"{folder}/{MANIFEST}"):
        return Path(work.path(folder))
    vision, codec = load_vision(profile.vision), load_codec(profile.codec)
    spec = _spec(profile, vision.dim, codec)
    entries = []
    for split in _SPLITS:
        rows = _rows(read_clips(work, size, profile, split), split, music, size.seconds)
        rows.sort(key=lambda row: row.clip_id)
        tally = Tally()
        for row in rows:
            tally.add(row)
        name = f"{split}-00000-of-00001.parquet"
        with work.write(f"{folder}/{name}") as path:
            write_shard(path, rows, spec)
            entry = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        entries.append({"name": name, "split": split, **tally.counts(), **entry, "key": key})
    seconds = sum(entry["seconds"] for entry in entries)
    manifest = make_manifest(
        release_id(release_digest((entry["sha256"] for entry in entries), spec.settings)),
        parent=None,
        shards=entries,
        spec=spec,
        settings={"profile": profile.name, "digest": spec.settings, "values": profile.model_dump(mode="json")},
        funnel={"fetched": seconds, "kept": seconds, "dropped": {}},
        provenance={"command": "python -m model.nano.rhythm_study"},
        diff=None,
    )
    work.write_text(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1) + "\n")
    return Path(work.path(folder))


def _accents(rng: np.random.Generator, cuts: tuple[int, ...], seconds: int) -> list[float]:
    """Seconds at which a follower of these cuts has its accents."""
    kept = [cut / FPS for cut in cuts if rng.random() < FOLLOWED]
    return sorted([*kept, *apart(rng, [cut / FPS for cut in cuts], STRAY, seconds)])


def _facts(made: Song, lufs: float) -> dict[str, Any]:
    return {"caption": made.caption, "tempo_bpm": made.tempo_bpm, "lufs": lufs, "accents_s": list(made.accents_s)}


def _spec(profile: Profile, width: int, codec: Codec) -> Spec:
    vision = load_vision(profile.vision)
    return Spec(
        vision_dim=width,
        codebooks=codec.codebooks,
        cardinality=codec.cardinality,
        vision=Model(vision.id, vision.digest, vision.licence),
        codec=Model(codec.id, codec.digest, codec.licence),
        separator=Model("none: rendered music has no voices", "0" * 64, "none"),
        settings=profile.digest(),
    )


def _rows(clips: Clips, split: Split, music: Music, seconds: int) -> list[Row]:
    rows = []
    for i, facts in enumerate(clips.facts):
        source = hashlib.sha256(f"rhythm study {split} {i}".encode()).hexdigest()[:16]
        heard = facts[music]
        rows.append(
            Row(
                clip_id=clip_id(source, 0, 1000 * seconds),
                source_id=source,
                group_id=source,
                split=split,
                category=music,
                url="",
                title=f"{split} {i}",
                channel="",
                license=LICENCE,
                start_s=0.0,
                end_s=float(seconds),
                seconds=float(seconds),
                shot_times_s=facts["cuts_s"],
                beat_times_s=np.arange(0, seconds, 60 / heard["tempo_bpm"]).tolist(),
                tempo_bpm=heard["tempo_bpm"],
                lufs=heard["lufs"],
                voice_ratio=0.0,
                music_score=1.0,
                av_offset_ms=0.0,
                verdict="keep",
                reviewed=False,
                codes=clips.arrays[f"codes_{music}"][i],
                text=heard["caption"],
                **{n: clips.arrays[n][i] for n in ("clip_global", *CURVES)},
            )
        )
    return rows
