"""The newest release without some sources: made from its own shards, whatever state ledger and features are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ledger import TAKEN_DOWN
from pipeline.release.diff import Change
from pipeline.release.draft import Draft
from pipeline.release.files import FOLDER, Release, latest_release, read_sources, remove_leftovers
from pipeline.release.manifest import check_funnel
from pipeline.release.traces import TAKEN, Wanted, rows_ms, traces
from pipeline.shards import Row, Shard
from pipeline.storage import Store

# Of the parent's provenance, what doesn't count sources.
_STAYS = ("command", "lists", "models", "rebuilt_from", "sources_missing")


@dataclass(frozen=True)
class Without:
    """What came of it.

    Attributes:
        release: the newest release now; None if there is none.
        clips, seconds: what it lost; 0 if it held no row of the sources.
        rewritten: names of the shards that were touched.
        renewed: names of its other files that named one of the sources, and were made anew.
    """

    release: Release | None
    clips: int = 0
    seconds: float = 0.0
    rewritten: tuple[str, ...] = ()
    renewed: tuple[str, ...] = ()


def release_without(
    store: Store,
    wanted: Wanted,
    *,
    figures: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    funnel: Mapping[str, Any] | None = None,
) -> Without:
    """Makes a release that is the newest one without some sources; their seconds become taken down in its funnel.

    Shards that hold nothing of them are taken over. If no shard does, but another file names one of them (the report
    shows stretches that were dropped), the release keeps its id and its place in the line, and all but the shards is
    made anew. If nothing does, nothing is done.

    Args:
        figures: gives, from the manifest, what the ledger says of the sources now: it takes the place of what the
            parent's provenance says of them.
        funnel: the ledger's, taken if it keeps just what the release does; else the parent's goes on.

    Raises:
        ShardError: a shard or list of the newest release is missing or damaged.
    """
    remove_leftovers(store)
    parent = latest_release(store)
    if parent is None:
        return Without(None)
    manifest, place = parent.manifest, f"{FOLDER}/{parent.id}"
    lost = {entry["name"]: rows_ms(store, f"{place}/{entry['name']}", wanted) for entry in manifest["shards"]}
    touched = {name: lengths for name, lengths in lost.items() if lengths}
    renewed = tuple(name for name in traces(store, parent.id, wanted) if name not in touched)
    if not touched and not renewed:
        return Without(parent)
    draft = Draft(store, parent)
    for entry in manifest["shards"]:
        name = entry["name"]
        if name not in touched:
            draft.take(name)
            continue
        with store.read(f"{place}/{name}") as path:
            shard = Shard(path)
            # Without a key the next release that is made from the features writes it anew, to the same bytes.
            draft.write(name, entry["split"], "", _left(shard, wanted), shard.spec)
    with store.read(f"{place}/{manifest['shards'][0]['name']}") as path:
        spec = Shard(path).spec
    if manifest["provenance"].get("list"):  # else it was made before releases listed their sources
        listed = read_sources(store, parent)
        draft.list_sources(row for row in listed if not wanted.is_source(row["source_id"], row.get("key", "")))
    clips = sum(map(len, touched.values()))
    lost_ms = sum(map(sum, touched.values()))
    left = _funnel(manifest["funnel"], lost_ms, funnel)
    check_funnel(left)
    provenance = {name: said for name, said in manifest["provenance"].items() if name in _STAYS} | {**figures(manifest)}
    release = draft.publish(spec, manifest["settings"], left, provenance, _taken_down, without=wanted)
    return Without(release, clips, lost_ms / 1000, tuple(touched), renewed)


def _left(shard: Shard, wanted: Wanted) -> Iterator[Row]:
    return (Row(**row) for row in shard if not wanted.is_source(row["source_id"], row["url"]))


def _funnel(funnel: Mapping[str, Any], lost_ms: int, now: Mapping[str, Any] | None) -> dict[str, Any]:
    kept_ms = round(funnel["kept"] * 1000) - lost_ms
    if now is not None and round(now["kept"] * 1000) == kept_ms:
        return dict(now)
    dropped = dict(funnel["dropped"])
    if lost_ms:
        dropped[TAKEN_DOWN] = (round(dropped.get(TAKEN_DOWN, 0) * 1000) + lost_ms) / 1000
    return {**funnel, "kept": kept_ms / 1000, "dropped": dropped}


def _taken_down(changes: Sequence[Change]) -> Mapping[str, str]:
    return {change.clip_id: TAKEN for change in changes}
