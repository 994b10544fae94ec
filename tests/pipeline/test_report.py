"""The report: one page that needs nothing else, with the numbers of the manifest."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.release import Release
from pipeline.report import render_report
from pipeline.storage import Store
from tests.pipeline.test_release import FUNNEL, TWENTY, release_of, rows_of


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release_of(Store(tmp_path_factory.mktemp("data")), rows_of(*TWENTY))


class References(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "audio", "video", "source", "iframe"):
            self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_it_loads_nothing_from_elsewhere(release: Release) -> None:
    page = (Path(release.path) / "report.html").read_text()
    parser = References()
    parser.feed(page)
    assert all(reference.startswith("data:") for reference in parser.found)
    assert not re.search(r"url\((?!data:|#)|@import|fetch\(", page)


def test_it_shows_the_funnel_of_the_manifest(release: Release) -> None:
    page = re.sub(r"<[^>]+>", " ", (Path(release.path) / "report.html").read_text())
    assert release.manifest["id"] in page
    for reason in FUNNEL["dropped"]:  # type: ignore[attr-defined]
        assert reason in page


def test_words_of_strangers_stay_words(release: Release) -> None:
    exhibit = {
        "name": "x", "source_id": "x", "url": "https://example.org/<script>", "title": "<script>alert(1)</script>",
        "category": "promo", "start_s": 0.0, "end_s": 1.0, "reason": "speech",
    }  # fmt: skip
    page = render_report(copy.deepcopy(release.manifest), {"stretches": [exhibit], "scores": {}})
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
