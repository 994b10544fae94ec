"""A made-up release and tiny training jobs on it, for the tests of loader and trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.settings import load_preset
from model.train import Job
from pipeline.config import Profile, ReleaseSettings
from pipeline.release import make_release
from pipeline.shards import Row, Spec
from pipeline.storage import Store
from tests.rows import SPEC, Made, make_row

PROFILE = Profile(
    name="test",
    release=ReleaseSettings(validation_share=0.2, test_share=0.1, buckets={"train": 3, "validation": 1, "test": 1}),
)
NANO = dataclasses.replace(SPEC, vision_dim=192, cardinality=2048)  # what preset nano reads
SETTINGS = (
    "train.batch=4", "train.crop_s=2", "train.steps=6", "train.lr=0.003", "train.warmup=2", "train.log_every=1",
    "train.eval_every=3", "train.save_every=2", "train.accelerator=cpu", "train.devices=1",
)  # fmt: skip


def release_of(data: Path, rows: Sequence[Row], spec: Spec = NANO) -> Path:
    """A release of the given rows; which split a source goes to is drawn from its name."""
    made = make_release(
        Store(data),
        Made(rows),
        spec=dataclasses.replace(spec, settings=PROFILE.digest()),
        profile=PROFILE,
        funnel={"fetched": 1.0, "kept": 1.0, "dropped": {}},
        provenance={"command": "made up"},
    )
    return Path(made.path)


def toy_release(
    data: Path, *, sources: int = 12, spec: Spec = NANO, spans: tuple[tuple[int, int], ...] = ((0, 3000), (5000, 6500))
) -> Path:
    """A clip of each source for each of the spans, in milliseconds."""
    return release_of(data, [make_row(f"source {i}", *span, spec=spec) for i in range(sources) for span in spans], spec)


def toy_job(release: Path, out: Path, *settings: str, stage: int = 1, ablation: str = "", **arguments: Any) -> Job:
    """A job of a few steps at toy size."""
    preset = load_preset("nano", (*SETTINGS, *settings), ablation=ablation)
    return Job(release, preset, stage, out, command="test", **arguments)
