"""The canary flow: a Prefect event when a site changes, for an automation to act on (mail, pause the refresh)."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from prefect import flow, get_run_logger
from prefect.events import emit_event

from flows import limits
from pipeline import DEFAULT_PROFILE
from pipeline.canary import check_canaries
from pipeline.config import load_profile
from pipeline.fetch.probing import probe
from pipeline.process import LEDGER, Desk
from pipeline.sources import read_list

CANARIES = str(Path(__file__).with_name("canaries.txt"))
EVENT = "dvmset.site.changed"


@flow(name="dvmset-canary")
def canary(
    videos: str = CANARIES, data: str = "data", profile: str = DEFAULT_PROFILE, overrides: list[str] | None = None
) -> int:
    """Asks for a few stable videos and emits `dvmset.site.changed` for each that fares otherwise than the last time.

    Args:
        videos: source list of them.
        data: data folder, which keeps how they fared.
        profile: name, or path of a YAML file.
        overrides: settings, `group.field=value` each.

    Returns:
        How many changed.
    """
    log = get_run_logger()
    canaries, _ = read_list(videos)
    desk = Desk(data, load_profile(profile, overrides or ()), ledger_url=os.environ.get(LEDGER))
    changes = check_canaries(desk.store, canaries, desk.hosts, probe, limits.holder(desk.profile.fetch))
    for change in changes:
        log.warning("%s: was %s, is %s %s", change.url, change.before, change.now, change.message)
        host = urlsplit(change.url).hostname
        emit_event(EVENT, resource={"prefect.resource.id": f"dvmset.site.{host}"}, payload=vars(change))
    return len(changes)
