"""A release in the making: what is written, what is taken over from the parent, and how both become a release."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from pipeline.card import render_card
from pipeline.release.diff import CHANGES, Diff, Explain, compare
from pipeline.release.files import CARD, FOLDER, LATEST, Release, intact, is_whole, publish, read_release
from pipeline.release.manifest import Tally, make_manifest
from pipeline.shards import Row, Spec, write_shard
from pipeline.shards.validator import MANIFEST, release_digest, release_id
from pipeline.storage import TEMPORARY, Store, file_digest


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

    def take(self, name: str) -> None:
        """Takes a shard over from the parent, byte for byte."""
        self.taken[name] = self._of_parent(name)
        self.shards.append(self.known[name])

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

    def publish(
        self,
        spec: Spec,
        settings: dict[str, Any],
        funnel: dict[str, Any],
        provenance: dict[str, Any],
        explain: Explain,
    ) -> Release:
        """Makes the release appear, whole, and be the newest one.

        Args:
            spec: of all shards.
            settings: profile, digest and values, for the manifest.
            funnel, provenance, explain: as of `make_release`.

        Returns:
            The release; `changed` is False if it is the parent, mended.
        """
        store, parent = self.store, self.parent
        name = release_id(release_digest((entry["sha256"] for entry in self.shards), spec.settings))
        mended = parent is not None and parent.id == name
        before = parent.manifest["parent"] if parent and mended else parent.id if parent else None
        diff = None if parent is None or mended else self._diff(parent, explain)
        summary = parent.manifest.get("diff") if parent and mended else diff.summary() if diff else None
        if not is_whole(store, name):
            manifest = make_manifest(name, before, self.shards, spec, settings, funnel, provenance, summary)
            store.write_text(f"{self.stage}/{MANIFEST}", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            store.write_text(f"{self.stage}/{CARD}", render_card(manifest))
            if diff:
                store.write_text(f"{self.stage}/{CHANGES}", diff.lines())
            elif mended and store.exists(self._of_parent(CHANGES)):
                self.taken[CHANGES] = self._of_parent(CHANGES)
            publish(store, self.stage, f"{FOLDER}/{name}", self.taken)
        store.remove(self.stage)
        store.write_text(LATEST, name + "\n")
        return replace(read_release(store, name), changed=not mended, diff=summary)

    def _diff(self, parent: Release, explain: Explain) -> Diff:
        old = [self._of_parent(name) for name in self.known if name not in self.taken]
        new = [f"{self.stage}/{entry['name']}" for entry in self.shards if entry["name"] not in self.taken]
        return compare(self.store, parent.id, old, new, explain)

    def _of_parent(self, name: str) -> str:
        assert self.parent is not None
        return f"{FOLDER}/{self.parent.id}/{name}"
