"""Asking for a source without downloading it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.config import FetchSettings
from pipeline.errors import SourceError
from pipeline.fetch.probing import probe
from pipeline.sources import Source, source_id
from pipeline.storage import Store
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


def test_cookies_of_a_probe_that_was_killed_are_swept_away_by_the_next_command(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, cookies = tmp_path / "scratch", tmp_path / "cookies.txt"
    scratch.mkdir()
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tpass\tmorsel\n")
    program = f"""
from pathlib import Path
from pipeline.config import FetchSettings
from pipeline.fetch.probing import probe
from pipeline.sources import Source
url = {site.url("hang")!r}
settings = FetchSettings(allow_loopback=True, retries=0, cookies=Path({str(cookies)!r}))
probe(Source("0" * 16, url, url, "", None, None, "", "", 1), settings)
"""
    asking = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(scratch)})
    while not site.requests:
        assert asking.poll() is None
        time.sleep(0.05)
    children = psutil.Process(asking.pid).children(recursive=True)
    asking.kill()
    asking.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert [path.read_text() for path in scratch.rglob("cookies.txt")]
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    Store(tmp_path / "data").sweep()
    assert list(scratch.iterdir()) == []
