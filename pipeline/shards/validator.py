"""Checking a release against its manifest, down to every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError
from pipeline.faces import said
from pipeline.shards.latest import release_folder
from pipeline.shards.reader import Shard
from pipeline.shards.schema import SCHEMA_VERSION, Spec, row_problems
from pipeline.storage import digest, file_digest, local_folder

MANIFEST = "manifest.json"
SHARD_KEYS = ("name", "split", "rows", "seconds", "sources", "groups", "bytes", "sha256", "key")
_NEEDED = ("id", "digest", "shards", "splits", "settings")
_PARTS: dict[str, Any] = {
    **{"id": str, "digest": str, "shards": list, "splits": dict, "settings": dict},
    **dict.fromkeys(("files", "provenance", "funnel", "models", "tools"), dict),
    "faces": dict | list,  # a list in older ones
}
_SUMS = {"clips": "rows", "seconds": "seconds", "sources": "sources", "groups": "groups", "bytes": "bytes"}


def release_digest(shards: Iterable[str], settings: str) -> str:
    """SHA-256 over the digests of a release's shards, in the manifest's order, and of its settings."""
    return digest([list(shards), settings])


def release_id(release: str) -> str:
    """The name of a release, from its digest."""
    return f"r-{release[:12]}"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a release.

    Attributes:
        file: name within the folder; row: index within the shard, None if it isn't about one row.
        clip_id: of the row, if it could be read; column: "" if it isn't about one column.
    """

    file: str
    why: str
    row: int | None = None
    clip_id: str = ""
    column: str = ""

    def __str__(self) -> str:
        place = [self.file]
        if self.row is not None:
            place.append(f"row {self.row}" + (f" ({self.clip_id})" if self.clip_id else ""))
        return f"{', '.join(place)}: {f'{self.column} ' if self.column else ''}{self.why}"


@dataclass(frozen=True)
class Report:
    """What `validate` found.

    Attributes:
        problems: all of them: of the manifest first, then shard by shard in the order of rows.
        shards, rows, seconds: how much was read.
    """

    problems: tuple[Problem, ...]
    shards: int
    rows: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def first_bad_row(self) -> Problem | None:
        """The first problem that is about a row."""
        return next((p for p in self.problems if p.row is not None), None)


def validate(folder: str | Path, *, threads: int = 2) -> Report:
    """Checks a release: digests, schema version, shapes against seconds, finite floats, codes, ids, splits, counts.

    Reads every byte once for its digest and once for its rows, a row group at a time. Only ids and groups are kept
    in memory: about 200 MB for a million clips.

    Args:
        folder: of the release, or `latest`; one that lies elsewhere, by its URL, is copied here first.
        threads: shards checked side by side.

    Raises:
        ShardError: there is no such folder.
    """
    with local_folder(release_folder(folder)) as place:
        if not place.is_dir():
            raise ShardError(f"There is no folder {folder}.", hint="Name the folder of a release.")
        return _validate(place, threads)


def _validate(folder: Path, threads: int) -> Report:
    manifest, problems = _read_manifest(folder)
    listed = {entry["name"]: entry for entry in manifest.get("shards", [])}
    there = {path.name for path in folder.glob("*.parquet")}
    problems += [Problem(name, "is in the manifest, but not in the folder") for name in sorted(listed.keys() - there)]
    if manifest:  # else all of them would be named
        unlisted = sorted(there - listed.keys())
        problems += [Problem(name, "is in the folder, but not in the manifest") for name in unlisted]
    with ThreadPoolExecutor(threads) as pool:
        shards = list(pool.map(lambda name: _check_shard(folder / name, listed.get(name)), sorted(there)))
    problems += [problem for shard in shards for problem in shard.problems]
    problems += _check_across(shards)
    problems += _check_totals(manifest)
    problems += _check_others(folder, manifest)
    seconds = sum(shard.milliseconds for shard in shards) / 1000
    return Report(tuple(problems), len(shards), sum(shard.rows for shard in shards), seconds)


@dataclass
class _Facts:
    """What one shard adds to what must hold across all."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    spec: Spec | None = None
    rows: int = 0
    milliseconds: int = 0
    clip_ids: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)  # group_id -> split
    sources: set[str] = field(default_factory=set)


def parse_manifest(text: str) -> dict[str, Any]:
    """A manifest, of whose parts each is of the kind that it should be; what they say isn't checked.

    Raises:
        ValueError: it is none; says why.
    """
    manifest = json.loads(text)
    if not isinstance(manifest, dict):
        raise ValueError("it is no JSON object")
    for name, kinds in _PARTS.items():
        if name not in manifest and name in _NEEDED:
            raise ValueError(f"it has no {name}")
        if name in manifest and not isinstance(manifest[name], kinds):
            raise ValueError(f"its {name} can't be {json.dumps(manifest[name])[:40]}")
    if not isinstance(manifest["settings"].get("digest"), str):
        raise ValueError("its settings have no digest")
    for entry in manifest["shards"]:
        if missing := [key for key in SHARD_KEYS if not isinstance(entry, dict) or key not in entry]:
            raise ValueError(f"one of its shards has no {', '.join(missing)}")
    files = manifest.get("files", {})
    for part, key in ((manifest["splits"], "clips"), (files, "sha256")):
        if bad := [name for name, entry in part.items() if not isinstance(entry, dict) or key not in entry]:
            raise ValueError(f"{bad[0]} has no {key} in it")
    names = [*(entry["name"] for entry in manifest["shards"]), *files, *manifest.get("faces", ())]
    if outside := [name for name in names if not isinstance(name, str) or {"", ".."} & {*name.split("/")}]:
        raise ValueError(f"{outside[0]!r} is no file of a release")
    return manifest


def _read_manifest(folder: Path) -> tuple[dict[str, Any], list[Problem]]:
    try:
        manifest = parse_manifest((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, [Problem(MANIFEST, "is missing, so this is no release, or one that was never finished")]
    except (OSError, ValueError) as error:
        return {}, [Problem(MANIFEST, f"can't be read as a manifest: {error}")]
    stated, settings = manifest["digest"], manifest["settings"]["digest"]
    problems = []
    if manifest.get("schema_version") != SCHEMA_VERSION:
        version = manifest.get("schema_version")
        problems.append(Problem(MANIFEST, f"has schema version {version}; this dvmset reads {SCHEMA_VERSION}"))
    if stated != digest({key: value for key, value in manifest.items() if key != "digest"}):
        problems.append(Problem(MANIFEST, "has been changed by hand: its digest isn't that of its content"))
    if manifest["id"] != release_id(release_digest((e["sha256"] for e in manifest["shards"]), settings)):
        problems.append(Problem(MANIFEST, f"the id {manifest['id']} isn't that of these shards and settings"))
    return manifest, problems


def _check_shard(path: Path, entry: dict[str, Any] | None) -> _Facts:
    facts = _Facts(path.name)
    if entry is not None:
        facts.problems += [Problem(path.name, why) for why in _file_problems(path, entry)]
    try:
        shard = Shard(path)
    except ShardError as error:
        facts.problems.append(Problem(path.name, error.message))
        return facts
    facts.spec = shard.spec
    first = 0
    for group in range(shard.row_groups):
        try:
            rows = shard.read(group)
        except ShardError as error:
            where = f"is damaged in rows {first} to {first + shard.group_rows(group) - 1}"
            for column, why in shard.damage(group) or [("", error.message)]:
                facts.problems.append(Problem(path.name, f"{where}: {why}", first, column=column))
        else:
            _check_rows(facts, first, rows, entry["split"] if entry is not None else None)
        first += shard.group_rows(group)
    if entry is not None and not facts.problems:
        counts = {
            "rows": facts.rows,
            "seconds": facts.milliseconds / 1000,
            "sources": len(facts.sources),
            "groups": len(facts.groups),
        }
        wrong = [(key, n) for key, n in counts.items() if entry[key] != n]
        facts.problems += [Problem(path.name, f"has {n} {key}; the manifest says {entry[key]}") for key, n in wrong]
    return facts


def _file_problems(path: Path, entry: dict[str, Any]) -> Iterator[str]:
    if "bytes" in entry and (size := path.stat().st_size) != entry["bytes"]:
        yield f"has {size} bytes; the manifest says {entry['bytes']}"
    elif (sha256 := file_digest(path)) != entry["sha256"]:
        yield f"has SHA-256 {sha256[:12]}...; the manifest says {entry['sha256'][:12]}..."


def _check_rows(facts: _Facts, first: int, rows: list[dict[str, Any]], split: str | None) -> None:
    assert facts.spec is not None
    for index, row in enumerate(rows, start=first):

        def problem(column: str, why: str, index: int = index, clip: str = row["clip_id"]) -> None:
            facts.problems.append(Problem(facts.name, why, index, clip, column))

        found = list(row_problems(row, facts.spec))
        for column, why in found:
            problem(column, why)
        if facts.clip_ids and row["clip_id"] < facts.clip_ids[-1]:
            problem("clip_id", f"comes after {facts.clip_ids[-1]}; rows must ascend by clip_id")
        if split is not None and row["split"] != split:
            problem("split", f"is {row['split']!r} in a shard of {split}")
        if (other := facts.groups.setdefault(row["group_id"], row["split"])) != row["split"]:
            problem("group_id", f"{row['group_id']} is in {other} as well as in {row['split']}")
        facts.clip_ids.append(row["clip_id"])
        facts.sources.add(row["source_id"])
        facts.rows += 1
        if not found:
            facts.milliseconds += round(row["end_s"] * 1000) - round(row["start_s"] * 1000)


def _check_across(shards: list[_Facts]) -> Iterator[Problem]:
    """What no shard can tell alone: ids that repeat, groups in two splits, shards that differ in their spec."""
    ids: set[str] = set()
    groups: dict[str, tuple[str, str]] = {}
    specs = {facts.name: facts.spec for facts in shards if facts.spec is not None}
    first = next(iter(specs), "")
    for facts in shards:
        repeated = [c for c, n in Counter(facts.clip_ids).items() if n > 1 or c in ids]
        for clip in repeated:
            row = len(facts.clip_ids) - 1 - facts.clip_ids[::-1].index(clip)
            yield Problem(facts.name, "is in this release twice", row, clip, "clip_id")
        ids.update(facts.clip_ids)
        for group, split in facts.groups.items():
            other, where = groups.setdefault(group, (split, facts.name))
            if other != split:
                yield Problem(facts.name, f"{group} is in {split}, and in {where} it is in {other}", column="group_id")
        if facts.spec is not None and facts.spec != specs[first]:
            yield Problem(facts.name, f"was made with other models, widths or settings than {first}")


def _check_others(folder: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    """What lies beside the shards: files with their digests, and those that were made from the manifest."""
    files = dict(manifest.get("files", {}))
    if listed := manifest.get("provenance", {}).get("list"):  # older releases have its digest nowhere else
        files.setdefault(listed["name"], listed)
    for name, entry in files.items():
        if not (folder / name).is_file():
            yield Problem(name, "is in the manifest, but not in the folder")
        else:
            yield from (Problem(name, why) for why in _file_problems(folder / name, entry))
    faces = manifest.get("faces", {})
    for name in faces:
        if not (folder / name).is_file():
            yield Problem(name, "is in the manifest, but not in the folder")
            continue
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        if manifest["digest"] not in text:
            yield Problem(name, "was made from another manifest than the one beside it, so its figures may be others")
        elif isinstance(faces, dict) and said(text, manifest["digest"]) != faces[name]:
            yield Problem(name, "has been changed since it was made from the manifest")


def _check_totals(manifest: dict[str, Any]) -> Iterator[Problem]:
    """Whether the sums per split are those of the shards."""
    for split, totals in manifest.get("splits", {}).items():
        shards = [entry for entry in manifest["shards"] if entry["split"] == split]
        for key, of_shard in _SUMS.items():
            total = round(sum(entry[of_shard] for entry in shards), 3)
            if totals.get(key) != total:
                yield Problem(MANIFEST, f"says {totals.get(key)} {key} in {split}; its shards sum up to {total}")
