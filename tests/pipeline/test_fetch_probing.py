"""Asking for a source without downloading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import FetchSettings
from pipeline.errors import SourceError
from pipeline.fetch.probing import probe
from pipeline.sources import Source, source_id
from tests.site import Site

SETTINGS = FetchSettings(allow_loopback=True, retries=0, socket_timeout_s=3.0, free_bytes=0)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "video.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(3_000_000))
    with Site(tmp_path) as site:
        yield site


def source(url: str) -> Source:
    return Source(source_id(url), url, url, "promo", None, None, "", "", 0)


def test_a_video_is_seen_in_one_request_and_in_another_revision_when_it_changed(site: Site) -> None:
    url = site.url("video.mp4")
    before = probe(source(url), SETTINGS)
    assert before["revision"]
    assert probe(source(url), SETTINGS)["revision"] == before["revision"]
    assert site.count("video.mp4") == 2
    (site.folder / "video.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(2_000_000))
    assert probe(source(url), SETTINGS)["revision"] != before["revision"]


def test_a_question_needs_no_room_on_disk(site: Site) -> None:
    settings = SETTINGS.model_copy(update={"free_bytes": 1 << 60})
    assert probe(source(site.url("video.mp4")), settings)["revision"]


@pytest.mark.parametrize(
    ("path", "error_class"),
    [("gone.mp4", "permanent"), ("err/429", "throttled"), ("err/503", "transient"), ("hang", "transient")],
)
def test_a_refusal_comes_with_its_class(site: Site, path: str, error_class: str) -> None:
    with pytest.raises(SourceError) as caught:
        probe(source(site.url(path)), SETTINGS)
    assert caught.value.error_class == error_class
