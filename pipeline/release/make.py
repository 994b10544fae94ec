"""Making a release: clips to groups' splits and buckets, buckets to shards."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Set
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import tee
from typing import Any, Protocol

from pipeline.config import Profile, ReleaseSettings
from pipeline.errors import ShardError
from pipeline.release.diff import Explain, unexplained
from pipeline.release.draft import Draft, Exhibits
from pipeline.release.files import Release, intact, latest_release, remove_leftovers
from pipeline.release.manifest import check_funnel
from pipeline.shards import SCHEMA_VERSION, SPLITS, Row, Spec
from pipeline.storage import Store, digest


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip that belongs in the release, without its row.

    Attributes:
        group_id: decides on split and bucket.
        content_key: any string that changes if and only if the row changes.
    """

    clip_id: str
    group_id: str
    content_key: str


class Entries(Protocol):
    """All clips of a release; can be gone through more than once."""

    def __iter__(self) -> Iterator[Entry]: ...

    def rows(self, clips: Iterable[tuple[str, str]]) -> Iterator[Row]:
        """The rows of some clips, given by id and group, in that order; `split` is filled in later."""
        ...

    def sources(self) -> Iterator[dict[str, Any]]:
        """Where the clips come from: a line of `sources.jsonl` each."""
        ...


def split_of(group_id: str, settings: ReleaseSettings) -> str:
    """The split of a group: a uniform hash of its id against the shares of test and validation."""
    u = int(hashlib.sha256(f"{settings.split_salt}:{group_id}".encode()).hexdigest(), 16) / 2**256
    if u < settings.test_share:
        return "test"
    return "validation" if u < settings.test_share + settings.validation_share else "train"


def bucket_of(group_id: str, buckets: int) -> int:
    """The bucket of a group within its split; independent of the hash that chose the split."""
    return int(hashlib.sha256(f"bucket:{group_id}".encode()).hexdigest(), 16) % buckets


def shard_name(split: str, bucket: int, buckets: int) -> str:
    """The file name of a bucket, as Hugging Face's loaders expect it."""
    return f"{split}-{bucket:05d}-of-{buckets:05d}.parquet"


def make_release(
    store: Store,
    entries: Entries,
    *,
    spec: Spec,
    profile: Profile,
    funnel: dict[str, Any],
    provenance: dict[str, Any],
    explain: Explain = unexplained,
    exhibits: Exhibits | None = None,
) -> Release:
    """Makes a release of the given clips, unless the newest one is just that already.

    A first pass over the entries tells which buckets are not as they were; a second one sorts those of these buckets,
    on disk. Memory is the same for any number of clips. Nothing appears in the store until all of it is there. One
    process at a time makes releases of a store; what a killed one left is removed.

    Args:
        entries: all clips of the release, in any order; gone through twice.
        spec: what the rows have in common; its `settings` is `profile.digest()`.
        funnel: `fetched`, `kept` and `dropped` (by reason), in seconds; for manifest and card, never for the id.
        provenance: anything JSON that says where the sources came from; `command` is shown as the way to rebuild.
        explain: gives the reasons for what changed since the parent.
        exhibits: gives what the report shows of single stretches (`pipeline.exhibits`); asked if a release is made.

    Raises:
        ValueError: the entries are an iterator, which can be gone through only once.
        ShardError: a clip given twice, a row that doesn't fit its entry or the schema, a funnel that doesn't add up.
    """
    if iter(entries) is entries:
        raise ValueError("entries are gone through twice: give a collection, no iterator")
    if spec.settings != profile.digest():
        raise ShardError("The spec of the shards names other settings than the profile's.")
    check_funnel(funnel)
    remove_leftovers(store)
    parent = latest_release(store)
    known = intact(store, parent) if parent else {}
    keys = _keys(entries, spec, profile.release)
    same = {name for name, key in keys.items() if name in known and known[name]["key"] == key}
    if parent and parent.manifest["settings"]["digest"] == spec.settings:
        listed = {entry["name"] for entry in parent.manifest["shards"]}
        if same == keys.keys() == listed:
            return replace(parent, changed=False)

    draft = Draft(store, parent)
    with closing(_Sorted(entries, keys.keys() - same, profile.release)) as changed:
        for name, split in _places(profile.release).items():
            if name in same:
                draft.take(name)
            else:
                draft.write(name, split, keys[name], _rows(entries, changed.of(name)), spec)
    draft.list_sources(entries.sources())
    settings = {"profile": profile.name, "digest": spec.settings, "values": profile.model_dump(mode="json")}
    return draft.publish(spec, settings, funnel, provenance, explain, exhibits)


def _place(group_id: str, settings: ReleaseSettings) -> str:
    """The file that a group belongs in."""
    split = split_of(group_id, settings)
    buckets = settings.buckets[split]  # type: ignore[index]
    return shard_name(split, bucket_of(group_id, buckets), buckets)


def _places(settings: ReleaseSettings) -> dict[str, str]:
    """The split of each bucket's file, split by split, the empty ones too."""
    counts = {split: settings.buckets[split] for split in SPLITS}  # type: ignore[index]
    return {shard_name(split, bucket, n): split for split, n in counts.items() for bucket in range(n)}


def _keys(entries: Iterable[Entry], spec: Spec, settings: ReleaseSettings) -> dict[str, str]:
    """For each bucket's file a digest over all that its bytes come from.

    The entries' digests are summed up modulo 2^256, so that their order doesn't matter and none has to be kept.
    """
    place = lru_cache(maxsize=1024)(partial(_place, settings=settings))
    sums = dict.fromkeys(_places(settings), 0)
    for entry in entries:
        text = json.dumps([entry.clip_id, entry.group_id, entry.content_key])
        sums[place(entry.group_id)] += int.from_bytes(hashlib.sha256(text.encode()).digest())
    common = [SCHEMA_VERSION, spec.to_metadata()]
    return {name: digest([common, name, f"{total % 2**256:064x}"]) for name, total in sums.items()}


class _Sorted:
    """The clips of some buckets, in the order of their ids; they lie in a temporary file of SQLite's."""

    def __init__(self, entries: Entries, names: Set[str], settings: ReleaseSettings) -> None:
        place = lru_cache(maxsize=1024)(partial(_place, settings=settings))
        placed = ((place(entry.group_id), entry.clip_id, entry.group_id) for entry in entries)
        self._file = sqlite3.connect("")
        self._file.execute("CREATE TABLE clips (bucket TEXT, clip_id TEXT, group_id TEXT)")
        if names:
            self._file.executemany("INSERT INTO clips VALUES (?, ?, ?)", (clip for clip in placed if clip[0] in names))
        self._file.execute("CREATE INDEX in_order ON clips (bucket, clip_id, group_id)")

    def of(self, name: str) -> Iterator[tuple[str, str]]:
        """Id and group of each clip of a bucket."""
        return self._file.execute("SELECT clip_id, group_id FROM clips WHERE bucket = ? ORDER BY clip_id", [name])

    def close(self) -> None:
        """Removes the file."""
        self._file.close()


def _rows(entries: Entries, clips: Iterable[tuple[str, str]]) -> Iterator[Row]:
    """The rows of some clips, one by one, each checked to be the one that was asked for."""
    asked, again = tee(clips)
    for (clip_id, group_id), row in zip(again, entries.rows(asked), strict=True):
        if (row.clip_id, row.group_id) != (clip_id, group_id):
            raise ShardError(f"The row of clip {clip_id} in group {group_id} came as {row.clip_id} in {row.group_id}.")
        yield row
