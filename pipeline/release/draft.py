"""A release in the making: what is written, what is taken over from the parent, and how both become a release."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.card import render_faces
from pipeline.release.diff import CHANGES, Change, Explain, compare, read_changes, write_changes
from pipeline.release.files import FOLDER, LATEST, PREVIEW, SOURCES, Release, intact, is_whole, publish, read_release
from pipeline.release.manifest import Tally, make_manifest, with_faces
from pipeline.release.preview import PREVIEW_ROWS, write_preview
from pipeline.release.statistics import Stated, Statistics
from pipeline.release.traces import Wanted
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
        self.files: dict[str, dict[str, Any]] = {}  # beside the shards: bytes and sha256, by name

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
            self.files[SOURCES] = _facts(path)
            self.listed = {"name": SOURCES, "sha256": self.files[SOURCES]["sha256"], **stated.as_dict()}

    def publish(
        self,
        spec: Spec,
        settings: dict[str, Any],
        funnel: dict[str, Any],
        provenance: dict[str, Any],
        explain: Explain,
        exhibits: Exhibits | None = None,
        without: Wanted | None = None,
    ) -> Release:
        """Makes the release appear, whole, and be the newest one.

        Args:
            spec: of all shards.
            settings: profile, digest and values, for the manifest.
            funnel, provenance, explain, exhibits: as of `make_release`.
            without: sources that no file of it may name: one of the same shards that is there is made anew.

        Returns:
            The release; `changed` is False if it is the parent, mended or made anew.
        """
        store, parent = self.store, self.parent
        name = release_id(release_digest((entry["sha256"] for entry in self.shards), spec.settings))
        is_parent, whole = parent is not None and parent.id == name, is_whole(store, name)
        kept = parent if is_parent else read_release(store, name) if without and whole else None
        if kept:  # its place in the line of releases
            before, summary = kept.manifest["parent"], self._take_changes(kept, without)
        else:
            before = parent.id if parent else None
            summary = self._compare(parent, explain) if parent else None
        if without or not whole:
            self._preview()
            provenance = {**provenance, "list": self.listed}
            plain = make_manifest(name, before, self.shards, spec, settings, funnel, provenance, summary, self.files)
            manifest, faces = with_faces(plain, render_faces(plain, exhibits() if exhibits else None))
            store.write_text(f"{self.stage}/{MANIFEST}", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            for face, text in faces.items():
                store.write_text(f"{self.stage}/{face}", text)
            publish(store, self.stage, f"{FOLDER}/{name}", self.taken)
        store.remove(self.stage)
        store.write_text(LATEST, name + "\n")
        return replace(read_release(store, name), changed=not is_parent, diff=summary)

    def _preview(self) -> None:
        """Writes the first rows, without their arrays, for whoever only wants to look."""
        rows: list[dict[str, Any]] = []
        for entry in self.shards:
            if entry["rows"] and len(rows) < PREVIEW_ROWS:
                name = entry["name"]
                with self.store.read(self.taken.get(name, f"{self.stage}/{name}")) as path:
                    rows += islice(Shard(path), PREVIEW_ROWS - len(rows))
        with self.store.write(f"{self.stage}/{PREVIEW}") as file:
            write_preview(file, rows)
            self.files[PREVIEW] = {"rows": len(rows), **_facts(file)}

    def _compare(self, parent: Release, explain: Explain) -> dict[str, Any]:
        """Writes down what changed; returns the summary."""
        store = self.store
        old = (store.read(self._of_parent(name)) for name in self.known if name not in self.taken)
        written = (entry["name"] for entry in self.shards if entry["name"] not in self.taken)
        new = (store.read(f"{self.stage}/{name}") for name in written)
        return self._write_changes(parent.id, compare(old, new, explain))

    def _take_changes(self, release: Release, without: Wanted | None) -> dict[str, Any] | None:
        """Takes over what a release changed, but for what is said of some sources; returns the summary.

        A file that is missing or damaged is left out.
        """
        summary, name = release.manifest.get("diff"), f"{FOLDER}/{release.id}/{CHANGES}"
        if summary is None or not self.store.exists(name):
            return summary
        try:
            with self.store.read(name) as path, path.open(encoding="utf-8") as lines:
                left = ((c, why) for c, why in read_changes(lines) if not (without and without.is_change(c, why)))
                return self._write_changes(summary["parent"], left)
        except (ValueError, KeyError, TypeError):
            return dict(summary)

    def _write_changes(self, parent: str, changes: Iterable[tuple[Change, str]]) -> dict[str, Any]:
        with self.store.write(f"{self.stage}/{CHANGES}") as file:
            summary = write_changes(file, parent, changes)
            self.files[CHANGES] = _facts(file)
        return summary

    def _of_parent(self, name: str) -> str:
        assert self.parent is not None
        return f"{FOLDER}/{self.parent.id}/{name}"


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}
