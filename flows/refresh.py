"""The refresh flow: lists and sites against the ledger, the work that follows, a release if the content changed.

dvmset refresh LIST...    looks around first, and starts Prefect only if there is work to do or the release has changed
flows/prefect.yaml        the same as a deployment with a schedule; `dvmset serve` does without a worker
"""

from __future__ import annotations

import os
from dataclasses import replace

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows import build, limits
from pipeline import DEFAULT_PROFILE
from pipeline.config import load_profile
from pipeline.process import LEDGER, Desk, Listener
from pipeline.refresh import Findings, look_around, summary
from pipeline.release import Release


@flow(name="dvmset-refresh")
def refresh(
    lists: list[str], data: str = "data", profile: str = DEFAULT_PROFILE, overrides: list[str] | None = None
) -> str | None:
    """Brings a data folder up to date with its lists and with the sites.

    The ledger is the one that DVMSET_LEDGER names, if it is set: parameters are stored by Prefect, passwords with them.

    Args:
        lists: all source lists of the data folder: what is in none of them was removed.
        data: data folder or URL.
        profile: name, or path of a YAML file.
        overrides: settings, `group.field=value` each.

    Returns:
        Id of the newest release; None if there is none.

    Raises:
        DvmsetError: a list can't be read or lacks too much, another command is at work, or the build had to stop.
    """
    log = get_run_logger()
    desk = Desk(data, load_profile(profile, overrides or ()), ledger_url=os.environ.get(LEDGER))
    with desk.lock():
        found = look_around(
            desk,
            lists,
            on_bad_row=lambda bad: log.warning("%s:%d: %s", bad.file, bad.line, bad.reason),
            held=limits.holder(desk.profile.fetch),
        )
        for url in found.lists.refused:
            log.warning("%s was taken down and is not taken again", url)
        if found.pending:
            made = run(desk, found)
        else:
            made = _told(desk, found, desk.release())
    return made.id if made else None


@flow(name="dvmset-refresh-work")
def work(place: build.Place, found: Findings) -> Release | None:
    """Does the work that there is, and makes a release if the content has changed.

    Args:
        place: its data folder is locked.
        found: for the report; without the ids, of which Prefect takes only so many.
    """
    desk = build.desk_of(place)
    return _told(desk, found, build.run(desk, desk.listener))


def run(desk: Desk, found: Findings, listener: Listener | None = None) -> Release | None:
    """The second half of a refresh in this process, with no server to set up; the data folder is locked."""
    place = build.place_of(desk)
    build.desk_of(place).listener = listener
    return work(place, replace(found, pending=[]))


@flow(name="dvmset-refresh-report")
def report(text: str, data: str) -> None:
    """Keeps what a refresh did, as Markdown; a flow of its own where there was no work to be one."""
    create_markdown_artifact(text, key="dvmset-refresh", description=f"What a refresh of {data} changed")


def _told(desk: Desk, found: Findings, made: Release | None) -> Release | None:
    diff = made.diff if made and made.changed else None
    report.fn(summary(desk, found, diff, made.id if made else ""), str(desk.store))
    return made
