"""Discovery: what yt-dlp's extractors list, from answers of the sites that are faked at the socket only."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from yt_dlp.networking.common import Request, Response
from yt_dlp.networking.exceptions import HTTPError

from pipeline.config import FetchSettings
from pipeline.discover import COLUMNS, Filter, Found, discover, read_queries, search
from pipeline.errors import DvmsetError
from pipeline.fetch.network import VettedRH
from pipeline.sources import read_list
from tests.site import Site

SETTINGS = FetchSettings(allow_loopback=True, retries=0, socket_timeout_s=20)
HOSTILE = '=HYPERLINK("http://x")\n\x1b[31m,"'


def renderer(number: int, clock: str = "1:30", title: str = "A title", **more: Any) -> dict[str, Any]:
    runs = {"runs": [{"text": "A channel"}]}
    video = {"videoId": f"video{number:06d}", "title": {"runs": [{"text": title}]}, "ownerText": runs}
    return {"videoRenderer": {**video, **({"lengthText": {"simpleText": clock}} if clock else {}), **more}}


def results(*videos: dict[str, Any]) -> dict[str, Any]:
    """YouTube's answer to a search, as far as yt-dlp reads it."""
    section = [{"itemSectionRenderer": {"contents": list(videos)}}]
    primary = {"primaryContents": {"sectionListRenderer": {"contents": section}}}
    return {"contents": {"twoColumnSearchResultsRenderer": primary}}


def channel(shown: str, *tabs: str) -> dict[str, Any]:
    """The page of a channel's tab, with two videos; the home tab shows none."""
    items = [{"richItemRenderer": {"content": renderer(10 * tabs.index(shown) + n)}} for n in range(2)]
    grid = {"richGridRenderer": {"contents": items if shown != "featured" else []}}

    def tab(name: str) -> dict[str, Any]:
        said = {"selected": name == shown, "title": name.title(), **({"content": grid} if name == shown else {})}
        address = {"commandMetadata": {"webCommandMetadata": {"url": f"/@name/{name}"}}}
        return {"tabRenderer": {**said, "endpoint": address}}

    browse = {"twoColumnBrowseResultsRenderer": {"tabs": [tab(name) for name in tabs]}}
    about = {"channelMetadataRenderer": {"title": "A channel", "externalId": "UC" + "a" * 22}}
    return {"contents": browse, "metadata": about}


def playlist(count: int) -> dict[str, Any]:
    videos = [
        {"playlistVideoRenderer": {"videoId": f"video{n:06d}", "title": {"runs": [{"text": "T"}]}}}
        for n in range(count)
    ]
    listed = {"itemSectionRenderer": {"contents": [{"playlistVideoListRenderer": {"contents": videos}}]}}
    tab = {"tabRenderer": {"selected": True, "content": {"sectionListRenderer": {"contents": [listed]}}}}
    browse = {"twoColumnBrowseResultsRenderer": {"tabs": [tab]}}
    return {"contents": browse, "metadata": {"playlistMetadataRenderer": {"title": "P"}}}


class Web:
    """What the sites answer; remembers what they were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.youtube: dict[str, dict[str, Any]] = {}
        self.pages: dict[str, dict[str, Any]] = {}  # of YouTube, by path
        self.status = 200

    def __call__(self, _handler: VettedRH, request: Request) -> Response:
        parts = urlsplit(request.url)
        self.asked.append(f"{parts.hostname}{parts.path}")
        body: object = ""
        if parts.path == "/youtubei/v1/search":
            body = self.youtube.get(json.loads(bytes(request.data))["query"], {})
        elif parts.path == "/x/web-interface/search/type":
            page = int(parse_qs(parts.query)["page"][0])
            video = {"arcurl": "http://www.bilibili.com/video/av170001", "aid": 170001}
            body = {"code": 0, "data": {"result": [video] if page == 1 else []}}
        elif parts.path in self.pages:
            body = f"<html><script>var ytInitialData = {json.dumps(self.pages[parts.path])};</script></html>"
        text = body if isinstance(body, str) else json.dumps(body)
        response = Response(io.BytesIO(text.encode()), request.url, {"Content-Type": "text/html"}, self.status)
        if self.status >= 400:
            raise HTTPError(response)
        return response


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web()
    monkeypatch.setattr(VettedRH, "_send", lambda handler, request: web(handler, request))
    return web


def found(
    path: Path, *queries: str, site: str = "youtube", limit: int = 20, wanted: Filter | None = None
) -> list[Found]:
    return list(discover([search(q, site) for q in queries], path, limit, wanted or Filter(), SETTINGS))


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_search_becomes_a_list_that_can_be_built(web: Web, tmp_path: Path) -> None:
    web.youtube["food commercial"] = results(renderer(1), renderer(2, "10:00", HOSTILE), renderer(3, ""))
    path = tmp_path / "lists" / "list.csv"
    (result,) = found(path, "food  commercial")
    assert (result.added, result.known, result.left_out, result.error) == (3, 0, 0, None)
    rows = table(path)
    assert list(rows[0]) == list(COLUMNS)
    assert rows[0] == {
        "url": "https://www.youtube.com/watch?v=video000001",
        "category": "food commercial",
        "title": "A title",
        "channel": "A channel",
        "seconds": "90",
        "query": "food commercial",
    }
    assert rows[1]["title"] == '\'=HYPERLINK("http://x") [31m,"'
    sources, bad = read_list(path)
    assert [s.key for s in sources] == [f"youtube:video{n:06d}" for n in (1, 2, 3)]
    assert bad == []
    assert sum(host.endswith("/search") for host in web.asked) == 1, "no video's page is opened"


def test_limit_and_length_are_kept_and_unknown_lengths_pass(web: Web, tmp_path: Path) -> None:
    web.youtube["q"] = results(*(renderer(n, clock) for n, clock in enumerate(("0:10", "1:00", "", "59:00", "1:01"))))
    (result,) = found(tmp_path / "a.csv", "q", wanted=Filter(30, 600))
    assert (result.added, result.left_out) == (3, 2)
    (result,) = found(tmp_path / "b.csv", "q", limit=2)
    assert result.added == 2


def test_second_run_adds_only_what_is_new_and_leaves_the_rest_as_it_is(web: Web, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    mine = 'youtube_id;note;type\nvideo000001;"mine; of course";promo'
    path.write_text(mine)
    web.youtube["q"] = results(renderer(1), renderer(2))
    for added in (1, 0):
        (result,) = found(path, "q")
        assert (result.added, result.known) == (added, 2 - added)
    assert path.read_text() == mine + "\nhttps://www.youtube.com/watch?v=video000002;;q\n"
    assert [p.name for p in tmp_path.iterdir()] == ["list.csv"]


def test_one_video_found_by_two_queries_is_listed_once(web: Web, tmp_path: Path) -> None:
    web.youtube |= {"a": results(renderer(1)), "b": results(renderer(1), renderer(2))}
    assert [r.added for r in found(tmp_path / "list.csv", "a", "b")] == [1, 1]


@pytest.mark.parametrize("tabs", [("videos",), ("videos", "shorts"), ("videos", "shorts", "streams")])
def test_bare_address_of_a_channel_gives_the_videos_of_all_its_tabs(
    web: Web, tmp_path: Path, tabs: tuple[str, ...]
) -> None:
    all_tabs = ("featured", *tabs)
    web.pages = {f"/@name/{tab}": channel(tab, *all_tabs) for tab in all_tabs}
    web.pages["/@name"] = web.pages["/@name/featured"]
    (result,) = found(tmp_path / "list.csv", "https://www.youtube.com/@name", site="")
    assert (result.added, result.left_out, result.error) == (2 * len(tabs), 0, None)
    numbers = [10 * n + i for n in range(1, len(all_tabs)) for i in range(2)]
    wanted = [f"https://www.youtube.com/watch?v=video{n:06d}" for n in numbers]
    assert sorted(row["url"] for row in table(tmp_path / "list.csv")) == wanted
    (result,) = found(tmp_path / "few.csv", "https://www.youtube.com/@name", site="", limit=1)
    assert (result.added, len(table(tmp_path / "few.csv"))) == (1, 1)


@pytest.mark.parametrize("count", [0, 3])
def test_playlist_gives_its_videos(web: Web, tmp_path: Path, count: int) -> None:
    web.pages["/playlist"] = playlist(count)
    (result,) = found(tmp_path / "list.csv", "https://www.youtube.com/playlist?list=PL" + "a" * 32, site="")
    assert (result.added, result.left_out, result.error) == (count, 0, None)
    wanted = [f"https://www.youtube.com/watch?v=video{n:06d}" for n in range(count)]
    assert [row["url"] for row in table(tmp_path / "list.csv")] == wanted


def test_bilibili_is_searched_too_and_old_numbers_become_ids(web: Web, tmp_path: Path) -> None:
    (result,) = found(tmp_path / "list.csv", "宣传片", site="bilibili")
    assert result.added == 1
    assert table(tmp_path / "list.csv")[0]["url"] == "https://www.bilibili.com/video/BV17x411w7KC"


def test_site_that_throttles_is_not_asked_again_and_nothing_is_lost(web: Web, tmp_path: Path) -> None:
    web.youtube["a"] = results(renderer(1))
    path = tmp_path / "list.csv"
    queries = [search(q, "youtube") for q in "abc"]
    outcomes: Iterator[Found] = discover(queries, path, 5, Filter(), SETTINGS)
    assert next(outcomes).added == 1
    web.status = 429
    second = next(outcomes)
    assert second.error is not None and second.error.error_class == "throttled"
    asked = len(web.asked)
    third = next(outcomes)
    assert third.error is second.error
    assert len(web.asked) == asked
    assert len(table(path)) == 1


def test_feed_of_an_own_site_is_listed(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site") as site:
        items = "".join(f"<item><title>T{n}</title><link>{site.url(f'v{n}.mp4')}</link></item>" for n in (1, 2))
        feed = f"<?xml version='1.0'?><rss version='2.0'><channel><title>F</title>{items}</channel></rss>"
        queries = [search(site.url("text/feed.xml?" + quote(feed)), "", "promo")]
        (result,) = discover(queries, tmp_path / "list.csv", 10, Filter(), SETTINGS)
        assert result.added == 2
        assert [(r["url"], r["category"]) for r in table(tmp_path / "list.csv")] == [
            (site.url(f"v{n}.mp4"), "promo") for n in (1, 2)
        ]
        assert len(site.requests) == 1


def test_videos_without_pages_of_their_own_are_listed_by_the_address_of_their_files(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(bytes(1000))
    with Site(tmp_path) as site:
        queries = [search(site.url("page/a.mp4,b.mp4")), search(site.url("page/a.mp4"))]
        found = list(discover(queries, tmp_path / "list.csv", 9, Filter(), SETTINGS))
        wanted = [site.url(path) for path in ("a.mp4", "b.mp4", "page/a.mp4")]
    assert [f.added for f in found] == [2, 1]
    assert [source.url for source in read_list(tmp_path / "list.csv")[0]] == wanted


def test_keywords_of_the_paper_are_ready() -> None:
    queries = read_queries("dvmset")
    assert {q.site for q in queries} == {"youtube", "bilibili"}
    assert "food commercial" in {q.text for q in queries}
    assert len(queries) == len(set(queries)) == 20
    assert all(q.category for q in queries)


def test_category_chooses_among_keywords_and_labels_only_those_that_have_none(tmp_path: Path) -> None:
    chosen = read_queries("dvmset", "commercial")
    assert [(q.text, q.category) for q in chosen] == [
        ("food commercial", "commercial"), ("product commercial", "commercial"),
    ]  # fmt: skip
    mine = tmp_path / "mine.csv"
    mine.write_text("query,site,category\ncats,youtube,\ndogs,youtube,pets\ncars,youtube,promo\n")
    assert [(q.text, q.category) for q in read_queries(str(mine), "pets")] == [("cats", "pets"), ("dogs", "pets")]
    mine.write_text("query,site\ncats,youtube\n")
    assert [(q.text, q.category) for q in read_queries(str(mine), "pets")] == [("cats", "pets")]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: search("cats", "vimeo"), "no search on 'vimeo'"),
        (lambda path: search("cats"), "no address"),
        (lambda path: read_queries("no-such"), "no-such"),
        (lambda path: read_queries("dvmset", "comercial"), "comercial.*animation, commercial"),
        (lambda path: found(path / "list.txt", "q"), ".csv"),
    ],
)
def test_what_cannot_be_looked_for_is_said(call: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DvmsetError, match=words):
        call(tmp_path)
