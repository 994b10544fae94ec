"""Takedowns: a source leaves media, curves, features, ledger and releases, stays out for ever, and leaves a receipt.

The order of the steps is such that an interrupted takedown has kept the source out already, and the same command
finishes it: tombstones, releases, files, rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import ReleaseSettings
from pipeline.errors import DvmsetError
from pipeline.fingerprint import forget
from pipeline.ledger import Ledger, MediaRow, SourceRow, now
from pipeline.process import RELEASE, Worker
from pipeline.process.duplicates import group_sources
from pipeline.process.provenance import figures
from pipeline.rebuild import FOLDER as REBUILT
from pipeline.release import Wanted, release_without, releases_with
from pipeline.release.files import FOLDER
from pipeline.sources import Source, canonical_key, iter_list
from pipeline.storage import Store, digest

RECEIPTS = "takedowns"
LEASE_S = 120.0  # of a takedown that dies
_KEPT = (FOLDER, REBUILT, RECEIPTS)  # folders whose files are not named after a source


@dataclass(frozen=True)
class Request:
    """What somebody wants to be taken down.

    Attributes:
        source_ids, urls: videos, known by either; channel: all videos of one.
        lists: source lists, every row of which is meant.
    """

    source_ids: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    channel: str = ""
    lists: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a request comes to.

    Attributes:
        found: the sources it takes, with all sections and byte-for-byte copies of their videos.
        keys: videos that are kept out, known here or not.
        channel: kept out as well, or "".
    """

    request: Request
    found: list[tuple[SourceRow, MediaRow | None]]
    keys: list[str]
    channel: str

    @property
    def source_ids(self) -> list[str]:
        """Ids of the sources it takes."""
        return [source.source_id for source, _ in self.found]


def plan_takedown(ledger: Ledger, request: Request) -> Plan:
    """Finds what a request is about; changes nothing.

    Raises:
        DvmsetError: an id that is not in the ledger, or an address or list that can't be read.
    """
    keys = [canonical_key(url) for url in request.urls]
    for path in request.lists:
        for row in iter_list(path):
            if not isinstance(row, Source):  # nothing that somebody wants to be taken down may be passed over
                where = f"{row.file}:{row.line}: {row.reason}"
                raise DvmsetError(f"A row can't be read, and nothing was changed ({where}).", hint="Mend the list.")
            keys.append(row.key)
    found = ledger.find(source_ids=request.source_ids, keys=keys, channel=request.channel)
    known = {source.source_id for source, _ in found}
    if missing := [name for name in request.source_ids if name not in known]:
        raise DvmsetError(
            f"There is no source {', '.join(missing)} in this ledger.", hint="Name it by --url to keep it out anyway."
        )
    if not (found or keys or request.channel):
        raise DvmsetError("The request names no source.", hint="Give --source, --url, --channel or --list.")
    return Plan(request, found, list(dict.fromkeys([*keys, *(source.key for source, _ in found)])), request.channel)


@contextmanager
def nobody_at_work(ledger: Ledger, plan: Plan) -> Iterator[None]:
    """Keeps other workers off the sources of a plan, and off releases, for the block.

    Raises:
        DvmsetError: one is at work on such a source, and would bring back what is removed.
    """
    worker = Worker(ledger, LEASE_S)
    try:
        for source_id in plan.source_ids:
            if not worker.take(source_id):
                who = ledger.leases().get(source_id, "another worker")
                raise DvmsetError(f"{who} is at work on {source_id}; nothing was changed.", hint="Try again later.")
        with worker.alone(RELEASE):
            yield
    finally:
        worker.give_all_back()


def take_down(store: Store, ledger: Ledger, plan: Plan, *, purge: bool) -> dict[str, Any]:
    """Does it. The data folder's lock is held, and the leases on its sources and on releases.

    Args:
        purge: older and rebuilt releases that hold rows of the sources, or name them, are deleted as a whole.

    Returns:
        The receipt, as it lies in `takedowns/`.

    Raises:
        ShardError: a file of a release is missing or damaged; nothing but the tombstones is there yet.
    """
    ids = plan.source_ids
    digests = [media.sha256 for _, media in plan.found if media]
    tombstones = ledger.bury(plan.keys, digests, plan.channel)
    wanted = Wanted(frozenset(ids), frozenset(plan.keys))
    found = releases_with(store, wanted) | releases_with(store, wanted, f"{REBUILT}/{FOLDER}")
    without = release_without(store, wanted, figures=partial(_figures, ledger), funnel=ledger.funnel().as_seconds())
    made = without.release
    if made and made.changed:
        ledger.put_release(made.id, made.digest, made.manifest["parent"] or "", made.clips, made.seconds)
    older = {path: files for path, files in found.items() if made is None or path != f"{FOLDER}/{made.id}"}
    if purge:
        for path in older:
            store.remove(path)
    files, size = _remove_files(store, ids)
    forget(store, ids)
    receipt: dict[str, Any] = {
        "at": now().isoformat(timespec="seconds"),
        "asked": {
            "sources": list(plan.request.source_ids),
            "urls": list(plan.request.urls),
            "channel": plan.request.channel,
            "lists": [path.name for path in plan.request.lists],
        },
        "sources": [_describe(source, media) for source, media in plan.found],
        "files": {"count": files, "bytes": size},
        "release": {
            "id": made.id if made else None,
            "parent": made.manifest["parent"] if made else None,
            "clips_removed": without.clips,
            "seconds_removed": without.seconds,
            "shards_rewritten": list(without.rewritten),
            "files_renewed": list(without.renewed),
        },
        "older_releases": {"purged": sorted(older) if purge else [], "still_hold": {} if purge else older},
        "rows": ledger.erase(ids),
        "tombstones": [{"kind": kind, "value": value} for kind, value in tombstones],
    }
    receipt["digest"] = digest(receipt)
    name = f"{RECEIPTS}/{receipt['at'].replace(':', '')[:17]}Z-{receipt['digest'][:12]}.json"
    store.write_text(name, json.dumps(receipt, indent=1, ensure_ascii=False) + "\n")
    return {**receipt, "path": store.url(name)}


def is_genuine(receipt: dict[str, Any]) -> bool:
    """Whether a receipt, as read from its file, is as it was written."""
    return receipt.get("digest") == digest({key: value for key, value in receipt.items() if key != "digest"})


def _figures(ledger: Ledger, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the card of a release says of the sources, now that some are on their way out."""
    settings = ReleaseSettings.model_validate(manifest["settings"]["values"]["release"])
    return figures(ledger, settings, group_sources(ledger, settings.shared_s))


def _describe(source: SourceRow, media: MediaRow | None) -> dict[str, Any]:
    return {
        "source_id": source.source_id,
        "key": source.key,
        "url": source.url,
        "sha256": media.sha256 if media else None,
        "seconds": media.duration_ms / 1000 if media else 0.0,
    }


def _remove_files(store: Store, source_ids: Sequence[str]) -> tuple[int, int]:
    """Removes every file that is named after one of the sources; returns how many, and their bytes."""
    wanted = set(source_ids)
    count = size = 0
    for path in _files(store):
        if path.rsplit("/", 1)[-1][:16] in wanted:
            size += int(store.fs.size(path))
            count += 1
            store.fs.rm(path)
    return count, size


def _files(store: Store) -> Iterable[str]:
    for folder in store.fs.ls(store.root, detail=False):
        if store.fs.isdir(folder) and folder.rsplit("/", 1)[-1] not in _KEPT:
            yield from store.fs.find(folder)
