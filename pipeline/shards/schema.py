"""The shard row, schema version 1 (DESIGN.md, section 4), and what a row must satisfy to be one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.clips import clip_id, samples

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test")
GROUP_ROWS = 32  # rows per row group: about 2 MB at 30 s, small enough for shuffling and for the Hub's viewer
TIME = -1  # the place of the time axis in `Blob.shape`

_times = pa.list_(pa.field("element", pa.float32(), nullable=False))
COLUMNS: dict[str, pa.DataType] = {
    "clip_id": pa.string(),
    "source_id": pa.string(),
    "group_id": pa.string(),
    "split": pa.string(),
    "category": pa.string(),
    "url": pa.string(),
    "title": pa.string(),
    "channel": pa.string(),
    "license": pa.string(),
    "start_s": pa.float64(),
    "end_s": pa.float64(),
    "seconds": pa.float64(),
    "shot_times_s": _times,
    "beat_times_s": _times,
    "tempo_bpm": pa.float32(),
    "lufs": pa.float32(),
    "voice_ratio": pa.float32(),
    "music_score": pa.float32(),
    "av_offset_ms": pa.float32(),
    "verdict": pa.string(),
    "reviewed": pa.bool_(),
    "clip_global": pa.binary(),
    "patch_distance": pa.binary(),
    "patch_distance_flat": pa.binary(),
    "cls_distance": pa.binary(),
    "codes": pa.binary(),
    "text": pa.string(),
}
NULLABLE = ("text",)
LISTS = tuple(n for n, t in COLUMNS.items() if pa.types.is_list(t))
BLOBS = tuple(n for n, t in COLUMNS.items() if pa.types.is_binary(t))
_FLOATS = tuple(n for n, t in COLUMNS.items() if pa.types.is_floating(t))
_KINDS: dict[str, tuple[type, ...]] = {
    n: (str,) if pa.types.is_string(t) else (bool, np.bool_) if pa.types.is_boolean(t) else (int, float, np.floating)
    for n, t in COLUMNS.items()
    if n not in LISTS + BLOBS + NULLABLE
}


@dataclass(frozen=True, eq=False)
class Row:
    """One clip. T1, T25, T50 are `clips.samples` of its span at the rates of the `Spec`: 1, 25 and 50 Hz.

    Attributes:
        clip_id: `{source_id}-{start_ms:08d}-{end_ms:08d}`.
        group_id: near-duplicates share it; no group is in two splits.
        split: one of `SPLITS`; empty until a release decides on it.
        start_s: start of the clip in its source, end_s its end, seconds the difference.
        shot_times_s: shot boundaries from the clip's start, ascending, float32.
        beat_times_s: beats from the clip's start, ascending, float32.
        lufs: integrated loudness of the voice-free music before it was normalised.
        voice_ratio: share of voice in the energy of the sound, 0..1.
        av_offset_ms: how much later the audio stream starts than the video stream.
        reviewed: whether a person has confirmed the verdict.
        clip_global: [T1, D] float16, CLIP's [CLS] token before projection; sample i is the frame at i s.
        patch_distance: [T25] float16, mean over patches of 1 - cosine to the frame before.
        patch_distance_flat: [T25] float16, the same of all patches as one vector.
        cls_distance: [T25] float16, the same of the [CLS] token.
        codes: [K, T50] int16, EnCodec tokens in [0, cardinality).
        text: caption, if there is one.
    """

    clip_id: str
    source_id: str
    group_id: str
    split: str
    category: str
    url: str
    title: str
    channel: str
    license: str
    start_s: float
    end_s: float
    seconds: float
    shot_times_s: Sequence[float] | np.ndarray
    beat_times_s: Sequence[float] | np.ndarray
    tempo_bpm: float
    lufs: float
    voice_ratio: float
    music_score: float
    av_offset_ms: float
    verdict: str
    reviewed: bool
    clip_global: np.ndarray
    patch_distance: np.ndarray
    patch_distance_flat: np.ndarray
    cls_distance: np.ndarray
    codes: np.ndarray
    text: str | None = None


@dataclass(frozen=True)
class Blob:
    """How the bytes of an array column are to be read: `np.frombuffer(cell, dtype).reshape(shape)`.

    Attributes:
        dtype: numpy's name, little-endian.
        shape: with -1 where time runs.
        rate_hz: samples per second along time.
        cardinality: integers lie in [0, cardinality); None for floats.
    """

    dtype: str
    shape: tuple[int, ...]
    rate_hz: int
    cardinality: int | None = None

    @property
    def step_bytes(self) -> int:
        """Bytes per step of time."""
        return np.dtype(self.dtype).itemsize * math.prod(n for n in self.shape if n != TIME)

    def shape_of(self, start_ms: int, end_ms: int) -> tuple[int, ...]:
        """The shape for a clip of that span."""
        steps = samples(start_ms, end_ms, self.rate_hz)
        return tuple(steps if n == TIME else n for n in self.shape)


@dataclass(frozen=True)
class Model:
    """A model by name and by the SHA-256 of its weights.

    Attributes:
        id: begins with `random:` or `bundled:` where the weights are no more than that.
        licence: of the weights.
    """

    id: str
    digest: str
    licence: str = "not stated"


@dataclass(frozen=True)
class Spec:
    """What is the same for all rows of a shard: widths, rates, models, settings. Lies in the schema's metadata.

    Attributes:
        vision_dim: D, width of a global token.
        codebooks: K, codebooks of the codec; cardinality: entries in each.
        settings: digest of the profile (`Profile.digest()`).
        global_hz: rate of the global tokens, curve_hz of the distance curves, code_hz of the codec's frames.
    """

    vision_dim: int
    codebooks: int
    cardinality: int
    vision: Model
    codec: Model
    separator: Model
    settings: str
    global_hz: int = 1
    curve_hz: int = 25
    code_hz: int = 50

    @cached_property
    def blobs(self) -> dict[str, Blob]:
        """The array columns."""
        curve = Blob("<f2", (TIME,), self.curve_hz)
        return {
            "clip_global": Blob("<f2", (TIME, self.vision_dim), self.global_hz),
            "patch_distance": curve,
            "patch_distance_flat": curve,
            "cls_distance": curve,
            "codes": Blob("<i2", (self.codebooks, TIME), self.code_hz, self.cardinality),
        }

    @property
    def models(self) -> dict[str, Model]:
        """The models by room."""
        return {"vision": self.vision, "codec": self.codec, "separator": self.separator}

    def to_metadata(self) -> dict[str, str]:
        """For a Parquet schema: JSON under keys that begin with `dvmset.`."""
        columns: dict[str, dict[str, Any]] = {}
        for name, blob in self.blobs.items():
            shape = [f"T{blob.rate_hz}" if n == TIME else n for n in blob.shape]
            columns[name] = {"dtype": blob.dtype, "shape": shape, "rate_hz": blob.rate_hz}
            if blob.cardinality is not None:
                columns[name]["cardinality"] = blob.cardinality
        values = {
            "schema_version": SCHEMA_VERSION,
            "columns": columns,
            "models": {room: vars(model) for room, model in self.models.items()},
            "settings": self.settings,
        }
        return {f"dvmset.{key}": json.dumps(value, sort_keys=True) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes]) -> Spec:
        """The inverse of `to_metadata`; KeyError, TypeError or ValueError if it isn't of that form."""
        columns = json.loads(metadata[b"dvmset.columns"])
        models = {room: Model(**model) for room, model in json.loads(metadata[b"dvmset.models"]).items()}
        codes, tokens = columns["codes"], columns["clip_global"]
        spec = cls(
            vision_dim=int(tokens["shape"][1]),
            codebooks=int(codes["shape"][0]),
            cardinality=int(codes["cardinality"]),
            **models,
            settings=str(json.loads(metadata[b"dvmset.settings"])),
            global_hz=int(tokens["rate_hz"]),
            curve_hz=int(columns["patch_distance"]["rate_hz"]),
            code_hz=int(codes["rate_hz"]),
        )
        if json.loads(spec.to_metadata()["dvmset.columns"]) != columns:
            raise ValueError("the array columns are described differently than version 1 has them")
        return spec


def arrow_schema(spec: Spec) -> pa.Schema:
    """The Parquet schema of a shard, with the spec as its metadata."""
    fields = [pa.field(name, kind, nullable=name in NULLABLE) for name, kind in COLUMNS.items()]
    return pa.schema(fields, metadata=spec.to_metadata())


def row_problems(row: Mapping[str, Any], spec: Spec) -> Iterator[tuple[str, str]]:
    """What is wrong with a row, as (column, why): types, times, shapes against seconds, finite floats, code range."""
    wrong = [name for name, kinds in _KINDS.items() if not isinstance(row[name], kinds)]
    if wrong:
        yield from ((name, f"holds {row[name]!r}, which is not {COLUMNS[name]}") for name in wrong)
        return
    infinite = [name for name in _FLOATS if not math.isfinite(row[name])]
    yield from ((name, f"is {row[name]}, not a finite number") for name in infinite)
    if row["split"] not in SPLITS:
        yield "split", f"is {row['split']!r}, not one of {', '.join(SPLITS)}"
    if {"start_s", "end_s", "seconds"} & set(infinite):
        return
    start_ms, end_ms = round(row["start_s"] * 1000), round(row["end_s"] * 1000)
    if not 0 <= start_ms < end_ms:
        yield "end_s", f"the clip runs from {row['start_s']} to {row['end_s']} s"
        return
    if round(row["seconds"] * 1000) != end_ms - start_ms:
        yield "seconds", f"is {row['seconds']}, but the clip runs from {row['start_s']} to {row['end_s']} s"
    expected = clip_id(row["source_id"], start_ms, end_ms)
    if row["clip_id"] != expected:
        yield "clip_id", f"is {row['clip_id']!r}; source and times make it {expected!r}"
    for name in LISTS:
        times = np.asarray(row[name], np.float32)
        # NaN fails every comparison, so it is caught here too; 1 ms of slack for the rounding to float32
        if times.ndim != 1 or not ((times >= 0).all() and (times <= row["seconds"] + 1e-3).all()):
            yield name, "holds a time outside the clip"
        elif (times[1:] < times[:-1]).any():
            yield name, "is not in ascending order"
    for name, blob in spec.blobs.items():
        yield from ((name, why) for why in _array_problems(row[name], blob, blob.shape_of(start_ms, end_ms)))


def _array_problems(array: np.ndarray, blob: Blob, shape: tuple[int, ...]) -> Iterator[str]:
    if array.dtype != blob.dtype:
        yield f"is {array.dtype}, not {np.dtype(blob.dtype)}"
    elif array.shape != shape:
        yield f"has shape {list(array.shape)}; a clip of that length has {list(shape)}"
    elif not array.size:
        return
    elif blob.cardinality is None:
        # binary16 is infinite or NaN if all five exponent bits are set (IEEE 754); eight times as fast as np.isfinite
        if (array.view(np.uint16) & 0x7C00).max() == 0x7C00:
            yield f"holds {np.count_nonzero(~np.isfinite(array))} values that are not finite"
    elif array.view(np.uint16).max() >= blob.cardinality:
        yield f"holds codes outside 0..{blob.cardinality - 1}: from {array.min()} to {array.max()}"
