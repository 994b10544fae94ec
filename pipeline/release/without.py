"""The newest release without some sources: made from its own shards, whatever state ledger and features are in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ledger import TAKEN_DOWN
from pipeline.release.diff import Change
from pipeline.release.draft import Draft
from pipeline.release.files import FOLDER, Release, latest_release, read_release, read_sources, remove_leftovers
from pipeline.release.manifest import check_funnel
from pipeline.shards import Row, Shard
from pipeline.shards.validator import MANIFEST
from pipeline.storage import Store


@dataclass(frozen=True)
class Without:
    """What came of it.

    Attributes:
        release: the newest release now; None if there is none.
        clips, seconds: what it lost; 0 if it held nothing of the sources.
        rewritten: names of the shards that were touched.
    """

    release: Release | None
    clips: int = 0
    seconds: float = 0.0
    rewritten: tuple[str, ...] = ()


def release_without(store: Store, source_ids: Collection[str]) -> Without:
    """Makes a release that is the newest one without some sources; their seconds become taken down in its funnel.

    Shards that hold nothing of them are taken over. If no shard does, no release is made.

    Raises:
        ShardError: a shard of the newest release is missing or damaged.
    """
    remove_leftovers(store)
    parent = latest_release(store)
    if parent is None:
        return Without(None)
    lost = {
        e["name"]: _lost_ms(store, f"{FOLDER}/{parent.id}/{e['name']}", source_ids) for e in parent.manifest["shards"]
    }
    touched = {name: lengths for name, lengths in lost.items() if lengths}
    if not touched:
        return Without(parent)
    draft = Draft(store, parent)
    for entry in parent.manifest["shards"]:
        name = entry["name"]
        if name not in touched:
            draft.take(name)
            continue
        with store.read(f"{FOLDER}/{parent.id}/{name}") as path:
            shard = Shard(path)
            spec = shard.spec
            # Without a key the next release that is made from the features writes it anew, to the same bytes.
            draft.write(name, entry["split"], "", _left(shard, source_ids), spec)
    if parent.manifest["provenance"].get("list"):  # else it was made before releases listed their sources
        draft.list_sources(row for row in read_sources(store, parent) if row["source_id"] not in source_ids)
    clips = sum(map(len, touched.values()))
    lost_ms = sum(map(sum, touched.values()))
    funnel = _funnel(parent.manifest["funnel"], lost_ms)
    check_funnel(funnel)
    manifest = parent.manifest
    release = draft.publish(spec, manifest["settings"], funnel, manifest["provenance"], _taken_down)
    return Without(release, clips, lost_ms / 1000, tuple(touched))


def releases_with(store: Store, source_ids: Collection[str]) -> list[str]:
    """Ids of all releases that hold a row of one of the sources, the newest one among them if it does."""
    found = []
    for name in store.names(FOLDER):
        folder = f"{FOLDER}/{name}"
        if not store.exists(f"{folder}/{MANIFEST}"):
            continue
        shards = [entry["name"] for entry in read_release(store, name).manifest["shards"]]
        there = (f"{folder}/{shard}" for shard in shards if store.exists(f"{folder}/{shard}"))
        if any(_lost_ms(store, shard, source_ids) for shard in there):
            found.append(name)
    return found


def _lost_ms(store: Store, name: str, source_ids: Collection[str]) -> list[int]:
    """Lengths of the clips of a shard that are of the sources."""
    lengths = []
    with store.read(name) as path:
        shard = Shard(path)
        for group in range(shard.row_groups):
            for row in shard.read(group, ["source_id", "start_s", "end_s"]):
                if row["source_id"] in source_ids:
                    lengths.append(round(row["end_s"] * 1000) - round(row["start_s"] * 1000))
    return lengths


def _left(shard: Shard, source_ids: Collection[str]) -> Iterator[Row]:
    return (Row(**row) for row in shard if row["source_id"] not in source_ids)


def _funnel(funnel: dict[str, Any], lost_ms: int) -> dict[str, Any]:
    dropped = dict(funnel["dropped"])
    dropped[TAKEN_DOWN] = (round(dropped.get(TAKEN_DOWN, 0) * 1000) + lost_ms) / 1000
    return {**funnel, "kept": (round(funnel["kept"] * 1000) - lost_ms) / 1000, "dropped": dropped}


def _taken_down(changes: Sequence[Change]) -> Mapping[str, str]:
    return {change.clip_id: "taken down" for change in changes}
