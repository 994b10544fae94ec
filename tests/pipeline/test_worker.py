"""Workers: leases last while their worker lives, and no longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import load_profile
from pipeline.errors import DvmsetError
from pipeline.ledger import Ledger
from pipeline.process import Desk, Worker
from pipeline.storage import Store
from pipeline.takedown import Request, nobody_at_work, plan_takedown

URL = "https://h.example/v.mp4"
SOURCE = {"key": URL, "url": URL, "category": "", "start_s": None, "end_s": None, "license": ""}


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


def test_a_lease_lasts_while_its_worker_lives_and_runs_out_when_it_is_dead(ledger: Ledger) -> None:
    one, two = Worker(ledger, 1.0), Worker(ledger, 1.0)
    assert one.take("a")
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        assert not two.take("a"), "renewed by a heartbeat"
        time.sleep(0.1)
    one.held.clear()  # as if it were dead: nothing renews the lease any more
    began = time.monotonic()
    while not two.take("a"):
        assert time.monotonic() - began < 30
        time.sleep(0.05)
    two.give_all_back()
    assert ledger.leases() == {}


def test_what_only_one_may_do_waits_for_the_other(ledger: Ledger) -> None:
    one, two = Worker(ledger, 60), Worker(ledger, 60)
    said: list[str] = []

    def later() -> None:
        with two.alone("release"):
            said.append("two")

    with one.alone("release"):
        thread = threading.Thread(target=later)
        thread.start()
        time.sleep(0.3)
        said.append("one")
    thread.join()
    assert said == ["one", "two"]


def test_a_source_is_claimed_by_one_desk_and_not_again_when_it_is_done(ledger_url: str, tmp_path: Path) -> None:
    one, two = (Desk(tmp_path, load_profile("nano"), ledger_url=ledger_url) for _ in range(2))
    one.ledger.add_sources([{"source_id": name, **SOURCE, "key": name} for name in "ab"])
    assert [one.claim("a"), one.claim("a"), two.claim("a"), two.claim("b")] == ["mine", "mine", "elsewhere", "mine"]
    one.ledger.set_state("a", "ready", done_key=one.files.done_key)
    one.worker.give_back("a")
    assert two.claim("a") == "done"
    two.ledger.fail("b", "fetch", "transient", "timed out", seconds=1)
    assert two.claim("b") == "mine", "in the same build it goes on"
    two.worker.give_back("b")
    assert one.claim("b") == "done", "it isn't due"
    assert one.ledger.leases() == {}
    for desk in (one, two):
        desk.ledger.close()


def test_nothing_is_taken_down_while_a_worker_is_at_it(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add_sources([{"source_id": "a", **SOURCE}])
    plan = plan_takedown(Store(tmp_path), ledger, Request(urls=(URL,)))
    worker = Worker(ledger, 60)
    assert worker.take("a")
    with pytest.raises(DvmsetError, match="is at work on a; nothing was changed"), nobody_at_work(ledger, plan):
        raise AssertionError
    worker.give_back("a")
    with nobody_at_work(ledger, plan):
        assert sorted(ledger.leases()) == ["a", "release"]
    assert ledger.leases() == {}
