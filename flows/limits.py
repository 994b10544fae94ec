"""Manners across workers: Prefect's global concurrency limits, one pair a host, on top of those of each process.

They need a server that all workers share (PREFECT_API_URL) and `fetch.global_limits=true`. Both are asked for with
`strict=True`: without it a limit that doesn't exist is only a warning, and no limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from prefect import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency, rate_limit
from prefect.exceptions import ObjectAlreadyExists

from pipeline.config import FetchSettings
from pipeline.errors import DvmsetError
from pipeline.fetch.hosts import host_of


def names_of(host: str) -> tuple[str, str]:
    """The names of the limits of a host: of downloads at a time, and of starts per second.

    >>> names_of("example.org:8080")
    ('dvmset-example.org-8080', 'dvmset-example.org-8080-starts')
    """
    name = "dvmset-" + re.sub(r"[^\w.-]", "-", host)
    return name, f"{name}-starts"


def create(settings: FetchSettings, urls: Iterable[str]) -> None:
    """Creates the limits of all hosts that are not there yet, if the settings ask for them.

    Those that are there are left as they are: an operator may have changed them.
    """
    if not settings.global_limits:
        return
    mean_pause_s = sum(settings.pause_s) / 2
    with get_client(sync_client=True) as client:
        for host in sorted({host_of(url) for url in urls}):
            at_a_time, starts = names_of(host)
            wanted = [GlobalConcurrencyLimitCreate(name=at_a_time, limit=settings.per_host)]
            if mean_pause_s:
                rate = 1 / mean_pause_s
                wanted.append(GlobalConcurrencyLimitCreate(name=starts, limit=1, slot_decay_per_second=rate))
            for limit in wanted:
                try:
                    client.create_global_concurrency_limit(limit)
                except ObjectAlreadyExists:
                    continue


def holder(settings: FetchSettings) -> Callable[[str], AbstractContextManager[None]]:
    """`held` for whoever doesn't know beforehand which hosts there will be: limits are made where they are missing."""
    known: set[str] = set()

    def hold(url: str) -> AbstractContextManager[None]:
        if host_of(url) not in known:
            create(settings, [url])
            known.add(host_of(url))
        return held(settings, url)

    return hold


@contextmanager
def held(settings: FetchSettings, url: str) -> Iterator[None]:
    """Holds the limits of an address's host for the block, if the settings ask for them.

    Raises:
        DvmsetError: a limit doesn't exist, or the server can't be reached.
    """
    if not settings.global_limits:
        yield
        return
    at_a_time, starts = names_of(host_of(url))
    with ExitStack() as stack:
        try:
            stack.enter_context(concurrency(at_a_time, occupy=1, strict=True))
            if any(settings.pause_s):
                rate_limit(starts, strict=True)
        except ConcurrencySlotAcquisitionError as error:
            raise DvmsetError(
                f"Prefect gave no slot of the limit {at_a_time} or {starts}: {error}.",
                hint=f"See `prefect gcl inspect {at_a_time}`, or set fetch.global_limits=false.",
            ) from error
        yield
