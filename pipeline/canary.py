"""Canaries: a few stable videos that tell when a site changes, before a night's downloads do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.config import FetchSettings
from pipeline.errors import SourceError
from pipeline.refresh import Probe
from pipeline.sources import Source
from pipeline.storage import Store

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


def check_canaries(store: Store, canaries: Iterable[Source], settings: FetchSettings, probe: Probe) -> list[SiteChange]:
    """Asks for each canary without downloading it, and compares with the last time, which is in `canary.json`.

    Trouble with the network changes nothing. A canary that is asked for the first time is a change only if it fails.
    """
    last: dict[str, str] = json.loads(store.read_text(STATE)) if store.exists(STATE) else {}
    changes = []
    for canary in canaries:
        message = ""
        try:
            now = f"ok {probe(canary, settings)['format_id']}"
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
