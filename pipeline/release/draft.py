"""A release in the making: what is written, what is taken over from the parent, and how both become a release."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from pipeline.card import render_faces
from pipeline.release.diff import CHANGES, Explain, compare, write_changes
from pipeline.release.files import FOLDER, LATEST, PREVIEW, SOURCES, Release, intact, is_whole, publish, read_release
from pipeline.release.manifest import Tally, make_manifest
from pipeline.release.preview import PREVIEW_ROWS, write_preview
from pipeline.release.statistics import Stated, Statistics
from pipeline.shards import Row, Shard, Spec, write_shard
from pipeline.shards.validator import MANIFEST, release_digest, release_id
from pipeline.storage import TEMPORARY, Store, file_digest

Exhibits = Callable[[], dict[str, Any]]  # as `pipeline.exhibits.exhibits` gives them


class Draft:
    """Shards for the next release, in the order in which they are given.

    Args:
        store: of the releases.
        parent: the newest release, if there is one.
    """

    def __init__(self, store: Store, parent: Release | None) -> None:
        self.store = store
        self.parent = parent
        self.stage = f"{FOLDER}/{TEMPORARY}{os.getpid()}"
        self.known = intact(store, parent) if parent else {}
        self.shards: list[dict[str, Any]] = []
        self.taken: dict[str, str] = {}  # names within the store, by file name
        self.listed: dict[str, Any] | None = None

    def take(self, name: str) -> None:
        """Takes a shard over from the parent, byte for byte."""
        self.taken[name] = self._of_parent(name)
        entry = self.known[name]
        if "statistics" not in entry:  # the parent was made before they were counted
            with self.store.read(self.taken[name]) as path:
                statistics = Statistics()
                for row in Shard(path):
                    statistics.add(Row(**row))
            entry = {**entry, "statistics": statistics.as_dict()}
        self.shards.append(entry)

    def write(self, name: str, split: str, key: str, rows: Iterable[Row], spec: Spec) -> None:
        """Writes a shard.

        Args:
            name: of the file.
            key: changes whenever the content does; `make_release` tells by it which buckets are as they were.
            rows: in ascending order of `clip_id`; their `split` is filled in here.
        """
        tally = Tally()

        def counted() -> Iterator[Row]:
            for row in rows:
                tally.add(row)
                yield replace(row, split=split)

        with self.store.write(f"{self.stage}/{name}") as file:
            write_shard(file, counted(), spec)
            size, sha256 = file.stat().st_size, file_digest(file)
        counts = tally.counts()
        self.shards.append({"name": name, "split": split, **counts, "bytes": size, "sha256": sha256, "key": key})

    def list_sources(self, sources: Iterable[dict[str, Any]]) -> None:
        """Writes down where the clips come from; the manifest has its digest, and how much is stated of them."""
        stated = Stated()
        with self.store.write(f"{self.stage}/{SOURCES}") as path:
            with path.open("w", encoding="utf-8") as file:
                for source in sources:
                    stated.add(source)
                    file.write(json.dumps(source, ensure_ascii=False) + "\n")
            self.listed = {"name": SOURCES, "sha256": file_digest(path), **stated.as_dict()}

    def publish(
        self,
        spec: Spec,
        settings: dict[str, Any],
        funnel: dict[str, Any],
        provenance: dict[str, Any],
        explain: Explain,
        exhibits: Exhibits | None = None,
    ) -> Release:
        """Makes the release appear, whole, and be the newest one.

        Args:
            spec: of all shards.
            settings: profile, digest and values, for the manifest.
            funnel, provenance, explain, exhibits: as of `make_release`.

        Returns:
            The release; `changed` is False if it is the parent, mended.
        """
        store, parent = self.store, self.parent
        name = release_id(release_digest((entry["sha256"] for entry in self.shards), spec.settings))
        mended = parent is not None and parent.id == name
        before = parent.manifest["parent"] if parent and mended else parent.id if parent else None
        summary = None if parent is None else parent.manifest.get("diff") if mended else self._compare(parent, explain)
        if not is_whole(store, name):
            provenance = {**provenance, "list": self.listed}
            files = {PREVIEW: self._preview()}
            manifest = make_manifest(name, before, self.shards, spec, settings, funnel, provenance, summary, files)
            store.write_text(f"{self.stage}/{MANIFEST}", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            for face, text in render_faces(manifest, exhibits() if exhibits else None).items():
                store.write_text(f"{self.stage}/{face}", text)
            if mended and store.exists(self._of_parent(CHANGES)):
                self.taken[CHANGES] = self._of_parent(CHANGES)
            publish(store, self.stage, f"{FOLDER}/{name}", self.taken)
        store.remove(self.stage)
        store.write_text(LATEST, name + "\n")
        return replace(read_release(store, name), changed=not mended, diff=summary)

    def _preview(self) -> dict[str, Any]:
        """Writes the first rows, without their arrays, for whoever only wants to look; returns size and digest."""
        rows: list[dict[str, Any]] = []
        for entry in self.shards:
            if entry["rows"] and len(rows) < PREVIEW_ROWS:
                name = entry["name"]
                with self.store.read(self.taken.get(name, f"{self.stage}/{name}")) as path:
                    rows += islice(Shard(path), PREVIEW_ROWS - len(rows))
        with self.store.write(f"{self.stage}/{PREVIEW}") as file:
            write_preview(file, rows)
            return {"rows": len(rows), "bytes": file.stat().st_size, "sha256": file_digest(file)}

    def _compare(self, parent: Release, explain: Explain) -> dict[str, Any]:
        """Writes down what changed; returns the summary."""
        store = self.store
        old = (store.read(self._of_parent(name)) for name in self.known if name not in self.taken)
        written = (entry["name"] for entry in self.shards if entry["name"] not in self.taken)
        new = (store.read(f"{self.stage}/{name}") for name in written)
        with store.write(f"{self.stage}/{CHANGES}") as file:
            return write_changes(file, parent.id, compare(old, new, explain))

    def _of_parent(self, name: str) -> str:
        assert self.parent is not None
        return f"{FOLDER}/{self.parent.id}/{name}"
