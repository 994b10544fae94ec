"""What a release changed against its parent: which clips came, went or are different, and why."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.shards import COLUMNS, Shard

CHANGES = "changes.jsonl"
KINDS = ("added", "removed", "relabelled", "recomputed")
UNKNOWN = "not stated"

_AT_ONCE = 1000  # changes explained at a time
_LABELS = ("split", "group_id", "category", "license", "url", "title", "channel", "verdict", "reviewed", "text")


@dataclass(frozen=True)
class Change:
    """A clip that is not as it was.

    Attributes:
        kind: relabelled if only words about it changed; recomputed if a measurement, feature or token did.
    """

    clip_id: str
    source_id: str
    kind: Literal["added", "removed", "relabelled", "recomputed"]
    seconds: float


Explain = Callable[[Sequence[Change]], Mapping[str, str]]  # reasons by clip id


def unexplained(_: Sequence[Change]) -> Mapping[str, str]:
    """Gives no reasons."""
    return {}


class Summary:
    """Counts of changes while they pass: per kind clips, seconds and clips by reason."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[list[int], dict[str, int]]] = {kind: ([0, 0], {}) for kind in KINDS}

    def add(self, change: Change, reason: str) -> None:
        """Counts a change."""
        total, reasons = self._kinds[change.kind]
        total[0] += 1
        total[1] += round(change.seconds * 1000)
        reasons[reason] = reasons.get(reason, 0) + 1

    def as_dict(self, parent: str) -> dict[str, Any]:
        """For the manifest; `parent` is the id of the release before."""
        summary: dict[str, Any] = {"parent": parent}
        for kind, ((clips, ms), reasons) in self._kinds.items():
            by_count = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
            summary[kind] = {"clips": clips, "seconds": ms / 1000, "reasons": by_count}
        return summary


def write_changes(path: Path, parent: str, changes: Iterable[tuple[Change, str]]) -> dict[str, Any]:
    """Writes `changes.jsonl`, a line per clip with its reason; returns their summary."""
    summary = Summary()
    with path.open("w", encoding="utf-8") as file:
        for change, reason in changes:
            summary.add(change, reason)
            file.write(json.dumps({**vars(change), "reason": reason}, ensure_ascii=False) + "\n")
    return summary.as_dict(parent)


def read_changes(text: Iterable[str]) -> Iterator[tuple[Change, str]]:
    """The inverse of `write_changes`, from the lines of the file."""
    for line in text:
        said = json.loads(line)
        reason = said.pop("reason")
        yield Change(**said), reason


Shards = Iterable[AbstractContextManager[Path]]  # as `Store.read` gives them


def compare(old: Shards, new: Shards, explain: Explain) -> Iterator[tuple[Change, str]]:
    """Compares shards that differ: all changes with their reasons, by clip id.

    The shards are gone through one by one, and what is to be compared lies in a temporary file of SQLite's: memory is
    the same for any number of clips.

    Args:
        old, new: those shards of two releases that aren't the same files.
        explain: gives the reasons, for some hundred changes at a time.
    """
    with closing(sqlite3.connect("")) as facts:
        facts.execute("CREATE TABLE facts (clip_id TEXT, is_new INT, source_id TEXT, seconds REAL, words, rest)")
        for is_new, shards in enumerate((old, new)):
            for shard in shards:
                with shard as path:
                    facts.executemany(f"INSERT INTO facts VALUES (?, {is_new}, ?, ?, ?, ?)", _facts(path))
        facts.execute("CREATE INDEX in_order ON facts (clip_id, is_new)")
        found = _changes(facts.execute("SELECT * FROM facts ORDER BY clip_id, is_new"))
        while part := list(islice(found, _AT_ONCE)):
            reasons = explain(part)
            yield from ((change, reasons.get(change.clip_id, UNKNOWN)) for change in part)


def _changes(rows: Iterable[tuple[str, int, str, float, bytes, bytes]]) -> Iterator[Change]:
    """What is not the same on both sides; rows are in the order of clips, the old one first."""
    for clip_id, sides in groupby(rows, key=itemgetter(0)):
        versions = list(sides)
        _, is_new, source_id, seconds, words, rest = versions[-1]
        if len(versions) == 1:
            yield Change(clip_id, source_id, "added" if is_new else "removed", seconds)
        elif versions[0][5] != rest:
            yield Change(clip_id, source_id, "recomputed", seconds)
        elif versions[0][4] != words:
            yield Change(clip_id, source_id, "relabelled", seconds)


def _facts(path: Path) -> Iterator[tuple[str, str, float, bytes, bytes]]:
    """Of each clip of a shard id, source, seconds, and digests of its labels and of all else."""
    for row in Shard(path):
        labels = hashlib.sha256(json.dumps([row[n] for n in _LABELS]).encode())
        content = hashlib.sha256()
        for column in COLUMNS:
            if column not in _LABELS:
                value = row[column]
                content.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        yield row["clip_id"], row["source_id"], row["seconds"], labels.digest(), content.digest()
