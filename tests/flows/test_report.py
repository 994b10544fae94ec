"""The report of a release whose media was kept: its numbers, its listening room, and the page itself in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.browser import page_in_chromium
from tests.kept import keep_media, newest_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newest_release(keep_media(tmp_path_factory.mktemp("report") / "data"))


@pytest.fixture(scope="module")
def manifest(release: Path) -> dict[str, Any]:
    return dict(json.loads((release / "manifest.json").read_text()))


@pytest.fixture(scope="module")
def page(release: Path) -> str:
    return (release / "report.html").read_text()


def sides(page: str) -> tuple[list[str], list[str]]:
    """The stretches of the listening room: kept, dropped."""
    kept, dropped = re.findall(r'<section class="\w+-side">(.*?)</section>', page, re.DOTALL)
    return tuple(re.findall(r"<article.*?</article>", side, re.DOTALL) for side in (kept, dropped))  # type: ignore[return-value]


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def heard(uri: str) -> np.ndarray:
    """[N] samples of an embedded sound, at 48 kHz."""
    data = base64.b64decode(uri.removeprefix("data:audio/ogg;base64,"))
    with av.open(io.BytesIO(data)) as file:
        return np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])


def test_the_funnel_is_the_manifests(page: str, manifest: dict[str, Any]) -> None:
    table = page.split('<h2 id="funnel">')[1].split("</table>")[0]
    rows = [text_of(row) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
    funnel = manifest["funnel"]
    assert rows[0].startswith(f"fetched {funnel['fetched']:,.3f} s 100.0%")
    assert rows[-1].startswith(f"kept {funnel['kept']:,.3f} s {funnel['kept'] / funnel['fetched']:.1%}")
    for (reason, seconds), row in zip(funnel["dropped"].items(), rows[1:-1], strict=True):
        assert row.startswith(f"dropped: {reason} {seconds:,.3f} s {seconds / funnel['fetched']:.1%}")


def test_kept_and_dropped_stand_side_by_side_and_each_dropped_one_has_its_reason(page: str) -> None:
    kept, dropped = sides(page)
    assert len(kept) == len(dropped) == 8
    counts = re.findall(r"<h3>(Kept|Dropped): 8 of (\d+)</h3>", page)
    assert [side for side, count in counts if int(count) > 8] == ["Kept", "Dropped"]
    assert "out of 10 of 10 sources" in page
    assert all('<span class="badge kept">kept</span>' in stretch for stretch in kept)
    reasons = [re.findall(r"dropped: (\w+)</span> (.*?)\.", stretch)[0] for stretch in dropped]
    assert {name for name, _ in reasons} >= {"speech", "silence", "voice"}
    assert dict(reasons)["speech"] == "speech without music, or louder than it"
    assert len({re.findall(r"<code>(.*?)</code>", stretch)[0] for stretch in kept}) == 8, "each of another source"


def test_each_stretch_has_its_lanes_on_one_axis(page: str) -> None:
    kept, dropped = sides(page)
    lanes = ["sound", "without voice", "music", "speech", "voice ratio", "stem: vocals", "stem: other"]
    for stretch in kept + dropped:
        labels = re.findall(r'<text x="0" y="[\d.]+">(.*?)</text>', stretch)
        assert labels == [*lanes, "rhythm curve", "beats"]
        assert stretch.count('class="dash"') == 3  # thresholds of music, speech and voice
    assert all("<polyline" in stretch and "not computed" not in stretch for stretch in kept)
    assert all("not computed: dropped before vision" in stretch for stretch in dropped)
    assert all("<polyline" not in stretch for stretch in dropped)


def test_two_sounds_play_as_published_and_without_voices(page: str) -> None:
    kept, dropped = sides(page)
    for stretch in (kept[0], dropped[0]):
        assert [text_of(p) for p in re.findall(r'<div class="player">.*?</div>', stretch)] == [
            "as published",
            "without voices",
        ]
        start, end = (
            60 * int(m) + float(s) for m, s in re.findall(r"(\d+):(\d\d\.\d\d)", text_of(stretch.split("<span")[0]))[:2]
        )
        published, stem = (heard(uri) for uri in re.findall(r'src="(data:audio[^"]*)"', stretch))
        assert len(published) / 48_000 == pytest.approx(min(12.0, end - start), abs=0.1)
        assert len(stem) / 48_000 == pytest.approx(len(published) / 48_000, abs=0.1)
        tone = np.fft.rfftfreq(48_000, 1 / 48_000)[np.abs(np.fft.rfft(published[2_400:50_400], 48_000)).argmax()]
        assert 200 < tone < 20_000, "the film's tone"
        assert np.std(stem) == pytest.approx(0.1 / 3**0.5, rel=0.4), "the world's stem is noise of that level"


def test_without_media_there_is_nothing_to_play_and_the_page_says_how_to_have_it(release: Path) -> None:
    from pipeline.report import render_report

    manifest = json.loads((release / "manifest.json").read_text())
    stretch = {
        "name": "x", "source_id": "x", "url": "https://a.example/1", "title": "one", "category": "promo",
        "start_s": 0.0, "end_s": 1.0, "reason": "duplicate",
    }  # fmt: skip
    page = render_report(manifest, {"stretches": [stretch], "scores": {}})
    assert "<audio" not in page and "build with fetch.keep_media=true to listen" in page
    assert "Nothing was measured here: it was dropped before that." in page


@pytest.mark.slow
def test_offline_in_a_browser_the_funnel_and_dropped_clips_are_seen_and_the_line_follows_the_sound(
    release: Path, manifest: dict[str, Any]
) -> None:
    with page_in_chromium() as page:
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.context.set_offline(True)
        page.goto((release / "report.html").as_uri())
        assert page.locator("#funnel + p + table tr").count() == 2 + len(manifest["funnel"]["dropped"])
        assert page.locator("#funnel + p + table").is_visible()
        examples = page.locator("tr.example")
        assert examples.count() >= 3
        for row in examples.all()[:3]:
            name, *_, badge, why, _ = [cell.inner_text() for cell in row.locator("td").all()]
            assert row.is_visible() and name and badge in manifest["funnel"]["dropped"] and len(why) > 5
        first = examples.first.locator("a")
        first.click()
        assert page.url.endswith(str(first.get_attribute("href")))

        article = page.locator("section.dropped-side article").first
        before = float(str(article.locator(".head").get_attribute("x1")))
        article.locator("audio").first.evaluate("player => { player.currentTime = 2; return player.play(); }")
        moved = "() => Number(document.querySelector('.dropped-side article .head').getAttribute('x1'))"
        page.wait_for_function(f"({moved})() > {before} + 1", timeout=60_000)
        article.locator("audio").last.evaluate("player => player.play()")
        assert article.locator("audio").first.evaluate("player => player.paused")
        kept, dropped = (page.locator(f"section.{side}-side").bounding_box() for side in ("kept", "dropped"))
        assert kept and dropped and kept["y"] == dropped["y"] and kept["x"] + kept["width"] <= dropped["x"]
        assert problems == []
