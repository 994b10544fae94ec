"""The build flow: from sources in the ledger to a release, with downloads and model work side by side.

Thin on purpose: every stage is a method of `pipeline.process.Desk`, which skips what is there already. Downloads and
shot detection run as one task per source, model work as one task per batch of sources. In threads, the default, model
work runs in the flow's own thread, with models that stay loaded; on a cluster (`flows.runners`) both run on workers.
Each source is worked on under a lease, so that workers which share a ledger keep out of each other's way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from contextvars import copy_context
from datetime import datetime
from functools import lru_cache
from queue import Queue
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.tasks import exponential_backoff
from pydantic import BaseModel, ConfigDict, SecretStr

from flows import limits, runners
from pipeline.config import Profile
from pipeline.errors import DiskFull, HostRests, SettingsError, SourceError
from pipeline.fetch.queue import DownloadQueue, HeldBack
from pipeline.process import Desk, Listener, StageEvent
from pipeline.release import Release

log = logging.getLogger(__name__)

BATCH = 8  # most sources in one model task: a kill costs the work in flight, and the flow's history stays short


class Place(BaseModel):
    """What a worker needs to sit down at a desk.

    Attributes:
        data: folder or URL; profile: settings as JSON.
        ledger: its URL, or None for the data folder's own; Prefect, which stores a flow's parameters, gets no password.
    """

    model_config = ConfigDict(frozen=True)

    data: str
    profile: str
    ledger: SecretStr | None = None


@lru_cache(maxsize=4)
def desk_of(place: Place) -> Desk:
    """The desk at a place, one per process."""
    ledger = place.ledger.get_secret_value() if place.ledger else None
    return Desk(place.data, Profile.model_validate_json(place.profile), ledger_url=ledger)


def place_of(desk: Desk) -> Place:
    """Where a desk stands.

    Raises:
        SettingsError: workers of the cluster that the settings ask for couldn't sit down there.
    """
    profile, run = desk.profile, desk.profile.run
    if run.runner != "threads":
        if desk.store.in_process:
            raise SettingsError(f"{desk.store} is seen by one process only.", hint="Use run.runner=threads.")
        if desk.ledger_url is None and not runners.is_local(run.address):
            raise SettingsError(
                f"Workers at {run.address} can't share the ledger in {desk.store}.",
                hint="Name a ledger: --ledger postgresql://user@host/database.",
            )
        if any(profile.fetch.pause_s):  # the pauses of one process are not those of all
            fetch = profile.fetch.model_copy(update={"global_limits": True})
            profile = profile.model_copy(update={"fetch": fetch})
    ledger = SecretStr(desk.ledger_url) if desk.ledger_url else None
    return Place(data=str(desk.store), profile=profile.model_dump_json(), ledger=ledger)


def _is_transient(_task: Any, _run: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, SourceError) and error.error_class == "transient" and error.retry_after_s is None


@task(
    task_run_name="acquire {source_id}",
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.3,
    retry_condition_fn=_is_transient,
    cache_policy=NO_CACHE,
)
def acquire(place: Place, source_id: str) -> None:
    """Downloads one source and finds its shots."""
    desk = desk_of(place)
    with limits.held(desk.profile.fetch, desk.ledger.source(source_id).url):
        desk.acquire(source_id)


@task(task_run_name="compute {source_ids}", cache_policy=NO_CACHE)
def compute(place: Place, source_ids: list[str]) -> None:
    """Separates, measures, decides and encodes a batch of sources; one that fails doesn't hold up the others."""
    desk = desk_of(place)
    for source_id in source_ids:
        try:
            desk.analyse(source_id)
            desk.encode(source_id)
        except SourceError:
            continue  # recorded in the ledger by the stage that failed


@task(cache_policy=NO_CACHE)
def release(place: Place) -> Release | None:
    """Makes a release if the content has changed; gives the newest one."""
    return desk_of(place).release()


@flow(name="dvmset-build")
def build(place: Place) -> Release | None:
    """Brings all sources up to date that have work left, and makes a release if the content has changed.

    Which they are it asks the ledger: Prefect refuses parameters of more than 512 KB, some 25,000 ids.

    Returns:
        The newest release; None if there is none.

    Raises:
        DvmsetError: something that stops all sources, such as a full disk or missing weights.
    """
    _Work(place).do()
    return release(place)


class _Work:
    """The sources of one build on their way: taken from the queue by a feeder thread, all else in the flow's thread."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.desk = desk_of(place)
        self.on_cluster = self.desk.profile.run.runner != "threads"
        urls = self.desk.ledger.addresses(self.desk.pending())
        limits.create(self.desk.profile.fetch, urls.values())
        self.queue = DownloadQueue(
            urls, self.desk.ledger, self.desk.profile.fetch, on_disk=self._on_disk(urls), on_wait=self._tell_rest
        )
        self.ended: Queue[tuple[list[str], str, PrefectFuture[Any]] | BaseException | None] = Queue()
        self.fed = False  # no more downloads will come
        self.computing = 0  # tasks on the cluster
        self.told = self.desk.ledger.last_attempt() if self.on_cluster else 0

    def do(self) -> None:
        """Works until nothing is left that can be worked on now.

        Raises:
            DvmsetError: something that stops all sources.
        """
        feeder = threading.Thread(target=copy_context().run, args=(self._feed,), name="feeder")
        feeder.start()
        try:
            while batch := self._next_batch():
                if self.on_cluster:
                    with runners.asking(self.desk.profile):
                        self._watch(batch, "compute", compute.submit(self.place, batch))
                    self.computing += 1
                else:
                    compute(self.place, batch)
                    self._computed(batch)
        finally:
            self.queue.close()
            feeder.join()
            self.desk.worker.give_all_back()

    def _on_disk(self, pending: Iterable[str]) -> dict[str, int]:
        """Bytes of the media that earlier builds left, by source; what is kept on purpose is in nobody's way."""
        found = {name.partition(".")[0] for name in self.desk.store.names("media")}
        if self.desk.profile.fetch.keep_media:
            found &= set(pending)
        return {source_id: self.desk.media_bytes(source_id) for source_id in found}

    def _left(self, source_id: str) -> int:
        """Bytes of media that stay on disk when a build is done with a source: of one that failed, for the next try."""
        return 0 if self.desk.profile.fetch.keep_media else self.desk.media_bytes(source_id)

    def _feed(self) -> None:
        """Submits downloads as fast as manners and disk allow; then puts None, or what broke it."""
        try:
            while (source_id := self.queue.take()) is not None:
                match self.desk.claim(source_id):
                    case "mine":
                        self._watch([source_id], "acquire", acquire.submit(self.place, source_id))
                    case "elsewhere":
                        self.queue.put_aside(source_id)
                    case "done":
                        self.queue.ended(source_id)
            self.ended.put(None)
        except BaseException as error:  # noqa: BLE001  (the flow's thread raises it)
            self.ended.put(error)

    def _watch(self, source_ids: list[str], step: str, future: PrefectFuture[Any]) -> None:
        future.add_done_callback(lambda done: self.ended.put((source_ids, step, done)))

    def _next_batch(self) -> list[str]:
        """Sources whose media has come, as many as there are but at most `BATCH`; none when all is done."""
        batch: list[str] = []
        while len(batch) < BATCH and not (batch and self.ended.empty()):
            if self.fed and not self.computing:
                break
            item = self.ended.get()
            if item is None:
                self.fed = True
                continue
            if isinstance(item, BaseException):
                raise item
            source_ids, step, future = item
            error = future.result(raise_on_failure=False)
            self._tell_attempts()
            if step == "compute":
                if error is not None:
                    raise error
                self.computing -= 1
                self._computed(source_ids)
            else:
                batch += self._acquired(source_ids[0], error, bool(batch))
        return batch

    def _acquired(self, source_id: str, error: Any, others: bool) -> list[str]:
        """What became of a download: the source itself if it goes on, else nothing."""
        queue = self.queue
        if error is None:
            queue.ended(source_id, self.desk.media_bytes(source_id))
            return [source_id]
        if isinstance(error, HostRests) or (isinstance(error, SourceError) and error.error_class == "throttled"):
            queue.put_back(source_id)  # the host rests now; then this source may be the one that probes it
        elif isinstance(error, DiskFull) and (others or queue.landed):
            queue.put_back(source_id, disk_full=True)
        elif isinstance(error, SourceError):
            queue.ended(source_id, self._left(source_id), well=False)
            self.desk.worker.give_back(source_id)
        else:
            raise error
        return []

    def _computed(self, source_ids: list[str]) -> None:
        for source_id in source_ids:
            self.queue.computed(source_id, self._left(source_id))
            self.desk.worker.give_back(source_id)
            if self.on_cluster and self.desk.listener and self.desk.ledger.source(source_id).state == "ready":
                self.desk.listener(StageEvent("ready", source_id, "", message=self.desk.ledger.fate(source_id)))

    def _tell_attempts(self) -> None:
        """Tells the listener what workers have done: those of a cluster have none themselves."""
        if not (self.on_cluster and self.desk.listener):
            return
        for row in self.desk.ledger.attempts(self.told):
            self.told = row.id
            kind = "end" if row.outcome == "ok" else "failed"
            self.desk.listener(
                StageEvent(kind, row.source_id, row.stage, row.seconds, row.error_class, row.message)  # type: ignore[arg-type]
            )

    def _tell_rest(self, held: HeldBack) -> None:
        until = datetime.fromtimestamp(held.until).astimezone()
        message = f"{held.host} throttles: {held.sources} sources wait until {until:%H:%M:%S}"
        log.warning(message)
        if self.desk.listener:
            self.desk.listener(StageEvent("rests", "", "", message=message))


def run(desk: Desk, listener: Listener | None = None) -> Release | None:
    """Runs the build flow from this process, on whatever the settings say; gives the newest release.

    Raises:
        DvmsetError: something that stops all sources, or the cluster isn't there.
    """
    place = place_of(desk)
    desk_of(place).listener = listener
    with runners.started(desk.profile) as runner:
        return build.with_options(task_runner=runner)(place)
