"""A release made again from its own manifest: the same settings, sources and models, or what of them is gone.

The sources stand in the release's `sources.jsonl`, whose digest is in the manifest. Work is done at a desk of its own
with a ledger that is thrown away; what is stored of a source in the data folder is taken as it is, since its name says
what it was made from, and what is missing is fetched and computed. The data folder's own ledger and releases stay as
they are: the rebuilt release appears under `rebuilt/releases/`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.clips import clip_id
from pipeline.config import Profile, settings_of
from pipeline.errors import DvmsetError, HostRests, ShardError, SourceError
from pipeline.ledger import Ledger, ReviewRow
from pipeline.process import Desk, Listener
from pipeline.process.rows import Entries, spec_of
from pipeline.shards import release_folder
from pipeline.storage import Store, digest, file_digest

if TYPE_CHECKING:
    from pipeline.release import Release

FOLDER = "rebuilt"  # of the rebuilt releases, in the data folder
_ROOMS = {"vision": "vision", "codec": "codec", "separator": "separate"}  # models in the manifest -> groups of settings


@dataclass(frozen=True)
class Missing:
    """Clips that could not be had again, all of one source.

    Attributes:
        clips: their ids; seconds: their length.
        why: what stands in the way.
    """

    source_id: str
    url: str
    clips: tuple[str, ...]
    seconds: float
    why: str


@dataclass(frozen=True)
class Rebuilt:
    """What came of a rebuild.

    Attributes:
        asked: id of the release that was to be made again.
        release: what was made; None if no clip could be had.
        same, different: names of its shards, by whether they have the digests of the manifest.
        missing: all that is gone, source by source in list order.
        tools: versions then and now of the tools that are others, by name; they may change bytes.
    """

    asked: str
    release: Release | None
    same: tuple[str, ...]
    different: tuple[str, ...]
    missing: tuple[Missing, ...]
    tools: Mapping[str, tuple[str, str]]

    @property
    def whole(self) -> bool:
        """Whether it is the same release, byte for byte."""
        return self.release is not None and self.release.id == self.asked and not self.different

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "asked": self.asked,
            "rebuilt": self.release.id if self.release else None,
            "path": self.release.path if self.release else None,
            "whole": self.whole,
            "shards": {"same": len(self.same), "different": list(self.different)},
            "missing": [vars(m) for m in self.missing],
            "tools": {name: {"then": then, "now": now} for name, (then, now) in self.tools.items()},
        }


def rebuild(
    manifest: str | Path, data: str | Path, *, known: Ledger | None = None, listener: Listener | None = None
) -> Rebuilt:
    """Makes a release again.

    Args:
        manifest: path of its `manifest.json`, with `sources.jsonl` beside it.
        data: data folder; what it holds already is not made again. May be empty.
        known: the ledger of that folder: what was taken down stays out.
        listener: told when a stage begins and ends.

    Raises:
        ShardError: the manifest or the list of sources is missing, damaged or changed by hand.
        DvmsetError: this dvmset has other settings or models than the release was made with, so that nothing of it
            could come out the same.
    """
    said, sources = read_manifest(Path(manifest))
    profile = profile_of(said)
    with tempfile.TemporaryDirectory(prefix="dvmset-rebuild-") as scratch:
        desk = Desk(data, profile, ledger_url=f"sqlite:///{scratch}/ledger.sqlite", listener=listener)
        _check_models(desk, said["models"])
        desk.ledger.add_sources(sources)
        missing = []
        for source in sources:
            why = _taken_down(known, source) or _bring_back(desk, source)
            if lost := _lost(desk, source, why):
                missing.append(lost)
        made = _release(desk, said, sources, len(missing))
        desk.ledger.close()
    then = {entry["name"]: entry["sha256"] for entry in said["shards"]}
    now = {entry["name"]: entry["sha256"] for entry in made.manifest["shards"]} if made else {}
    same = tuple(name for name, sha256 in then.items() if now.get(name) == sha256)
    different = tuple(name for name in then if name not in same)
    return Rebuilt(said["id"], made, same, different, tuple(missing), _other_tools(said["tools"]))


def read_manifest(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A manifest and the sources of its release, in list order.

    Raises:
        ShardError: one of them is missing, damaged or changed by hand.
    """
    path = Path(release_folder(path))
    path = path / "manifest.json" if path.is_dir() else path
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        stated, listed = said["digest"], said["provenance"]["list"]
        name, sha256 = listed["name"], listed["sha256"]
        genuine = stated == digest({key: value for key, value in said.items() if key != "digest"})
    except FileNotFoundError:
        raise ShardError(f"There is no manifest {path}.", hint="Name the manifest.json of a release.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "Name the manifest.json of a release; those made before releases listed their sources can't be rebuilt."
        raise ShardError(f"{path} can't be read as a manifest to rebuild from: {error!r}.", hint=hint) from error
    if not genuine:
        hint = "Take the manifest that the release came with."
        raise ShardError(f"{path} has been changed by hand: its digest isn't that of its content.", hint=hint)
    place = path.parent / name
    if not place.is_file() or file_digest(place) != sha256:
        state = "is not as the manifest says" if place.is_file() else "is missing"
        raise ShardError(f"The list of sources {place} {state}.", hint="Take the one that the release came with.")
    with place.open(encoding="utf-8") as file:
        return said, [json.loads(line) for line in file]


def profile_of(manifest: Mapping[str, Any]) -> Profile:
    """The settings that a release was made with.

    Raises:
        SettingsError: a setting that this dvmset doesn't know.
        DvmsetError: it has some that the release was not made with.
    """
    name, settings = manifest["id"], manifest["settings"]
    profile = settings_of(Profile, settings["values"], (), where=f"the manifest of {name}")
    if profile.digest() != settings["digest"]:
        commit = (manifest.get("git") or {}).get("commit", "")
        raise DvmsetError(
            f"This dvmset has settings that {name} was not made with.",
            hint=f"Use the dvmset that made it{f': commit {commit}' if commit else ''}.",
        )
    return profile


def _check_models(desk: Desk, models: Mapping[str, Mapping[str, str]]) -> None:
    here = desk.files.weights
    if others := [room for room, group in _ROOMS.items() if here[group] != models[room]["digest"]]:
        said = "; ".join(
            f"{room} ({models[room]['id']}): {models[room]['digest'][:12]} then, {here[_ROOMS[room]][:12]} here"
            for room in others
        )
        raise DvmsetError(
            f"The release was made with other weights: {said}.", hint="Put those back; `dvmset doctor` says where."
        )


def _taken_down(known: Ledger | None, source: Mapping[str, Any]) -> str:
    media = source["media"]
    kind = known.tombstone(source["key"], media["sha256"], media["details"]["channel"]) if known else ""
    return {"": "", "key": "taken down", "media": "taken down: the same file", "channel": "taken down: its channel"}[
        kind
    ]


def _bring_back(desk: Desk, source: Mapping[str, Any]) -> str:
    """Makes a source ready, with as little work as need be; returns why it can't be, or ""."""
    name, then = source["source_id"], source["media"]
    row = desk.ledger.source(name)
    place = desk.files.media(row)
    desk.ledger.put_media({"source_id": name, "key": desk.files.media_key(row), "name": place, **then})
    for review in source["reviews"]:
        desk.ledger.add_review(ReviewRow(source_id=name, sha256=then["sha256"], reviewer="", **review))
    try:
        if not desk.has_stored(name) and desk.store.exists(place):
            with desk.store.read(place) as path:
                if file_digest(path) != then["sha256"]:
                    return "its features are gone, and its media in the data folder is another file"
        desk.acquire(name)
        media = desk.ledger.media(name)
        assert media is not None
        if media.sha256 != then["sha256"]:
            desk.store.remove(media.name)
            return f"the site gives another file now ({media.sha256[:12]}, then {then['sha256'][:12]})"
        desk.analyse(name)
        desk.encode(name)
    except SourceError as error:
        return f"{error.error_class}: {error.message}"
    except HostRests as error:
        return f"its host rests: {error.message}"
    return ""


def _lost(desk: Desk, source: Mapping[str, Any], why: str) -> Missing | None:
    """The clips that a source had and has no more."""
    name = source["source_id"]
    there = set() if why else set(desk.ledger.spans_of_clips([name]).get(name, []))
    gone = [(a, b) for a, b in source["clips_ms"] if (a, b) not in there]
    if not gone:
        return None
    clips = tuple(clip_id(name, a, b) for a, b in gone)
    seconds = sum(b - a for a, b in gone) / 1000
    return Missing(name, source["url"], clips, seconds, why or "the rules of this dvmset cut it elsewhere")


def _release(desk: Desk, said: Mapping[str, Any], sources: Sequence[Mapping[str, Any]], missing: int) -> Release | None:
    from pipeline.release import make_release

    clip = next(desk.ledger.ready_clips(), None)
    if clip is None:
        return None
    groups = {source["source_id"]: source["group_id"] for source in sources}
    return make_release(
        Store(desk.store.url(FOLDER)),
        Entries(desk.ledger, desk.files, groups),
        spec=spec_of(clip, desk.files),
        profile=desk.profile,
        funnel=desk.ledger.funnel().as_seconds(),
        provenance={"rebuilt_from": said["id"], "sources_missing": missing, "sources": desk.ledger.states()},
    )


def _other_tools(then: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    from pipeline.release.manifest import tools

    now = tools()
    others = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    return {name: (then.get(name, "none"), now.get(name, "none")) for name in others}
