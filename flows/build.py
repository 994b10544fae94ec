"""The build flow: from sources in the ledger to a release, with downloads and model work side by side.

Thin on purpose: every stage is a method of `pipeline.process.Desk`, which skips what is there already. Downloads and
shot detection run as one task per source in the task runner's threads; model work runs as one task per batch of
sources in the flow's own thread, with models that stay loaded. Tasks take plain strings, so any runner can carry them.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from queue import Queue
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from pipeline.config import Profile
from pipeline.errors import SourceError
from pipeline.process import Desk, Listener

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
    desk_of(data, profile).acquire(source_id)


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
def release(data: str, profile: str) -> None:
    """Makes a release if the content has changed."""
    desk_of(data, profile).release()


@flow(name="dvmset-build")
def build(data: str, profile: str, source_ids: list[str]) -> None:
    """Brings sources up to date and makes a release.

    Args:
        data: data folder.
        profile: settings as JSON.
        source_ids: the sources to work on, in order.

    Raises:
        DvmsetError: something that stops all sources, such as a full disk or missing weights.
    """
    threads = desk_of(data, profile).profile.fetch.threads
    waiting = iter(source_ids)
    landed: Queue[tuple[str, PrefectFuture[Any]]] = Queue()
    in_flight = 0

    def submit_next() -> int:
        source_id = next(waiting, None)
        if source_id is None:
            return 0
        future = acquire.submit(data, profile, source_id)
        future.add_done_callback(lambda f: landed.put((source_id, f)))
        return 1

    for _ in range(2 * threads):
        in_flight += submit_next()
    while in_flight:
        batch: list[str] = []
        while in_flight and len(batch) < BATCH and not (batch and landed.empty()):
            source_id, future = landed.get()
            in_flight += submit_next() - 1
            error = future.result(raise_on_failure=False)
            if error is None:
                batch.append(source_id)
            elif not isinstance(error, SourceError):
                raise error
        if batch:
            compute(data, profile, batch)
    release(data, profile)


def run(desk: Desk, source_ids: list[str], listener: Listener | None = None) -> None:
    """Runs the build flow in this process, with no server to set up."""
    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=desk.profile.fetch.threads)
    data, profile = str(desk.store), desk.profile.model_dump_json()
    desk_of(data, profile).listener = listener
    build.with_options(task_runner=runner)(data, profile, source_ids)
