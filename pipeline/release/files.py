"""Releases as files: read, published whole, and cleaned up after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError
from pipeline.shards.validator import MANIFEST, release_digest
from pipeline.storage import TEMPORARY, Store, flush

FOLDER = "releases"
LATEST = f"{FOLDER}/latest"
SOURCES = "sources.jsonl"
PREVIEW = "preview/preview.parquet"  # in a folder of its own, so that `*.parquet` are the shards


@dataclass(frozen=True)
class Release:
    """A release as it lies in the store.

    Attributes:
        path: of its folder.
        digest: SHA-256 over the shards' digests and the settings'; the id is its beginning.
        changed: False if the store's newest release already was this one.
        diff: what it changed against the release that was the newest before, as in the manifest; None if none was.
        counts: per split: clips, seconds, sources, groups, bytes, shards, categories, licenses.
    """

    id: str
    path: str
    digest: str
    changed: bool
    counts: dict[str, dict[str, Any]]
    manifest: dict[str, Any]
    diff: dict[str, Any] | None = None

    @property
    def clips(self) -> int:
        """Clips of all splits."""
        return sum(split["clips"] for split in self.counts.values())

    @property
    def seconds(self) -> float:
        """Their length."""
        return sum(round(split["seconds"] * 1000) for split in self.counts.values()) / 1000

    @property
    def record(self) -> tuple[str, str, str, int, float]:
        """What the ledger records of it: id, digest, parent, clips, seconds."""
        return self.id, self.digest, self.manifest["parent"] or "", self.clips, self.seconds


def latest_release(store: Store) -> Release | None:
    """The newest release of a data folder, if there is one.

    Raises:
        ShardError: its manifest is damaged.
    """
    if not store.exists(LATEST):
        return None
    name = store.read_text(LATEST).strip()
    return read_release(store, name) if store.exists(f"{FOLDER}/{name}/{MANIFEST}") else None


def read_release(store: Store, name: str, folder: str = FOLDER) -> Release:
    """The release of that id.

    Raises:
        ShardError: its manifest is damaged.
    """
    path = f"{folder}/{name}"
    try:
        manifest = json.loads(store.read_text(f"{path}/{MANIFEST}"))
        release = release_digest((entry["sha256"] for entry in manifest["shards"]), manifest["settings"]["digest"])
        return Release(name, store.url(path), release, False, manifest["splits"], manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"The manifest of {store.path(path)} can't be read: {error!r}.",
            hint="Delete this folder and run `dvmset release`: it is made anew from the features.",
        ) from error


def read_sources(store: Store, release: Release) -> Iterator[dict[str, Any]]:
    """Where the clips of a release come from, source by source in list order.

    Raises:
        ShardError: the list is missing or damaged.
    """
    try:
        with store.read(f"{FOLDER}/{release.id}/{SOURCES}") as path, path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
    except (OSError, ValueError) as error:
        raise ShardError(
            f"The list of sources of {release.path} can't be read: {error}.",
            hint="`dvmset validate` names all that is wrong with it; `dvmset release` makes a missing release anew.",
        ) from error


def publish(store: Store, stage: str, target: str, taken: dict[str, str]) -> None:
    """Makes the staged files, and those taken from the parent, appear as `target`; the manifest last or all at once."""
    if store.is_local:
        place, aside = Path(store.path(target)), Path(store.path(f"{stage}-broken"))
        for name, source in taken.items():
            _link(Path(store.path(source)), Path(store.path(f"{stage}/{name}")))
        flush(Path(store.path(stage)))
        if place.exists():  # of this id, but not whole
            place.replace(aside)
        Path(store.path(stage)).replace(place)
        flush(place.parent)
        store.remove(f"{stage}-broken")
        return
    for name, source in taken.items():
        if source != f"{target}/{name}":  # they are the same where a release is mended
            store.fs.copy(store.path(source), store.path(f"{target}/{name}"))
    root = store.path(stage)
    staged = [path.partition(f"{stage}/")[2] for path in store.fs.find(root)]
    for name in sorted(staged, key=lambda name: name == MANIFEST):
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


def intact(store: Store, release: Release) -> dict[str, dict[str, Any]]:
    """The manifest's entries of those shards that are there in full size, by name."""
    sizes = _sizes(store, f"{FOLDER}/{release.id}")
    return {e["name"]: e for e in release.manifest["shards"] if sizes.get(e["name"]) == e["bytes"]}


def is_whole(store: Store, name: str) -> bool:
    """Whether a release of that id is there with all its shards: an older one had just this content."""
    if not store.exists(f"{FOLDER}/{name}/{MANIFEST}"):
        return False
    release = read_release(store, name)
    return len(intact(store, release)) == len(release.manifest["shards"])


def remove_leftovers(store: Store) -> None:
    """Removes what a killed run left half done."""
    if store.exists(FOLDER):
        for path in store.fs.ls(store.path(FOLDER), detail=False):
            if path.rsplit("/", 1)[-1].startswith(TEMPORARY):
                store.fs.rm(path, recursive=True)
