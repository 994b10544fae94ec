"""In which order sources are downloaded: in list order, host by host in turn, none that has to wait, none too many.

Those whose media lies on disk already come first: it goes when they are worked on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.config import FetchSettings
from pipeline.fetch.hosts import host_of
from pipeline.ledger import HostRow, Ledger

TYPICAL_BYTES = 50 << 20  # of a download whose size isn't known yet: ten minutes at 700 kbit/s
LOOK_S = 5.0  # between two looks at the breakers, which other workers may open and close too


@dataclass(frozen=True)
class HeldBack:
    """Sources that wait for their host: how many, and until when (seconds since the epoch)."""

    host: str
    sources: int
    until: float


class DownloadQueue:
    """Hands out sources one by one; one thread takes them, any may report.

    Args:
        urls: by source id, in list order.
        ledger: where the breakers are.
        settings: how many at a time, the byte budget, and how long to wait for a host that rests.
        on_disk: bytes of media that earlier builds left, by source.
        on_wait: told once for each rest that is waited for.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        urls: Mapping[str, str],
        ledger: Ledger,
        settings: FetchSettings,
        *,
        on_disk: Mapping[str, int] = MappingProxyType({}),
        on_wait: Callable[[HeldBack], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ledger = ledger
        self.settings = settings
        self.on_wait = on_wait
        self.clock = clock
        self.host = {source_id: host_of(url) for source_id, url in urls.items()}
        self.on_disk = dict(on_disk)  # bytes of media, by source
        self.waiting: OrderedDict[str, deque[str]] = OrderedDict()
        for source_id in sorted(self.host, key=lambda source_id: source_id not in self.on_disk):  # those make room
            self.waiting.setdefault(self.host[source_id], deque()).append(source_id)
        self.loading: Counter[str] = Counter()  # by host
        self.landed: set[str] = set()  # those whose features are being computed, or are the next
        self.aside: list[str] = []  # with other workers
        self.look_at = 0.0  # ... when they are looked at again, monotonic
        self.disk_full = False
        self.closed = False
        self.changed = threading.Condition()

    def take(self) -> str | None:
        """The next source that may be downloaded, as soon as one may; None when there is none to wait for."""
        told: set[tuple[str, float]] = set()
        with self.changed:
            while not self.closed:
                breakers = self.ledger.open_breakers()
                self._take_up()
                if (source_id := self._next(breakers)) is not None:
                    return source_id
                if not self.loading.total() and not self.landed and not self.aside:
                    resting = self._held_back(breakers)
                    first = min(resting, key=lambda held: held.until, default=None)
                    if first is None or first.until - self.clock() > self.settings.patience_s:
                        return None
                    if self.on_wait and (first.host, first.until) not in told:
                        told.add((first.host, first.until))
                        self.on_wait(first)
                self.changed.wait(self._wait_s(breakers))
        return None

    def ended(self, source_id: str, size: int = 0, *, well: bool = True) -> None:
        """A download ended with so many bytes on disk; if it ended well, its features are computed now."""
        with self.changed:
            self.loading[self.host[source_id]] -= 1
            self.on_disk[source_id] = size
            if well and size:
                self.landed.add(source_id)
            self.changed.notify_all()

    def put_back(self, source_id: str, *, disk_full: bool = False) -> None:
        """A download didn't begin, or the disk was full: it is the next one of its host, when there is room again."""
        host = self.host[source_id]
        with self.changed:
            self.loading[host] -= 1
            self.disk_full |= disk_full
            self.waiting.setdefault(host, deque()).appendleft(source_id)
            self.changed.notify_all()

    def put_aside(self, source_id: str) -> None:
        """Another worker has this source: it comes last, and is handed out again after a while."""
        with self.changed:
            self.loading[self.host[source_id]] -= 1
            self.look_at = time.monotonic() + LOOK_S
            self.aside.append(source_id)
            self.changed.notify_all()

    def computed(self, source_id: str, left: int = 0) -> None:
        """This build is done with a source, and so many bytes of its media stay on disk."""
        with self.changed:
            self.landed.discard(source_id)
            self.on_disk[source_id] = left
            self.disk_full = self.disk_full and left > 0
            self.changed.notify_all()

    def close(self) -> None:
        """Nothing more is handed out."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _take_up(self) -> None:
        """Sources that were put aside wait for their turn again, once it is time."""
        if self.aside and time.monotonic() >= self.look_at:
            for source_id in self.aside:
                self.waiting.setdefault(self.host[source_id], deque()).append(source_id)
            self.aside = []

    def _next(self, breakers: Mapping[str, HostRow]) -> str | None:
        if self.loading.total() >= self.settings.threads or self._is_full():
            return None
        for host, ids in self.waiting.items():
            breaker = breakers.get(host)
            if self.loading[host] >= (1 if breaker else self.settings.per_host):
                continue  # a host that has rested is probed by one download
            if breaker and breaker.free_at > self.clock():
                continue
            source_id = ids.popleft()
            self.loading[host] += 1
            self.waiting.move_to_end(host)
            if not ids:
                del self.waiting[host]
            return source_id
        return None

    def _is_full(self) -> bool:
        """Whether the media on disk and under way fills the budget; where nothing is computed that could make room, one
        download may be under way.
        """
        loading = self.loading.total()
        if not loading and not self.landed:
            return False
        taken = sum(self.on_disk.values()) + (loading + 1) * TYPICAL_BYTES
        return self.disk_full or taken > self.settings.budget_bytes

    def _held_back(self, breakers: Mapping[str, HostRow]) -> list[HeldBack]:
        return [HeldBack(h, len(ids), breakers[h].free_at if h in breakers else 0.0) for h, ids in self.waiting.items()]

    def _wait_s(self, breakers: Mapping[str, HostRow]) -> float:
        """Until a resting host is back, but not long: other workers open and close breakers, too."""
        waits = [held.until - self.clock() for held in self._held_back(breakers) if held.until]
        return min([LOOK_S, *(max(0.05, wait) for wait in waits)])
