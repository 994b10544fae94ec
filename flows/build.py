"""The build flow: from sources in the ledger to a release, with downloads and model work side by side.

Thin on purpose: every stage is a method of `pipeline.process.Desk`, which skips what is there already. Downloads and
shot detection run as one task per source in the task runner's threads; model work runs as one task per batch of
sources in the flow's own thread, with models that stay loaded. Tasks take plain strings, so any runner can carry them.
"""

from __future__ import annotations

import logging
import threading
from contextvars import copy_context
from datetime import datetime
from functools import lru_cache, partial
from queue import Queue
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows import limits
from pipeline.config import Profile
from pipeline.errors import DiskFull, HostRests, SourceError
from pipeline.fetch.queue import DownloadQueue, HeldBack
from pipeline.process import Desk, Listener, StageEvent
from pipeline.release import Release

log = logging.getLogger(__name__)

BATCH = 8  # most sources in one model task: a kill costs the work in flight, and the flow's history stays short


@lru_cache(maxsize=4)
def desk_of(data: str, profile: str) -> Desk:
    """The desk of a data folder and a profile given as JSON, one per process."""
    return Desk(data, Profile.model_validate_json(profile))


def _is_transient(_task: Any, _run: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, SourceError) and error.error_class == "transient"


@task(
    task_run_name="acquire {source_id}",
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.3,
    retry_condition_fn=_is_transient,
    cache_policy=NO_CACHE,
)
def acquire(data: str, profile: str, source_id: str) -> None:
    """Downloads one source and finds its shots."""
    desk = desk_of(data, profile)
    with limits.held(desk, source_id):
        desk.acquire(source_id)


@task(task_run_name="compute {source_ids}", cache_policy=NO_CACHE)
def compute(data: str, profile: str, source_ids: list[str]) -> None:
    """Separates, measures, decides and encodes a batch of sources; one that fails doesn't hold up the others."""
    desk = desk_of(data, profile)
    for source_id in source_ids:
        try:
            desk.analyse(source_id)
            desk.encode(source_id)
        except SourceError:
            continue  # recorded in the ledger by the stage that failed


@task(cache_policy=NO_CACHE)
def release(data: str, profile: str) -> Release | None:
    """Makes a release if the content has changed; gives the newest one."""
    return desk_of(data, profile).release()


@flow(name="dvmset-build")
def build(data: str, profile: str) -> Release | None:
    """Brings all sources up to date that have work left, and makes a release if the content has changed.

    Which they are it asks the ledger: Prefect refuses parameters of more than 512 KB, some 25,000 ids.

    Args:
        data: data folder.
        profile: settings as JSON.

    Returns:
        The newest release; None if there is none.

    Raises:
        DvmsetError: something that stops all sources, such as a full disk or missing weights.
    """
    desk = desk_of(data, profile)
    urls = desk.ledger.addresses(desk.pending())
    limits.create(desk.profile.fetch, urls.values())
    queue = DownloadQueue(urls, desk.ledger, desk.profile.fetch, on_wait=partial(_tell_rest, desk))
    landed: Queue[tuple[str, PrefectFuture[Any]] | BaseException | None] = Queue()
    feeder = threading.Thread(target=copy_context().run, args=(_feed, queue, data, profile, landed), name="feeder")
    feeder.start()
    try:
        while batch := _next_batch(desk, queue, landed):
            compute(data, profile, batch)
            for source_id in batch:
                queue.computed(source_id)
    finally:
        queue.close()
        feeder.join()
    return release(data, profile)


def _feed(queue: DownloadQueue, data: str, profile: str, landed: Queue[Any]) -> None:
    """Submits downloads as fast as manners and disk allow, in a thread of its own; then puts None, or what broke it."""
    try:
        while (source_id := queue.take()) is not None:
            future = acquire.submit(data, profile, source_id)
            future.add_done_callback(partial(_land, landed, source_id))
        landed.put(None)
    except BaseException as error:
        landed.put(error)
        raise


def _land(landed: Queue[Any], source_id: str, future: PrefectFuture[Any]) -> None:
    landed.put((source_id, future))


def _next_batch(desk: Desk, queue: DownloadQueue, landed: Queue[Any]) -> list[str]:
    """Sources whose media has come, as many as there are but at most `BATCH`; none when all have."""
    batch: list[str] = []
    while len(batch) < BATCH and not (batch and landed.empty()):
        item = landed.get()
        if item is None:
            landed.put(None)  # for the next call
            break
        if isinstance(item, BaseException):
            raise item
        source_id, future = item
        error = future.result(raise_on_failure=False)
        if error is None:
            queue.ended(source_id, desk.media_bytes(source_id))
            batch.append(source_id)
        elif isinstance(error, HostRests) or (isinstance(error, SourceError) and error.error_class == "throttled"):
            queue.put_back(source_id)  # the host rests now; then this source may be the one that probes it
        elif isinstance(error, DiskFull) and (batch or queue.landed):
            queue.put_back(source_id, disk_full=True)
        elif isinstance(error, SourceError):
            queue.ended(source_id)
        else:
            raise error
    return batch


def _tell_rest(desk: Desk, held: HeldBack) -> None:
    until = datetime.fromtimestamp(held.until).astimezone()
    message = f"{held.host} throttles: {held.sources} sources wait until {until:%H:%M:%S}"
    log.warning(message)
    if desk.listener:
        desk.listener(StageEvent("rests", "", "", message=message))


def run(desk: Desk, listener: Listener | None = None) -> Release | None:
    """Runs the build flow in this process, with no server to set up; gives the newest release."""
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=desk.profile.fetch.threads)
    data, profile = str(desk.store), desk.profile.model_dump_json()
    desk_of(data, profile).listener = listener
    return build.with_options(task_runner=runner)(data, profile)
