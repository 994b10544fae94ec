"""A refresh: the lists and the sites against the ledger. What follows from it is the work of `process.Desk`.

Run it for months: a refresh over unchanged lists and quiet sites writes nothing but when the sites were asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.config import FetchSettings
from pipeline.errors import DvmsetError, HostRests, SourceError
from pipeline.ledger import ListChanges, SourceRow, now
from pipeline.ledger.upstream import GONE_CLASSES
from pipeline.process import Desk
from pipeline.process.provenance import note_lists
from pipeline.sources import BadRow, Source, iter_list

log = logging.getLogger(__name__)

Probe = Callable[[Source, FetchSettings], dict[str, Any]]  # `pipeline.fetch.probe`
Held = Callable[[str], AbstractContextManager[object]]  # of an address; `nullcontext` holds nothing


@dataclass
class SiteChanges:
    """What the sites answered.

    Attributes:
        asked: sources they were asked for.
        gone, returned, changed: those that are so since they were asked before.
        silent: those of which nothing was learnt, as their site didn't answer or refused.
        resting: hosts that were left alone, because they had asked for fewer requests.
    """

    asked: int = 0
    gone: int = 0
    returned: int = 0
    changed: int = 0
    silent: int = 0
    resting: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Findings:
    """What a refresh found, and what there is to do.

    Attributes:
        bad_rows: rows of the lists that are no sources.
        revived: sources that were duplicates of one that is out now.
        pending: ids of the sources with work left, in list order.
    """

    lists: ListChanges
    bad_rows: int
    sites: SiteChanges
    revived: int
    pending: list[str]


def look_around(
    desk: Desk,
    lists: Sequence[str | Path],
    *,
    on_bad_row: Callable[[BadRow], None] | None = None,
    probe: Probe | None = None,
    held: Held = nullcontext,
) -> Findings:
    """Compares the lists and a few sites with the ledger, and takes note of all that changed.

    Args:
        desk: whose lock is held.
        lists: all source lists of the data folder: what is in none of them was removed.
        on_bad_row: told of rows that are no sources.
        probe: asks a site for a source; `pipeline.fetch.probe` by default.
        held: manners across workers, entered for each question (`flows.limits`).

    Raises:
        DvmsetError: a list can't be read, or lacks so much that it must be a mistake; nothing was changed.
    """
    rows = _Rows(lists, on_bad_row)
    settings = desk.profile.refresh
    changes = desk.ledger.take_list(map(vars, rows), whole=True, most_removed=settings.most_removed)
    note_lists(desk.ledger, lists)
    sites = ask_sites(desk, probe, held)
    revived = desk.ledger.revive_duplicates()
    return Findings(changes, rows.bad, sites, revived, desk.pending())


def ask_sites(desk: Desk, probe: Probe | None = None, held: Held = nullcontext) -> SiteChanges:
    """Asks the sites for those sources that they were longest not asked for, as many as the settings allow.

    Nothing is concluded from trouble with the network, and a host that asks for fewer requests is left alone.
    """
    from pipeline.fetch import probing

    ask = probe or probing.probe
    settings = desk.profile.refresh
    changes = SiteChanges()
    for row in desk.ledger.rotation(settings.probes, now() - timedelta(days=settings.probe_days)):
        try:
            with held(row.url), desk.hosts.turn(row.url):
                seen = ask(_source(row), desk.profile.fetch)
        except HostRests as error:
            changes.resting.add(error.host)
            continue
        except SourceError as error:
            log.info("%s: %s", row.source_id, error)
            kind = desk.ledger.missed(row.source_id, error.error_class, withhold=settings.gone == "drop")
            changes.silent += error.error_class not in GONE_CLASSES
        else:
            kind = desk.ledger.saw(row.source_id, seen["revision"])
        changes.asked += 1
        if kind:
            setattr(changes, kind, getattr(changes, kind) + 1)
    return changes


def summary(desk: Desk, found: Findings, diff: dict[str, Any] | None, release: str) -> str:
    """A refresh as Markdown: what changed outside, where the seconds are, what the release changed.

    Args:
        diff: of the release that was made (`Release.diff`); None if none was made, or it is the first.
        release: its id, or of the one that stays.
    """
    lists, sites = found.lists, found.sites
    funnel, survival = desk.ledger.funnel().as_seconds(), desk.ledger.survival()
    lines = [
        f"# {desk.store}: release {release or '(none)'}",
        "",
        f"Lists: {lists.listed} sources, {lists.new} new, {lists.relabelled} changed, {lists.removed} removed, "
        f"{lists.restored} restored, {lists.refused_count} refused because they were taken down, "
        f"{found.bad_rows} bad rows.",
        "",
        f"Sites: asked for {sites.asked} sources; {sites.gone} gone, {sites.returned} back, {sites.changed} changed, "
        f"{sites.silent} gave no answer.",
        "",
        "| seconds | |",
        "|---:|---|",
        f"| {funnel['fetched']:.3f} | fetched |",
        f"| {funnel['kept']:.3f} | **kept** |",
        *(f"| {seconds:.3f} | dropped: {reason} |" for reason, seconds in funnel["dropped"].items()),
        "",
        "| sources | seconds | |",
        "|---:|---:|---|",
        *(f"| {n['sources']} | {n['seconds']:.3f} | {fate} |" for fate, n in survival.items()),
        "",
    ]
    if diff is None:
        return "\n".join([*lines, "The release is as it was." if release else "There is no release yet.", ""])
    lines += [f"Against {diff['parent']}:", "", "| clips | seconds | | why |", "|---:|---:|---|---|"]
    for kind in ("added", "removed", "relabelled", "recomputed"):
        reasons = ", ".join(f"{n} {reason}" for reason, n in diff[kind]["reasons"].items())
        lines.append(f"| {diff[kind]['clips']} | {diff[kind]['seconds']:.3f} | {kind} | {reasons} |")
    return "\n".join([*lines, ""])


class _Rows:
    """The sources of some lists, one by one; bad rows are told and counted.

    Raises, at the end:
        DvmsetError: there was no source.
    """

    def __init__(self, lists: Sequence[str | Path], on_bad_row: Callable[[BadRow], None] | None) -> None:
        self.lists = lists
        self.on_bad_row = on_bad_row
        self.bad = 0

    def __iter__(self) -> Iterator[Source]:
        some = False
        for path in self.lists:
            for row in iter_list(path):
                if isinstance(row, Source):
                    some = True
                    yield row
                else:
                    self.bad += 1
                    if self.on_bad_row:
                        self.on_bad_row(row)
        if not some:
            raise DvmsetError(
                f"No usable source in {', '.join(map(str, self.lists))}.", hint="A list needs a link or id a row."
            )


def _source(row: SourceRow) -> Source:
    return Source(row.source_id, row.key, row.url, row.category, row.start_s, row.end_s, row.license, "", 0)
