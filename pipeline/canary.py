"""Canaries: a few stable videos that tell when a site changes, before a night's downloads do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

from pipeline.errors import HostRests, SourceError
from pipeline.fetch.hosts import Hosts
from pipeline.refresh import Held, Probe
from pipeline.sources import Source
from pipeline.storage import Store, sweep_scratch

STATE = "canary.json"
INCONCLUSIVE = ("transient", "throttled")  # of the network, or of our manners: the site may be as it was


@dataclass(frozen=True)
class SiteChange:
    """A canary that fares otherwise than it did.

    Attributes:
        before, now: `ok FORMAT` with the site's name of the format that would be taken, or an error class.
        message: of the error, or "".
    """

    url: str
    before: str
    now: str
    message: str


def check_canaries(
    store: Store, canaries: Iterable[Source], hosts: Hosts, probe: Probe, held: Held = nullcontext
) -> list[SiteChange]:
    """Asks for each canary without downloading it, and compares with the last time, which is in `canary.json`.

    Trouble with the network changes nothing, and a host that rests is left alone. A canary that is asked for the first
    time is a change only if it fails.

    Args:
        store: the data folder.
        canaries: the videos.
        hosts: manners.
        probe: asks a site for a source (`pipeline.fetch.probing`).
        held: manners across workers, entered for each question (`flows.limits`).
    """
    sweep_scratch()
    last: dict[str, str] = json.loads(store.read_text(STATE)) if store.exists(STATE) else {}
    changes = []
    for canary in canaries:
        message = ""
        try:
            with held(canary.url), hosts.turn(canary.url):
                now = f"ok {probe(canary, hosts.settings)['format_id']}"
        except HostRests:
            continue
        except SourceError as error:
            if error.error_class in INCONCLUSIVE:
                continue
            now, message = error.error_class, error.message
        before = last.get(canary.source_id, "")
        if now != before and (before or message):
            changes.append(SiteChange(canary.url, before or "unknown", now, message))
        last[canary.source_id] = now
    store.write_text(STATE, json.dumps(last, indent=1) + "\n")
    return changes
