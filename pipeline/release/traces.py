"""Where releases hold sources: rows, lists of sources and changes, and pages that name them."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline.card import FACES
from pipeline.errors import DvmsetError
from pipeline.ledger import TAKEN_DOWN
from pipeline.release.diff import CHANGES, Change
from pipeline.release.files import FOLDER, SOURCES, read_release
from pipeline.shards import Shard
from pipeline.shards.validator import MANIFEST
from pipeline.sources import canonical_key
from pipeline.storage import Store

TAKEN = TAKEN_DOWN.replace("_", " ")  # the reason of a release's change

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")
_ADDRESS = re.compile(r"https?://[^\s\"'<>`|]+", re.I)
_ROW = ("source_id", "url", "start_s", "end_s")


@dataclass(frozen=True)
class Wanted:
    """Sources that are looked for.

    Attributes:
        source_ids: theirs; keys: of their videos, so that another spelling of an address is the same one.
    """

    source_ids: Collection[str]
    keys: Collection[str] = field(default=())

    def is_source(self, source_id: str, address: str) -> bool:
        """Whether a source, or a row of it, is one of them."""
        return source_id in self.source_ids or (bool(self.keys) and key_of(address) in self.keys)

    def is_change(self, change: Change, reason: str) -> bool:
        """Whether a change is about one of them; that it was taken down stays, for whoever has a copy must know."""
        return change.source_id in self.source_ids and (change.kind, reason) != ("removed", TAKEN)

    def are_in(self, text: str) -> bool:
        """Whether a text names one of them, by its id or by any address of its video."""
        if any(name in self.source_ids for name in _ID.findall(text)):
            return True
        addresses = {address.rstrip(".,;:)") for address in _ADDRESS.findall(html.unescape(text))}
        return bool(self.keys) and any(key_of(address) in self.keys for address in addresses)


def releases_with(store: Store, wanted: Wanted, folder: str = FOLDER) -> dict[str, list[str]]:
    """The releases of a folder that hold or name one of the sources, by path, with the files that do."""
    found = {}
    for name in store.names(folder):
        if store.exists(f"{folder}/{name}/{MANIFEST}") and (files := traces(store, name, wanted, folder)):
            found[f"{folder}/{name}"] = files
    return found


def traces(store: Store, release: str, wanted: Wanted, folder: str = FOLDER) -> list[str]:
    """The files of a release that hold rows of the sources or name them; what isn't there is passed over."""
    place = f"{folder}/{release}"
    shards = [entry["name"] for entry in read_release(store, release, folder).manifest["shards"]]
    there = {name for name in (*shards, SOURCES, CHANGES, *FACES) if store.exists(f"{place}/{name}")}
    found = [name for name in shards if name in there and rows_ms(store, f"{place}/{name}", wanted)]
    found += [n for n in (SOURCES, CHANGES) if n in there and any(_named(store, f"{place}/{n}", wanted))]
    return found + [name for name in FACES if name in there and wanted.are_in(store.read_text(f"{place}/{name}"))]


def rows_ms(store: Store, name: str, wanted: Wanted) -> list[int]:
    """Lengths of the clips of a shard that are of the sources."""
    lengths = []
    with store.read(name) as path:
        shard = Shard(path)
        for group in range(shard.row_groups):
            for row in shard.read(group, _ROW):
                if wanted.is_source(row["source_id"], row["url"]):
                    lengths.append(round(row["end_s"] * 1000) - round(row["start_s"] * 1000))
    return lengths


def _named(store: Store, name: str, wanted: Wanted) -> Iterator[bool]:
    """For each line of a list whether it is about one of the sources; one that can't be read, whether it names one."""
    with store.read(name) as path, path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                said: dict[str, Any] = json.loads(line)
                if "reason" in said:
                    reason = said.pop("reason")
                    yield wanted.is_change(Change(**said), reason)
                else:
                    yield wanted.is_source(said["source_id"], said.get("key", ""))
            except (ValueError, KeyError, TypeError, AttributeError):
                yield wanted.are_in(line)


@lru_cache(maxsize=4096)
def key_of(address: str) -> str:
    """The key of an address; "" if it is that of no video."""
    try:
        return canonical_key(address)
    except DvmsetError:
        return ""
