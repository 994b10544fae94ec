"""Takedowns: a source leaves media, curves, features, ledger and releases, stays out for ever, and leaves a receipt.

The order of the steps is such that an interrupted takedown has kept the source out already, and the same command
finishes it, with a receipt over all of it: tombstones, what is there is counted, releases, files, receipt, rows.
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
from pipeline.ledger.takedowns import channel_key
from pipeline.process import RELEASE, Worker
from pipeline.process.duplicates import group_sources
from pipeline.process.provenance import figures
from pipeline.rebuild import FOLDER as REBUILT
from pipeline.release import Release, Wanted, latest_release, release_without, releases_with
from pipeline.release.files import FOLDER
from pipeline.release.traces import rows_ms
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
        before: key by id of what was taken down before, as receipts tell: older releases may still hold it.
    """

    request: Request
    found: list[tuple[SourceRow, MediaRow | None]]
    keys: list[str]
    channel: str
    before: dict[str, str]

    @property
    def source_ids(self) -> list[str]:
        """Ids of the sources it takes."""
        return [source.source_id for source, _ in self.found]

    @property
    def wanted(self) -> Wanted:
        """All that no release may hold."""
        return Wanted(frozenset([*self.source_ids, *self.before]), frozenset([*self.keys, *self.before.values()]))

    @property
    def mark(self) -> str:
        """Where what is there is written down until the receipt is: an interrupted takedown of the same has it, too."""
        same = digest([sorted(self.source_ids), sorted(self.keys), channel_key(self.channel)])
        return f"{RECEIPTS}/{same[:16]}.begun"


def plan_takedown(store: Store, ledger: Ledger, request: Request) -> Plan:
    """Finds what a request is about; changes nothing.

    Raises:
        DvmsetError: an id that is not in the ledger nor in a receipt, or an address, list or receipt that can't be
            read.
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
    before = {name: key for name, key in _taken_before(store, request, keys).items() if name not in known}
    if missing := [name for name in request.source_ids if name not in known and name not in before]:
        raise DvmsetError(
            f"There is no source {', '.join(missing)} in this ledger.", hint="Name it by --url to keep it out anyway."
        )
    if not (found or before or keys or request.channel):
        raise DvmsetError("The request names no source.", hint="Give --source, --url, --channel or --list.")
    keys = list(dict.fromkeys([*keys, *(source.key for source, _ in found)]))
    return Plan(request, found, keys, request.channel, before)


def _taken_before(store: Store, request: Request, keys: Sequence[str]) -> dict[str, str]:
    """Key by id of the sources of earlier receipts that a request is about, with all sections and copies."""
    found: dict[str, str] = {}
    for name in store.names(RECEIPTS):
        if not name.endswith(".json"):
            continue
        try:
            receipt = json.loads(store.read_text(f"{RECEIPTS}/{name}"))
            sources = receipt["sources"]
            whole = bool(request.channel) and channel_key(receipt["asked"]["channel"]) == channel_key(request.channel)
            videos = {s["key"] for s in sources if whole or s["source_id"] in request.source_ids or s["key"] in keys}
            files = {s["sha256"] for s in sources if s["key"] in videos} - {None}
            found |= {s["source_id"]: s["key"] for s in sources if s["key"] in videos or s["sha256"] in files}
        except (ValueError, KeyError, TypeError) as error:
            where = store.url(f"{RECEIPTS}/{name}")
            raise DvmsetError(f"The receipt {where} can't be read: {error!r}.", hint="Move it away.") from error
    return found


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
    ids, wanted = plan.source_ids, plan.wanted
    digests = [media.sha256 for _, media in plan.found if media]
    tombstones = ledger.bury(plan.keys, digests, plan.channel)
    found = releases_with(store, wanted) | releases_with(store, wanted, f"{REBUILT}/{FOLDER}")
    if not store.exists(plan.mark):
        store.write_text(plan.mark, json.dumps(_count(store, plan, found), indent=1) + "\n")
    begun = json.loads(store.read_text(plan.mark))
    if newest := latest_release(store):
        ledger.put_release(*newest.record, late=True)
    made = release_without(
        store, wanted, figures=partial(_figures, ledger), funnel=ledger.funnel().as_seconds()
    ).release
    if made:
        ledger.put_release(*made.record)
    older = {path: files for path, files in found.items() if made is None or path != f"{FOLDER}/{made.id}"}
    if purge:
        for path in older:
            store.remove(path)
    for path in _files(store, ids):
        store.fs.rm(path)
    forget(store, ids)
    with ledger.erased(ids) as rows:  # for good when the receipt is there
        receipt = _receipt(store, plan, begun, made, older, rows, tombstones)
        text = json.dumps(receipt, indent=1, ensure_ascii=False) + "\n"
        name = f"{RECEIPTS}/{receipt['at'].replace(':', '')[:17]}Z-{receipt['digest'][:12]}.json"
        store.write_text(name, text)
    store.remove(plan.mark)
    return {**receipt, "path": store.url(name)}


def is_genuine(receipt: dict[str, Any]) -> bool:
    """Whether a receipt, as read from its file, is as it was written."""
    return receipt.get("digest") == digest({key: value for key, value in receipt.items() if key != "digest"})


def _count(store: Store, plan: Plan, found: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What is there of the sources before anything goes; `found` is what holds or names them, by release."""
    newest = latest_release(store)
    place = f"{FOLDER}/{newest.id}" if newest else ""
    names = found.get(place, ())
    shards = [name for name in names if name.endswith(".parquet")]
    lengths = [length for name in shards for length in rows_ms(store, f"{place}/{name}", plan.wanted)]
    sizes = [int(store.fs.size(path)) for path in _files(store, plan.source_ids)]
    return {
        "at": now().isoformat(timespec="seconds"),
        "files": {"count": len(sizes), "bytes": sum(sizes)},
        "release": {
            "clips_removed": len(lengths),
            "seconds_removed": sum(lengths) / 1000,
            "shards_rewritten": shards,
            "files_renewed": [name for name in names if name not in shards],
        },
        "releases": sorted(found),
    }


def _receipt(
    store: Store,
    plan: Plan,
    begun: Mapping[str, Any],
    made: Release | None,
    older: Mapping[str, Sequence[str]],
    rows: Mapping[str, int],
    tombstones: Iterable[tuple[str, str]],
) -> dict[str, Any]:
    receipt: dict[str, Any] = {
        "at": begun["at"],
        "asked": {
            "sources": list(plan.request.source_ids),
            "urls": list(plan.request.urls),
            "channel": plan.request.channel,
            "lists": [path.name for path in plan.request.lists],
        },
        "sources": [_describe(source, media) for source, media in plan.found],
        "taken_down_before": sorted(plan.before),
        "files": begun["files"],
        "release": {
            "id": made.id if made else None,
            "parent": made.manifest["parent"] if made else None,
            **begun["release"],
        },
        "older_releases": {
            "purged": sorted(path for path in {*begun["releases"], *older} if not store.exists(path)),
            "still_hold": {path: list(files) for path, files in older.items() if store.exists(path)},
        },
        "rows": dict(rows),
        "tombstones": [{"kind": kind, "value": value} for kind, value in tombstones],
    }
    return {**receipt, "digest": digest(receipt)}


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


def _files(store: Store, source_ids: Sequence[str]) -> list[str]:
    """Every file that is named after one of the sources."""
    wanted = set(source_ids)
    places = [path for path in store.fs.ls(store.root, detail=False) if store.fs.isdir(path)]
    files = (file for path in places if path.rsplit("/", 1)[-1] not in _KEPT for file in store.fs.find(path))
    return [file for file in files if file.rsplit("/", 1)[-1][:16] in wanted]
