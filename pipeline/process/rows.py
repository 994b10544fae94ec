"""From the ledger and the artefacts to shard rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline.ledger import Ledger, ReadyClip
from pipeline.process.artefacts import Artefacts

if TYPE_CHECKING:
    from pipeline.release import Entry
    from pipeline.shards import Row, Spec

# What a release says of its sources, by table.
SOURCE = ("source_id", "key", "url", "category", "license", "start_s", "end_s")
MEDIA = ("sha256", "bytes", "duration_ms", "has_video", "has_audio", "details")
REVIEW = ("start_ms", "end_ms", "decision", "split_ms", "rules")
_AT_ONCE = 250  # clips, or sources, asked for in one statement


class Entries:
    """Every clip that is ready, for `release.make_release`; can be gone through more than once, and holds no clip.

    Args:
        ledger: of the clips.
        files: of their arrays.
        groups: of every source with clips; see `group_sources`.
    """

    def __init__(self, ledger: Ledger, files: Artefacts, groups: Mapping[str, str]) -> None:
        self.ledger = ledger
        self.files = files
        self.groups = groups

    def __iter__(self) -> Iterator[Entry]:
        from pipeline.release import Entry

        for clip in self.ledger.ready_clips():
            group_id = self.groups[clip.source_id]
            yield Entry(clip.clip_id, group_id, "\0".join(map(str, clip)))

    def rows(self, clips: Iterable[tuple[str, str]]) -> Iterator[Row]:
        """The rows of some clips, given by id and group, in that order; their arrays are read one by one."""
        rest = iter(clips)
        while part := list(islice(rest, _AT_ONCE)):
            ready = self.ledger.ready_clips_of([clip_id for clip_id, _ in part])
            for clip_id, group_id in part:
                yield self._row(ready[clip_id], group_id)

    def sources(self) -> Iterator[dict[str, Any]]:
        """The sources of the clips in list order: all that a rebuild needs to know of them (`pipeline.rebuild`)."""
        said: dict[str, list[dict[str, Any]]] = {}
        for review in self.ledger.reviews():
            said.setdefault(review.source_id, []).append({name: getattr(review, name) for name in REVIEW})
        rest = iter(self.ledger.released_sources())
        while part := list(islice(rest, _AT_ONCE)):
            clips = self.ledger.spans_of_clips([source.source_id for source, _ in part])
            for source, media in part:
                yield {
                    **{name: getattr(source, name) for name in SOURCE},
                    "group_id": self.groups[source.source_id],
                    "media": {name: getattr(media, name) for name in MEDIA},
                    "clips_ms": clips[source.source_id],
                    "reviews": said.get(source.source_id, []),
                }

    def _row(self, clip: ReadyClip, group_id: str) -> Row:
        from pipeline.shards import Row

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
        "reviewed": clip.reviewed,
        "text": None,
    }
