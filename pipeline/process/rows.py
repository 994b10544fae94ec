"""From the ledger and the artefacts to shard rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.ledger import Ledger, ReadyClip
from pipeline.process.artefacts import Artefacts
from pipeline.storage import digest

if TYPE_CHECKING:
    from pipeline.release import Entry
    from pipeline.shards import Row, Spec


class Entries:
    """Every clip that is ready, for `release.make_release`; can be gone through more than once, and holds no clip.

    Sources that brought the same media, or sections of one video, are one group.
    """

    def __init__(self, ledger: Ledger, files: Artefacts) -> None:
        self.ledger = ledger
        self.files = files
        self.groups = {sha256: digest(key)[:16] for sha256, key in ledger.first_keys()}

    def __iter__(self) -> Iterator[Entry]:
        from pipeline.release import Entry

        for clip in self.ledger.ready_clips():
            group_id = self.groups[clip.sha256]
            yield Entry(clip.clip_id, group_id, "\0".join(map(str, clip)), partial(self._row, clip.clip_id, group_id))

    def _row(self, clip_id: str, group_id: str) -> Row:
        from pipeline.shards import Row

        clip = self.ledger.ready_clip(clip_id)
        features, _ = self.files.read_arrays(clip.vision)
        codes, said = self.files.read_arrays(clip.codes)
        values = {**_fields(clip, group_id), **features, **codes, "lufs": float(said["lufs"]), "split": ""}
        return Row(**values)


def spec_of(clip: ReadyClip, files: Artefacts) -> Spec:
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


def _fields(clip: ReadyClip, group_id: str) -> dict[str, Any]:
    """The columns of a shard row that are not arrays."""
    details = clip.details
    return {
        "clip_id": clip.clip_id,
        "source_id": clip.source_id,
        "group_id": group_id,
        "category": clip.category,
        "url": clip.url,
        "title": details["title"],
        "channel": details["channel"],
        "license": clip.license or details["license"],
        "start_s": clip.start_ms / 1000,
        "end_s": clip.end_ms / 1000,
        "seconds": (clip.end_ms - clip.start_ms) / 1000,
        **clip.measures,
        "av_offset_ms": details["av_offset_ms"],
        "verdict": "keep",
        "reviewed": False,
        "text": None,
    }
