"""Two releases side by side, wherever they lie: clips, settings, models and tools that are not the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ShardError
from pipeline.release.diff import CHANGES, Change, Explain, compare, read_changes, unexplained
from pipeline.shards import release_folder
from pipeline.shards.validator import MANIFEST, parse_manifest
from pipeline.storage import Store


@dataclass(frozen=True)
class Place:
    """A release in its folder."""

    store: Store
    manifest: Mapping[str, Any]

    @classmethod
    def at(cls, folder: str | Path) -> Place:
        """The release in a folder, or behind an fsspec URL.

        Raises:
            ShardError: there is none, or its manifest can't be read.
        """
        hint = "Name the folder of a release, or its id and --data."
        folder = release_folder(folder)
        if "://" not in folder and not Path(folder).is_dir():
            raise ShardError(f"There is no release {folder}.", hint=hint)
        store = Store(folder)
        if not store.exists(MANIFEST):
            raise ShardError(f"{folder} is no release: it has no {MANIFEST}.", hint=hint)
        try:
            return cls(store, parse_manifest(store.read_text(MANIFEST)))
        except (OSError, ValueError) as error:
            raise ShardError(f"The manifest of {folder} can't be read: {error}.", hint=hint) from error

    @property
    def id(self) -> str:
        """Its name."""
        return str(self.manifest["id"])


def changes_between(old: Place, new: Place) -> Iterator[tuple[Change, str]]:
    """Every clip that is not the same in both, with the reason if the new one descends from the old; by clip id.

    Shards that are the same file in both are not read.
    """

    def shards(one: Place, other: Place) -> Iterator[Any]:
        same = {entry["sha256"] for entry in other.manifest["shards"]}
        return (one.store.read(e["name"]) for e in one.manifest["shards"] if e["rows"] and e["sha256"] not in same)

    return compare(shards(old, new), shards(new, old), _reasons(old, new))


def _reasons(old: Place, new: Place) -> Explain:
    """What the releases from one to the other say of their changes, if they lie side by side; the last word counts."""
    line: list[Place] = []
    place = new
    while place.id != old.id:
        line.append(place)
        beside = f"{str(place.store).rpartition('/')[0]}/{place.manifest['parent']}"
        if place.manifest.get("parent") is None or not place.store.fs.exists(f"{beside}/{MANIFEST}"):
            return unexplained
        place = Place.at(beside)
    known: dict[str, str] = {}
    for step in reversed(line):
        if step.store.exists(CHANGES):
            with step.store.read(CHANGES) as path, path.open(encoding="utf-8") as lines:
                known |= {change.clip_id: reason for change, reason in read_changes(lines)}

    def explain(changes: Sequence[Change]) -> Mapping[str, str]:
        return {change.clip_id: known[change.clip_id] for change in changes if change.clip_id in known}

    return explain


def differences(old: Place, new: Place) -> dict[str, dict[str, dict[str, Any]]]:
    """Settings, models and tools that differ: `then` and `now` by dotted name."""
    parts = {
        "settings": lambda manifest: _flat(manifest["settings"].get("values", {})),
        "models": lambda manifest: _flat(manifest.get("models", {})),
        "tools": lambda manifest: manifest.get("tools", {}),
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for part, values_of in parts.items():
        then, now = values_of(old.manifest), values_of(new.manifest)
        names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
        found[part] = {name: {"then": then.get(name), "now": now.get(name)} for name in names}
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
