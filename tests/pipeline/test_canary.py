"""Canaries: silent while a site is as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

import flows
from pipeline.canary import SiteChange, check_canaries
from pipeline.config import FetchSettings
from pipeline.sources import Source, read_list
from pipeline.storage import Store
from tests.world import Web

URL = "https://site.example/stable.mp4"


@pytest.fixture
def canaries(tmp_path: Path) -> list[Source]:
    place = tmp_path / "canaries.txt"
    place.write_text(f"{URL}\n")
    return read_list(place)[0]


def test_a_change_is_told_once_and_so_is_its_end(tmp_path: Path, canaries: list[Source]) -> None:
    web, store = Web({URL: "m"}), Store(tmp_path / "data")

    def check() -> list[SiteChange]:
        return check_canaries(store, canaries, FetchSettings(), web.probe)

    assert check() == check() == []
    web.refusals[URL] = "blocked"
    assert check() == [SiteChange(URL, "ok ", "blocked", f"Refused ({URL}).")]
    assert check() == []
    web.refusals[URL] = "transient"
    assert check() == [], "trouble with the network says nothing of the site"
    del web.refusals[URL]
    assert check() == [SiteChange(URL, "blocked", "ok ", "")]


def test_one_that_fails_at_once_is_told(tmp_path: Path, canaries: list[Source]) -> None:
    found = check_canaries(Store(tmp_path / "data"), canaries, FetchSettings(), Web().probe)
    assert [(change.before, change.now) for change in found] == [("unknown", "permanent")]


def test_the_canaries_that_come_with_it_are_videos() -> None:
    canaries, bad = read_list(Path(flows.__file__).with_name("canaries.txt"))
    assert [canary.key.partition(":")[0] for canary in canaries] == ["youtube", "youtube", "bilibili"]
    assert bad == []
