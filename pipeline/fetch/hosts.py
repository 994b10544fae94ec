"""Manners towards hosts: a pause between two starts, few downloads at a time, and rest for a host that throttles.

Pauses and the number at a time are kept in this process (across processes: `flows.limits`). The circuit breaker is in
the ledger, so that it holds for all workers and survives a restart: a host that throttles, says Retry-After, or refuses
several sources in a row, rests; then one source probes it, and its outcome closes the breaker or opens it for twice as
long.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pipeline.config import FetchSettings
from pipeline.errors import HostRests, SourceError
from pipeline.ledger import Ledger

LONGEST_REST_S = 24 * 3600.0


def host_of(url: str) -> str:
    """What one set of manners is kept for: a known site with all its hosts, else a host, with the port if it has one.

    >>> host_of("https://youtu.be/dQw4w9WgXcQ"), host_of("https://www.bilibili.com/video/BV1x"), host_of("http://a:8/b")
    ('youtube', 'bilibili', 'a:8')
    """
    parts = urlsplit(url)
    name = (parts.hostname or "").removeprefix("www.")
    for site, ends in (("youtube", ("youtube.com", "youtu.be", "youtube-nocookie.com")), ("bilibili", "bilibili.com")):
        if name in ends or name.endswith(tuple(f".{end}" for end in ends)):
            return site
    return f"{name}:{parts.port}" if parts.port else name


class Hosts:
    """Manners of one process; safe to use from several threads.

    Args:
        ledger: where the breakers are.
        settings: pauses and limits.
        clock: seconds since the epoch.
    """

    def __init__(self, ledger: Ledger, settings: FetchSettings, clock: Callable[[], float] = time.time) -> None:
        self.ledger = ledger
        self.settings = settings
        self.clock = clock
        self._lock = threading.Lock()
        self._next_start: dict[str, float] = {}  # monotonic
        self._slots: dict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(settings.per_host))

    @contextmanager
    def turn(self, url: str) -> Iterator[None]:
        """The block is a download from a host: waits for its turn, and learns from its outcome.

        Raises:
            HostRests: the host rests, or somebody else is probing it.
        """
        host = host_of(url)
        with self._lock:
            slots = self._slots[host]
        with slots:
            self._pause(host)
            self._admit(host)
            try:
                yield
            except SourceError as error:
                self._learn(host, error)
                raise
            self._answered(host)

    def _pause(self, host: str) -> None:
        with self._lock:
            start = max(time.monotonic(), self._next_start.get(host, 0.0))
            self._next_start[host] = start + random.uniform(*self.settings.pause_s)
        time.sleep(max(0.0, start - time.monotonic()))

    def _admit(self, host: str) -> None:
        breaker = self.ledger.breaker(host)
        now = self.clock()
        if breaker.openings and not self.ledger.claim_probe(host, now, lease_s=self.settings.wall_s):
            raise HostRests(host, datetime.fromtimestamp(max(self.ledger.breaker(host).free_at, now), UTC))

    def _learn(self, host: str, error: SourceError) -> None:
        rest_s = error.retry_after_s or self.settings.rest_s  # a rest of 0 s would never end: it could not be doubled
        probing = self.ledger.breaker(host).openings > 0
        match error.error_class:
            case "throttled":
                opens = True
            case "blocked":  # several in a row are a throttle in disguise: toolforge/video2commons#288
                opens = self.ledger.count_refusal(host) >= self.settings.most_refusals or probing
            case "transient" | "internal":  # says nothing of the host's mood
                opens = probing
            case _:
                self._answered(host)
                return
        if opens or error.retry_after_s:
            self.ledger.open_breaker(host, self.clock(), rest_s, LONGEST_REST_S)

    def _answered(self, host: str) -> None:
        breaker = self.ledger.breaker(host)
        if breaker.openings or breaker.refusals:
            self.ledger.close_breaker(host, self.clock())
