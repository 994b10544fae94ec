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


def test_failed_sources_are_counted_by_reason_in_words_and_some_are_named(release: Release) -> None:
    manifest = copy.deepcopy(release.manifest)
    manifest["provenance"]["failed"] = {"blocked": 1, "internal": 2, "permanent": 14}
    named = {"permanent": [f"https://a.example/{i}" for i in range(3)], "blocked": ["https://b.example/?a&b"]}
    page = render_report(manifest, {"stretches": [], "scores": {}, "failed": named})
    rows = re.findall(r"<tr>.*?</tr>", page.split('<h2 id="failed">')[1].split("</table>")[0], re.DOTALL)[1:]
    assert [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows] == [
        "permanent 14 The video is gone or was never there 3 of 14: https://a.example/0 , https://a.example/1 , "
        "https://a.example/2",
        "internal 2 yt-dlp can&#39;t handle the page, or a stage broke",
        "blocked 1 The site refuses this machine https://b.example/?a&amp;b",
    ]
    manifest["provenance"]["failed"] = {}
    assert "No source has failed." in render_report(manifest)
    del manifest["provenance"]["failed"]
    assert "made before failures were counted" in render_report(manifest)


def test_it_says_how_many_there_are_where_only_some_are_shown(release: Release) -> None:
    shown = {"kept": (8, 1400), "dropped": (7, 14), "sources": (50, 120)}
    stretch = {
        "name": "x", "source_id": "x", "url": "https://example.org/", "title": "x", "category": "promo",
        "start_s": 0.0, "end_s": 1.0, "reason": "speech",
    }  # fmt: skip
    page = render_report(release.manifest, {"stretches": [stretch], "scores": {}, "shown": shown})
    assert "<h3>Kept: 8 of 1,400</h3>" in page and "<h3>Dropped: 7 of 14</h3>" in page
    assert "7 of 14 dropped stretches: the longest of each reason, out of 50 of 120 sources" in page


def test_words_of_strangers_stay_words(release: Release) -> None:
    exhibit = {
        "name": "x", "source_id": "x", "url": "https://example.org/<script>", "title": "<script>alert(1)</script>",
        "category": "promo", "start_s": 0.0, "end_s": 1.0, "reason": "speech",
    }  # fmt: skip
    page = render_report(copy.deepcopy(release.manifest), {"stretches": [exhibit], "scores": {}})
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
