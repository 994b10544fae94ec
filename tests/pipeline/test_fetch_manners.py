"""Retry-After on its way from a site to the manners: nothing is asked again at once, not even a segment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from prefect.states import Failed

from flows.build import _is_transient
from pipeline.config import FetchSettings, load_profile
from pipeline.errors import ErrorClass, HostRests, SourceError
from pipeline.fetch import fetch
from pipeline.process import Desk
from pipeline.sources import Source, canonical_key, source_id
from tests.site import Site

SETTINGS = FetchSettings(allow_loopback=True, free_bytes=0)  # with yt-dlp's own tries of a file or a segment


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as site:
        yield site


def source(url: str) -> Source:
    key = canonical_key(url)
    return Source(source_id(key), key, url, "", None, None, "", "", 1)


def failure(url: str, folder: Path) -> SourceError:
    with pytest.raises(SourceError) as raised:
        fetch(source(url), folder, SETTINGS)
    return raised.value


def stream(segment: str) -> str:
    """A route to an HLS list of one segment."""
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", f"/{segment}", "#EXT-X-ENDLIST", "")
    return "text/list.m3u8?" + quote("\n".join(lines))


@pytest.mark.parametrize(
    ("segment", "error_class", "asked"),
    [
        ("err/429?60", "throttled", 1),
        ("err/503?60", "transient", 1),
        ("err/412", "throttled", 1),
        ("err/404", "transient", 2),  # ... for yt-dlp may try it again
    ],
)
def test_segment_is_not_asked_for_again_where_the_server_wants_a_rest(
    site: Site, tmp_path: Path, segment: str, error_class: ErrorClass, asked: int
) -> None:
    settings = SETTINGS.model_copy(update={"retries": 1})
    with pytest.raises(SourceError) as raised:
        fetch(source(site.url(stream(segment))), tmp_path / "media", settings)
    assert raised.value.error_class == error_class
    assert raised.value.retry_after_s == (60 if "?" in segment else None)
    assert site.count(segment) == asked


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_comes_through_as_seconds_or_as_a_date_but_not_as_nothing(
    site: Site, tmp_path: Path, status: int
) -> None:
    assert failure(site.url(f"err/{status}?90"), tmp_path / "media").retry_after_s == 90
    later = quote(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert 60 < (failure(site.url(f"err/{status}?{later}"), tmp_path / "media").retry_after_s or 0) <= 90
    for passed in ("0", "Thu,%2001%20Jan%202026%2000:00:00%20GMT"):
        assert failure(site.url(f"err/{status}?{passed}"), tmp_path / "media").retry_after_s is None


@pytest.mark.parametrize("status", [429, 503])
def test_host_that_says_retry_after_is_left_alone_by_the_next_source_and_by_the_same_build(
    site: Site, tmp_path: Path, status: int
) -> None:
    desk = Desk(tmp_path / "data", load_profile("nano", ["fetch.allow_loopback=true", "fetch.free_bytes=0"]))
    asked, other = source(site.url(f"err/{status}?120")), source(site.url("other.mp4"))
    desk.add([asked, other])
    with pytest.raises(SourceError) as raised:
        desk.acquire(asked.source_id)
    assert not _is_transient(None, None, Failed(data=raised.value)), "Prefect would ask again after two seconds"
    with pytest.raises(HostRests) as rests:
        desk.acquire(other.source_id)
    assert 100 < (rests.value.until - datetime.now(UTC)).total_seconds() <= 120
    assert [r.path for r in site.requests] == [f"/err/{status}?120"]
