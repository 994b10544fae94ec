"""What a release changed against its parent: which clips came, went or are different, and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.shards import COLUMNS, Shard
from pipeline.storage import Store

CHANGES = "changes.jsonl"
KINDS = ("added", "removed", "relabelled", "recomputed")
UNKNOWN = "not stated"

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


@dataclass(frozen=True)
class Diff:
    """All changes between two releases.

    Attributes:
        parent: id of the one before.
        changes: with a reason each, by clip id.
    """

    parent: str
    changes: Sequence[tuple[Change, str]]

    def summary(self) -> dict[str, Any]:
        """For the manifest: per kind clips, seconds and clips by reason."""
        summary: dict[str, Any] = {"parent": self.parent}
        for kind in KINDS:
            of_kind = [(change, reason) for change, reason in self.changes if change.kind == kind]
            reasons: dict[str, int] = {}
            for _, reason in of_kind:
                reasons[reason] = reasons.get(reason, 0) + 1
            seconds = sum(round(change.seconds * 1000) for change, _ in of_kind) / 1000
            by_count = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
            summary[kind] = {"clips": len(of_kind), "seconds": seconds, "reasons": by_count}
        return summary

    def lines(self) -> str:
        """For `changes.jsonl`: a line per clip."""
        return "".join(
            json.dumps({**vars(c), "reason": reason}, ensure_ascii=False) + "\n" for c, reason in self.changes
        )


def compare(store: Store, parent: str, old: Iterable[str], new: Iterable[str], explain: Explain) -> Diff:
    """Compares the shards that differ.

    Args:
        parent: id of the release before.
        old, new: names in the store of those of its shards, and of the new release's, that aren't the same files.
        explain: gives the reasons.
    """
    before, after = _facts(store, old), _facts(store, new)
    changes = []
    for clip_id in sorted(before.keys() | after.keys()):
        was, now = before.get(clip_id), after.get(clip_id)
        if was is None or now is None:
            source_id, seconds, *_ = now or was or ("", 0.0)
            changes.append(Change(clip_id, source_id, "removed" if now is None else "added", seconds))
        elif was != now:
            kind: Literal["relabelled", "recomputed"] = "relabelled" if was[3] == now[3] else "recomputed"
            changes.append(Change(clip_id, now[0], kind, now[1]))
    reasons = explain(changes)
    return Diff(parent, [(change, reasons.get(change.clip_id, UNKNOWN)) for change in changes])


def _facts(store: Store, names: Iterable[str]) -> dict[str, tuple[str, float, bytes, bytes]]:
    """Per clip its source, its seconds, and digests of its labels and of all else."""
    facts = {}
    for name in names:
        with store.read(name) as path:
            for row in Shard(path):
                labels = hashlib.sha256(json.dumps([row[n] for n in _LABELS]).encode())
                content = hashlib.sha256()
                for column in COLUMNS:
                    if column not in _LABELS:
                        value = row[column]
                        content.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
                facts[row["clip_id"]] = (row["source_id"], row["seconds"], labels.digest(), content.digest())
    return facts
