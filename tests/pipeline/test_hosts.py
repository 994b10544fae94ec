"""Manners towards hosts: pauses, how many at a time, breakers that open and close, and the order of downloads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from pipeline.config import FetchSettings
from pipeline.errors import ErrorClass, HostRests, SourceError
from pipeline.fetch.hosts import Hosts, host_of
from pipeline.fetch.queue import TYPICAL_BYTES, DownloadQueue
from pipeline.ledger import Ledger

A, B = "http://a.example/v", "http://b.example/v"
SETTINGS = FetchSettings(rest_s=100.0, per_host=2, threads=3, patience_s=50.0, wall_s=500.0, most_refusals=3)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


def ask(hosts: Hosts, url: str, error_class: ErrorClass | None = None, retry_after_s: float | None = None) -> None:
    """One download that ends in an error, or well; HostRests if it isn't admitted."""
    try:
        with hosts.turn(url):
            if error_class:
                raise SourceError("no", error_class, retry_after_s=retry_after_s)
    except SourceError:
        assert error_class


def rests(hosts: Hosts, url: str) -> bool:
    try:
        ask(hosts, url)
    except HostRests:
        return True
    return False


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://www.youtube.com/watch?v=dQw4w9WgXcQ", "youtube"),
        ("https://music.youtube.com/watch?v=dQw4w9WgXcQ", "youtube"),
        ("https://youtu.be/dQw4w9WgXcQ", "youtube"),
        ("https://www.bilibili.com/video/BV17x411w7KC", "bilibili"),
        ("https://notyoutube.com/v", "notyoutube.com"),
        ("http://www.example.org/v.mp4", "example.org"),
        ("http://127.0.0.1:8080/v.mp4", "127.0.0.1:8080"),
    ],
)
def test_one_set_of_manners_for_all_hosts_of_a_site(url: str, host: str) -> None:
    assert host_of(url) == host


def test_throttled_host_rests_then_is_probed_and_opens_for_twice_as_long_or_closes(
    ledger: Ledger, clock: Clock
) -> None:
    hosts = Hosts(ledger, SETTINGS, clock)
    ask(hosts, A, "throttled")
    assert rests(hosts, A)
    assert not rests(hosts, B)
    clock.now += 100
    ask(hosts, A, "throttled")  # the probe
    clock.now += 199
    assert rests(hosts, A)
    clock.now += 1
    ask(hosts, A)
    assert ledger.open_breakers() == {}
    ask(hosts, A, "throttled")
    clock.now += 100
    assert not rests(hosts, A)


def test_retry_after_is_the_rest(ledger: Ledger, clock: Clock) -> None:
    hosts = Hosts(ledger, SETTINGS, clock)
    ask(hosts, A, "throttled", retry_after_s=7)
    clock.now += 6.9
    assert rests(hosts, A)
    clock.now += 0.1
    assert not rests(hosts, A)


@pytest.mark.parametrize("said", [None, 0.0])
def test_host_that_says_no_time_rests_as_long_as_the_settings_say(
    ledger: Ledger, clock: Clock, said: float | None
) -> None:
    hosts = Hosts(ledger, SETTINGS, clock)
    queue = queue_of(ledger, clock, "aa")
    for rest_s in (100, 200, 400):
        ask(hosts, A, "throttled", retry_after_s=said)
        assert ledger.breaker("a.example").rests_until == clock.now + rest_s
        assert queue.take() is None, "it isn't handed out again before"
        clock.now += rest_s


@pytest.mark.parametrize("answer", ["transient", "blocked", "internal"])
def test_host_rests_whenever_it_says_for_how_long(ledger: Ledger, clock: Clock, answer: ErrorClass) -> None:
    hosts = Hosts(ledger, SETTINGS, clock)
    ask(hosts, A, answer, retry_after_s=7)
    assert ledger.breaker("a.example").rests_until == clock.now + 7
    assert rests(hosts, A)


def test_rest_is_known_to_other_workers_and_after_a_restart(ledger: Ledger, clock: Clock) -> None:
    ask(Hosts(ledger, SETTINGS, clock), A, "throttled")
    assert rests(Hosts(ledger, SETTINGS, clock), A)


def test_only_one_probes_and_a_dead_one_loses_its_lease(ledger: Ledger, clock: Clock) -> None:
    hosts, others = Hosts(ledger, SETTINGS, clock), Hosts(ledger, SETTINGS, clock)
    ask(hosts, A, "throttled")
    clock.now += 100
    probe = hosts.turn(A)
    probe.__enter__()
    assert rests(others, A)
    clock.now += SETTINGS.wall_s
    assert not rests(others, A)


def test_what_was_under_way_when_a_breaker_opened_neither_doubles_the_rest_nor_ends_it(
    ledger: Ledger, clock: Clock
) -> None:
    hosts = Hosts(ledger, SETTINGS, clock)
    with hosts.turn(A):
        ask(hosts, A, "throttled")
    assert rests(hosts, A)
    with pytest.raises(SourceError), hosts.turn(B):
        ask(hosts, B, "throttled")
        raise SourceError("no", "throttled")
    clock.now += 100
    assert not rests(hosts, B)


@pytest.mark.parametrize(
    ("answer", "open_after"),
    [("permanent", False), ("geo", False), ("unsupported", False), ("transient", True), ("blocked", True)],
)
def test_a_probe_closes_the_breaker_if_the_host_answers_in_earnest(
    ledger: Ledger, clock: Clock, answer: ErrorClass, open_after: bool
) -> None:
    hosts = Hosts(ledger, SETTINGS, clock)
    ask(hosts, A, "throttled")
    clock.now += 100
    ask(hosts, A, answer)
    assert rests(hosts, A) == open_after


def test_refusals_in_a_row_are_a_throttle_in_disguise(ledger: Ledger, clock: Clock) -> None:
    hosts = Hosts(ledger, SETTINGS, clock)
    for answer in ("blocked", "blocked", None, "blocked", "blocked"):
        ask(hosts, A, answer)  # type: ignore[arg-type]
    assert ledger.open_breakers() == {}, "the good one in between began the count anew"
    ask(hosts, A, "blocked")
    assert rests(hosts, A)


def test_starts_are_apart_and_few_at_a_time_however_many_ask(ledger: Ledger) -> None:
    hosts = Hosts(ledger, SETTINGS.model_copy(update={"pause_s": (0.1, 0.1)}))
    starts: list[float] = []
    at_a_time: list[int] = []
    under_way = 0
    lock = threading.Lock()

    def download() -> None:
        nonlocal under_way
        with hosts.turn(A):
            with lock:
                starts.append(time.monotonic())
                under_way += 1
                at_a_time.append(under_way)
            time.sleep(0.3)
            with lock:
                under_way -= 1

    threads = [threading.Thread(target=download) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert max(at_a_time) == 2
    assert starts[-1] - starts[0] >= 0.5
    assert min(gaps) > 0.05


# the order of downloads


def queue_of(ledger: Ledger, clock: Clock, hosts: str, **settings: object) -> DownloadQueue:
    urls = {f"{host}{i}": f"http://{host}.example/{i}" for i, host in enumerate(hosts)}
    return DownloadQueue(urls, ledger, SETTINGS.model_copy(update=settings), clock=clock)


def test_hosts_take_turns_and_none_is_asked_for_more_than_its_share(ledger: Ledger, clock: Clock) -> None:
    queue = queue_of(ledger, clock, "aaabb", threads=4)
    assert [queue.take() for _ in range(4)] == ["a0", "b3", "a1", "b4"]
    queue.ended("b3")
    queue.ended("a0")
    assert queue.take() == "a2"


def test_resting_host_is_passed_over_and_then_probed_by_one(ledger: Ledger, clock: Clock) -> None:
    ledger.open_breaker("a.example", clock.now, 40, 1000)
    queue = queue_of(ledger, clock, "aaab")
    assert queue.take() == "b3"
    clock.now += 40
    assert queue.take() == "a0"
    queue.ended("b3")
    threading.Timer(0.3, lambda: (ledger.close_breaker("a.example", clock.now), queue.ended("a0"))).start()
    assert queue.take() == "a1"
    assert queue.take() == "a2"


def test_it_waits_for_a_host_within_its_patience_and_says_so(ledger: Ledger, clock: Clock) -> None:
    ledger.open_breaker("a.example", clock.now, 40, 1000)
    queue = queue_of(ledger, clock, "aa")
    told: list[int] = []
    queue.on_wait = lambda held: told.append(held.sources)
    threading.Timer(0.2, lambda: setattr(clock, "now", clock.now + 40)).start()
    assert queue.take() == "a0"
    assert told == [2]
    ledger.open_breaker("a.example", clock.now, 60, 1000)
    queue.ended("a0")
    assert queue.take() is None, "a rest of 80 s is beyond a patience of 50"


def test_budget_holds_downloads_back_until_features_are_computed(ledger: Ledger, clock: Clock) -> None:
    queue = queue_of(ledger, clock, "abc", budget_bytes=3 * TYPICAL_BYTES)
    assert queue.take() == "a0"
    queue.ended("a0", size=3 * TYPICAL_BYTES)
    threading.Timer(0.2, queue.computed, ["a0"]).start()
    began = time.monotonic()
    assert queue.take() == "b1"
    assert time.monotonic() - began >= 0.2


def test_media_that_a_failure_leaves_on_disk_stays_in_the_budget(ledger: Ledger, clock: Clock) -> None:
    queue = queue_of(ledger, clock, "abcd", budget_bytes=3 * TYPICAL_BYTES)
    assert [queue.take(), queue.take()] == ["a0", "b1"]
    queue.ended("a0", size=2 * TYPICAL_BYTES)
    queue.ended("b1", size=1)
    queue.computed("a0", left=2 * TYPICAL_BYTES)  # it failed: its media waits for the next build
    assert queue._is_full()
    queue.computed("b1")
    assert [queue.take(), queue._is_full()] == ["c2", True], "one at a time, since nothing will make room"
    queue.ended("c2", size=2 * TYPICAL_BYTES, well=False)
    assert queue.take() == "d3", "a download that failed is waited for by nobody"


def test_media_of_earlier_builds_is_in_the_budget_and_what_can_make_room_comes_first(
    ledger: Ledger, clock: Clock
) -> None:
    on_disk = {"c2": TYPICAL_BYTES, "of a failed source": TYPICAL_BYTES}
    urls = {f"{host}{i}": f"http://{host}.example/{i}" for i, host in enumerate("abc")}
    settings = SETTINGS.model_copy(update={"budget_bytes": 3 * TYPICAL_BYTES})
    queue = DownloadQueue(urls, ledger, settings, on_disk=on_disk, clock=clock)
    assert [queue.take(), queue._is_full()] == ["c2", True]
    queue.ended("c2", size=TYPICAL_BYTES)
    threading.Timer(0.1, queue.computed, ["c2"]).start()
    assert [queue.take(), queue.take()] == ["a0", "b1"]


def test_a_source_that_another_worker_has_comes_last_and_again_later(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.fetch.queue.LOOK_S", 0.2)
    queue = queue_of(ledger, clock, "ab")
    assert queue.take() == "a0"
    queue.put_aside("a0")
    assert queue.take() == "b1"
    queue.ended("b1")
    assert queue.take() == "a0", "after a while, although nothing else is under way"
    queue.ended("a0")
    assert queue.take() is None


def test_full_disk_holds_downloads_back_until_something_was_computed(ledger: Ledger, clock: Clock) -> None:
    queue = queue_of(ledger, clock, "abc")
    assert [queue.take(), queue.take()] == ["a0", "b1"]
    queue.ended("a0", size=1)
    queue.put_back("b1", disk_full=True)
    began = time.monotonic()
    threading.Timer(0.2, queue.computed, ["a0"]).start()
    assert queue.take() in ("b1", "c2")
    assert time.monotonic() - began >= 0.2


def test_it_ends_when_all_is_done(ledger: Ledger, clock: Clock) -> None:
    queue = queue_of(ledger, clock, "a")
    assert queue.take() == "a0"
    queue.ended("a0", size=5)
    threading.Timer(0.1, queue.computed, ["a0"]).start()
    assert queue.take() is None
