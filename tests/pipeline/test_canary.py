"""Canaries: silent while a site is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import flows
from pipeline.canary import SiteChange, check_canaries
from pipeline.config import FetchSettings
from pipeline.fetch.hosts import Hosts
from pipeline.ledger import Ledger
from pipeline.sources import Source, read_list
from pipeline.storage import Store
from tests.world import Web

URL = "https://site.example/stable.mp4"


@pytest.fixture
def canaries(tmp_path: Path) -> list[Source]:
    place = tmp_path / "canaries.txt"
    place.write_text(f"{URL}\n")
    return read_list(place)[0]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    yield Hosts(ledger, FetchSettings())
    ledger.close()


def test_a_change_is_told_once_and_so_is_its_end(tmp_path: Path, canaries: list[Source], hosts: Hosts) -> None:
    web, store = Web({URL: "m"}), Store(tmp_path / "data")

    def check() -> list[SiteChange]:
        return check_canaries(store, canaries, hosts, web.probe)

    assert check() == check() == []
    web.refusals[URL] = "blocked"
    assert check() == [SiteChange(URL, "ok ", "blocked", f"Refused ({URL}).")]
    assert check() == []
    web.refusals[URL] = "transient"
    assert check() == [], "trouble with the network says nothing of the site"
    del web.refusals[URL]
    assert check() == [SiteChange(URL, "blocked", "ok ", "")]


def test_one_that_fails_at_once_is_told(tmp_path: Path, canaries: list[Source], hosts: Hosts) -> None:
    found = check_canaries(Store(tmp_path / "data"), canaries, hosts, Web().probe)
    assert [(change.before, change.now) for change in found] == [("unknown", "permanent")]


def test_manners_hold_for_canaries_too(tmp_path: Path, canaries: list[Source], hosts: Hosts) -> None:
    (tmp_path / "more.txt").write_text("https://site.example/other.mp4\nhttps://b.example/v.mp4\n")
    canaries += read_list(tmp_path / "more.txt")[0]
    web = Web({canary.url: "m" for canary in canaries}, {URL: "throttled"})
    held: list[str] = []

    @contextmanager
    def hold(url: str) -> Iterator[None]:
        held.append(url)
        try:
            yield
        finally:
            held.pop()

    def probe(source: Source, settings: FetchSettings) -> dict[str, Any]:
        assert held == [source.url]
        return web.probe(source, settings)

    assert check_canaries(Store(tmp_path / "data"), canaries, hosts, probe, hold) == []
    assert web.probes == [URL, "https://b.example/v.mp4"], "the other one of a host that throttles waits"


def test_the_canaries_that_come_with_it_are_videos() -> None:
    canaries, bad = read_list(Path(flows.__file__).with_name("canaries.txt"))
    assert [canary.key.partition(":")[0] for canary in canaries] == ["youtube", "youtube", "bilibili"]
    assert bad == []
