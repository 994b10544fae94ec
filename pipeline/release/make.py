"""Making a release: clips to groups' splits and buckets, buckets to shards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.card import render_card
from pipeline.config import Profile, ReleaseSettings
from pipeline.errors import ShardError
from pipeline.release.files import (
    CARD,
    FOLDER,
    LATEST,
    Release,
    intact,
    is_whole,
    latest_release,
    publish,
    read_release,
    remove_leftovers,
)
from pipeline.release.manifest import Tally, check_funnel, make_manifest
from pipeline.shards import SCHEMA_VERSION, SPLITS, Row, Spec, write_shard
from pipeline.shards.validator import MANIFEST, release_digest, release_id
from pipeline.storage import TEMPORARY, Store, digest, file_digest


@dataclass(frozen=True, slots=True)
class Entry:
    """A clip that belongs in the release, without its arrays.

    Attributes:
        group_id: decides on split and bucket.
        content_key: any string that changes if and only if the row changes.
        load: gives the row; its `split` is filled in here.
    """

    clip_id: str
    group_id: str
    content_key: str
    load: Callable[[], Row]


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
    entries: Iterable[Entry],
    *,
    spec: Spec,
    profile: Profile,
    funnel: dict[str, Any],
    provenance: dict[str, Any],
) -> Release:
    """Makes a release of the given clips, unless the newest one is just that already.

    Rows are loaded one by one, bucket by bucket; of all clips only the entries are held. Nothing appears in the store
    until all of it is there. One process at a time makes releases of a store; what a killed one left is removed.

    Args:
        entries: all clips of the release, in any order.
        spec: what the rows have in common; its `settings` is `profile.digest()`.
        funnel: `fetched`, `kept` and `dropped` (by reason), in seconds; for manifest and card, never for the id.
        provenance: anything JSON that says where the sources came from; `command` is shown as the way to rebuild.

    Raises:
        ShardError: a clip given twice, a row that doesn't fit its entry or the schema, a funnel that doesn't add up.
    """
    if spec.settings != profile.digest():
        raise ShardError("The spec of the shards names other settings than the profile's.")
    check_funnel(funnel)
    remove_leftovers(store)
    buckets = _sort(entries, profile.release)
    parent = latest_release(store)
    known = intact(store, parent) if parent else {}
    keys = {name: bucket.key(spec) for name, bucket in buckets.items()}
    if parent and parent.manifest["settings"]["digest"] == spec.settings:
        same = keys == {entry["name"]: entry["key"] for entry in parent.manifest["shards"]}
        if same and known.keys() == keys.keys():
            return replace(parent, changed=False)

    stage = f"{FOLDER}/{TEMPORARY}{os.getpid()}"
    shards, taken = [], {}
    for name, bucket in buckets.items():
        if parent and name in known and known[name]["key"] == keys[name]:
            taken[name] = f"{FOLDER}/{parent.id}/{name}"
            shards.append(known[name])
        else:
            shards.append(_write(store, f"{stage}/{name}", bucket, keys[name], spec))
    name = release_id(release_digest((entry["sha256"] for entry in shards), spec.settings))
    changed = parent is None or parent.id != name
    if not is_whole(store, name):
        before = None if parent is None else parent.id if changed else parent.manifest["parent"]
        manifest = make_manifest(name, before, shards, spec, profile, funnel, provenance)
        store.write_text(f"{stage}/{MANIFEST}", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        store.write_text(f"{stage}/{CARD}", render_card(manifest))
        publish(store, stage, f"{FOLDER}/{name}", taken)
    store.remove(stage)
    store.write_text(LATEST, name + "\n")
    return replace(read_release(store, name), changed=changed)


@dataclass
class _Bucket:
    """The clips of one shard, in the order of their ids."""

    split: str
    entries: list[Entry] = field(default_factory=list)

    def key(self, spec: Spec) -> str:
        """SHA-256 over all that the shard's bytes come from."""
        total = hashlib.sha256(digest([SCHEMA_VERSION, self.split, spec.to_metadata()]).encode())
        for entry in self.entries:
            total.update(json.dumps([entry.clip_id, entry.group_id, entry.content_key]).encode())
        return total.hexdigest()


def _sort(entries: Iterable[Entry], settings: ReleaseSettings) -> dict[str, _Bucket]:
    """All buckets by file name, split by split, the empty ones too."""
    counts = {split: settings.buckets[split] for split in SPLITS}  # type: ignore[index]
    buckets = {shard_name(s, bucket, n): _Bucket(s) for s, n in counts.items() for bucket in range(n)}
    for entry in entries:
        split = split_of(entry.group_id, settings)
        name = shard_name(split, bucket_of(entry.group_id, counts[split]), counts[split])
        buckets[name].entries.append(entry)
    for bucket in buckets.values():
        bucket.entries.sort(key=lambda entry: entry.clip_id)
    return buckets


def _rows(bucket: _Bucket, tally: Tally) -> Iterator[Row]:
    """Loads the rows of a bucket one by one, and counts them."""
    for entry in bucket.entries:
        row = entry.load()
        if (row.clip_id, row.group_id) != (entry.clip_id, entry.group_id):
            raise ShardError(
                f"The row of clip {entry.clip_id} in group {entry.group_id} came as {row.clip_id} in {row.group_id}."
            )
        tally.add(row)
        yield replace(row, split=bucket.split)


def _write(store: Store, path: str, bucket: _Bucket, key: str, spec: Spec) -> dict[str, Any]:
    """Writes a shard and returns its entry of the manifest."""
    tally = Tally()
    with store.write(path) as file:
        write_shard(file, _rows(bucket, tally), spec)
        size, sha256 = file.stat().st_size, file_digest(file)
    name = path.rsplit("/", 1)[-1]
    return {"name": name, "split": bucket.split, **tally.counts(), "bytes": size, "sha256": sha256, "key": key}
