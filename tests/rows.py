"""Shard rows made of random numbers, for tests and benchmarks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.clips import clip_id, samples
from pipeline.release import Entry
from pipeline.shards import Model, Row, Spec

SPEC = Spec(
    vision_dim=16,
    codebooks=4,
    cardinality=64,
    vision=Model("random:nano (seed 0)", "a" * 64, "Apache-2.0"),
    codec=Model("random:nano (seed 0)", "b" * 64, "Apache-2.0"),
    separator=Model("bundled:separator", "c" * 64, "Apache-2.0"),
    settings="0" * 64,
)


def make_row(source: str, start_ms: int = 0, end_ms: int = 10_000, *, spec: Spec = SPEC, **columns: Any) -> Row:
    """A valid row of a source named in words; the same arguments give the same row."""
    source_id = hashlib.sha256(source.encode()).hexdigest()[:16]
    clip = clip_id(source_id, start_ms, end_ms)
    draw = np.random.default_rng(int(hashlib.sha256(clip.encode()).hexdigest()[:16], 16))
    seconds = (end_ms - start_ms) / 1000

    def curve() -> np.ndarray:
        return draw.random(samples(start_ms, end_ms, spec.curve_hz), np.float32).astype(np.float16)

    values: dict[str, Any] = {
        "clip_id": clip,
        "source_id": source_id,
        "group_id": hashlib.sha256(f"group of {source}".encode()).hexdigest()[:16],
        "split": "train",
        "category": "promo",
        "url": f"https://example.org/{source}",
        "title": f"Title of {source}",
        "channel": "",
        "license": "CC BY 3.0",
        "start_s": start_ms / 1000,
        "end_s": end_ms / 1000,
        "seconds": seconds,
        "shot_times_s": np.sort(draw.random(7, np.float32)) * np.float32(seconds),
        "beat_times_s": np.arange(0, seconds, 0.5, np.float32),
        "tempo_bpm": 120.0,
        "lufs": -17.5,
        "voice_ratio": 0.0625,
        "music_score": 0.75,
        "av_offset_ms": 0.0,
        "verdict": "keep",
        "reviewed": False,
        "clip_global": draw.standard_normal(
            (samples(start_ms, end_ms, spec.global_hz), spec.vision_dim), np.float32
        ).astype(np.float16),
        "patch_distance": curve(),
        "patch_distance_flat": curve(),
        "cls_distance": curve(),
        "codes": draw.integers(
            0, spec.cardinality, (spec.codebooks, samples(start_ms, end_ms, spec.code_hz)), np.int16
        ),
        "text": None,
    }
    return Row(**(values | columns))


class Made:
    """Rows as the entries of a release."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.made = rows

    def __iter__(self) -> Iterator[Entry]:
        for row in self.made:
            columns = {
                k: v.tobytes().hex() if hasattr(v, "tobytes") else v for k, v in vars(row).items() if k != "split"
            }
            key = hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()
            yield Entry(row.clip_id, row.group_id, key)

    def rows(self, clips: Iterable[tuple[str, str]]) -> Iterator[Row]:
        """The rows, as `make_release` asks for them."""
        by_id = {row.clip_id: row for row in self.made}
        return (dataclasses.replace(by_id[clip_id], split="") for clip_id, _ in clips)

    def sources(self) -> Iterator[dict[str, Any]]:
        """Their sources by id alone."""
        return ({"source_id": source_id} for source_id in sorted({row.source_id for row in self.made}))


def assert_same_row(got: Mapping[str, Any], expected: Row) -> None:
    """Every column of `expected`, value for value; numbers as they are after rounding to the column's type."""
    assert list(got) == list(vars(expected))
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray | list | tuple):
            kept = np.asarray(value, got[name].dtype)
            assert got[name].shape == kept.shape, name
            assert got[name].tobytes() == kept.tobytes(), name
        elif name in ("tempo_bpm", "lufs", "voice_ratio", "music_score", "av_offset_ms"):
            assert got[name] == np.float32(value), name
        else:
            assert got[name] == value, name
