"""From the ledger and the artefacts to shard rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.ledger import ClipRow, Ledger, MediaRow, SourceRow
from pipeline.process.artefacts import Artefacts
from pipeline.storage import digest

if TYPE_CHECKING:
    from pipeline.release import Entry
    from pipeline.shards import Row, Spec


def entries(ledger: Ledger, files: Artefacts) -> Iterator[Entry]:
    """Every clip that is ready, for `release.make_release`; its arrays are read when they are asked for.

    Sources that brought the same media, or sections of one video, are one group.
    """
    from pipeline.release import Entry

    groups = {sha256: digest(key)[:16] for sha256, key in ledger.first_keys().items()}
    for source, media, clip in ledger.ready_clips():
        fields = _fields(source, media, clip, groups[media.sha256])
        yield Entry(
            clip_id=clip.clip_id,
            group_id=groups[media.sha256],
            content_key=digest([fields, clip.vision, clip.codes]),
            load=partial(_row, files, fields, clip),
        )


def spec_of(clip: ClipRow, files: Artefacts) -> Spec:
    """What all rows have in common, as the artefacts of one clip tell it: no model has to be loaded for it."""
    from pipeline import separate
    from pipeline.shards import Model, Spec

    features, vision = files.read_arrays(clip.vision)
    codes, codec = files.read_arrays(clip.codes)
    separator = files.profile.separate
    return Spec(
        vision_dim=features["clip_global"].shape[1],
        codebooks=codes["codes"].shape[0],
        cardinality=int(codec["cardinality"]),
        vision=Model(vision["model"], files.weights["vision"], vision["licence"]),
        codec=Model(codec["model"], files.weights["codec"], codec["licence"]),
        separator=Model(separator.model, files.weights["separate"], separate.licence(separator)),
        settings=files.profile.digest(),
    )


def _row(files: Artefacts, fields: dict[str, Any], clip: ClipRow) -> Row:
    from pipeline.shards import Row

    features, _ = files.read_arrays(clip.vision)
    codes, said = files.read_arrays(clip.codes)
    values: dict[str, Any] = {**fields, **features, **codes, "lufs": float(said["lufs"]), "split": ""}
    return Row(**values)


def _fields(source: SourceRow, media: MediaRow, clip: ClipRow, group_id: str) -> dict[str, Any]:
    """The columns of a shard row that are not arrays."""
    return {
        "clip_id": clip.clip_id,
        "source_id": source.source_id,
        "group_id": group_id,
        "category": source.category,
        "url": source.url,
        "title": media.details["title"],
        "channel": media.details["channel"],
        "license": source.license or media.details["license"],
        "start_s": clip.start_ms / 1000,
        "end_s": clip.end_ms / 1000,
        "seconds": (clip.end_ms - clip.start_ms) / 1000,
        **clip.measures,
        "av_offset_ms": media.details["av_offset_ms"],
        "verdict": "keep",
        "reviewed": False,
        "text": None,
    }
