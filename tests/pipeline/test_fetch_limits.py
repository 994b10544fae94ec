"""Downloads held to their limits from outside: time, progress, bytes, disk; no orphan, no temporary file, no secret."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors import SafetensorError

from pipeline.config import FetchSettings
from pipeline.errors import DiskFull, SettingsError, SourceError
from pipeline.fetch import fetch, pool
from pipeline.ledger import Ledger
from pipeline.media import encode
from pipeline.process.stage import disk_is_full, recorded
from pipeline.sources import Source, canonical_key, source_id
from tests.site import Site

SETTINGS = FetchSettings(allow_loopback=True, retries=0, socket_timeout_s=20, free_bytes=0)
COOKIE, PASSWORD = "c00kie-that-nobody-may-read", "pr0xy-password-that-nobody-may-read"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    noise = np.random.default_rng(0)
    frames = [np.kron(t, np.ones((10, 10, 1), np.uint8)) for t in noise.integers(0, 255, (50, 18, 32, 3), np.uint8)]
    encode(folder / "mute.mp4", frames, Fraction(25), None, 44100)
    with Site(folder) as site:
        site.password = COOKIE
        yield site


def source(url: str) -> Source:
    key = canonical_key(url)
    return Source(source_id(key), key, url, "", None, None, "", "", 1)


def failure(url: str, folder: Path, **settings: object) -> SourceError:
    with pytest.raises(SourceError) as raised:
        fetch(source(url), folder, SETTINGS.model_copy(update=settings))
    assert list(folder.iterdir()) == []
    return raised.value


def children() -> list[psutil.Process]:
    """Processes of downloads that this one has started, and what they have started; none that other tests have."""
    downloads = [p for p in psutil.Process().children() if alive(p) and "pipeline.fetch.child" in p.cmdline()]
    return downloads + [p for download in downloads for p in download.children(recursive=True) if alive(p)]


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("path", ["drip/mute.mp4", "page/drip/mute.mp4", "hang"])
def test_download_that_gets_nowhere_is_killed_and_leaves_nothing(site: Site, tmp_path: Path, path: str) -> None:
    fetch(source(site.url("mute.mp4")), tmp_path / "other", SETTINGS)  # a process is there and idle
    before = {p.pid for p in children()}
    began = time.monotonic()
    error = failure(site.url(path), tmp_path / "media", stall_s=2.0)
    assert error.error_class == "transient"
    assert "bytes came in" in error.message
    assert time.monotonic() - began < 20
    assert len(before & {p.pid for p in children()}) == len(before) - 1, "the one that hung is gone"


def test_download_that_takes_too_long_is_killed(site: Site, tmp_path: Path) -> None:
    error = failure(site.url("drip/mute.mp4"), tmp_path, wall_s=1.0, least_rate=0)
    assert (error.error_class, "longer than 1 s" in error.message) == ("transient", True)


def test_download_stops_before_the_disk_is_full(site: Site, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"fetch\.free_bytes") as raised:
        fetch(source(site.url("slow/mute.mp4")), tmp_path, SETTINGS.model_copy(update={"free_bytes": 1 << 60}))
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_process_is_used_again_and_replaced_when_it_died(site: Site, tmp_path: Path) -> None:
    pool.close()
    fetch(source(site.url("mute.mp4")), tmp_path, SETTINGS)
    (first,) = [p.pid for p in children()]
    fetch(source(site.url("mute.mp4?2")), tmp_path, SETTINGS)
    assert [p.pid for p in children()] == [first]
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first)], timeout=5)
    assert fetch(source(site.url("mute.mp4?3")), tmp_path, SETTINGS).bytes


def test_crash_of_the_process_is_this_sources_failure_only(site: Site, tmp_path: Path) -> None:
    pool.close()

    def crash(_done: int, _total: int | None) -> None:
        for process in children():
            process.send_signal(signal.SIGSEGV)

    with pytest.raises(SourceError, match="ended by signal 11") as raised:
        fetch(source(site.url("slow/mute.mp4")), tmp_path, SETTINGS, on_progress=crash)
    assert raised.value.error_class == "internal"
    assert list(tmp_path.iterdir()) == []


def test_no_orphan_outlives_a_killed_parent(site: Site, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.pipeline.test_fetch_limits import SETTINGS, source
from pipeline.fetch import fetch
fetch(source({site.url("drip/mute.mp4")!r}), Path({str(tmp_path)!r}), SETTINGS)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    asked = site.count("drip/mute.mp4")
    while site.count("drip/mute.mp4") == asked and parent.poll() is None:
        time.sleep(0.05)
    orphans = psutil.Process(parent.pid).children(recursive=True)
    assert orphans
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, left = psutil.wait_procs(orphans, timeout=5)
    assert left == []


# a full disk, wherever it shows


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_full_disk_stops_the_build_and_blames_no_source(error: Exception, tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    with pytest.raises(DiskFull, match="disk is full"), recorded(ledger, "a", "fetch", None):
        raise error
    assert ledger.failures() == []
    ledger.close()
    assert not disk_is_full(RuntimeError("broke"))


# cookies and proxies


def cookie_file(path: Path, value: str = COOKIE) -> Path:
    path.write_text(f"# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tpass\t{value}\n")
    return path


def test_cookies_are_copied_for_each_download_and_written_nowhere_else(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cookies = cookie_file(tmp_path / "cookies.txt")
    text = cookies.read_text()
    assert failure(site.url("members/mute.mp4"), tmp_path / "media").error_class == "blocked"
    with caplog.at_level(logging.DEBUG):
        got = fetch(
            source(site.url("members/mute.mp4")), tmp_path / "media", SETTINGS.model_copy(update={"cookies": cookies})
        )
    assert list((tmp_path / "media").iterdir()) == [got.path]
    assert cookies.read_text() == text, "what the site set went into the copy"
    assert COOKIE not in caplog.text
    assert site.requests[-1].headers["Cookie"] == f"pass={COOKIE}; seen=yes"


def test_proxy_gets_the_requests_and_its_password_stays_between_us(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    with Site(tmp_path / "empty") as proxy:
        proxies = tmp_path / "proxies.txt"
        proxies.write_text(f"# ours\nhttp://user:{PASSWORD}@127.0.0.1:{proxy.port}\n")
        with caplog.at_level(logging.DEBUG):
            error = failure("http://93.184.216.34/film.mp4", tmp_path / "media", proxies=proxies)
        assert [r.path for r in proxy.requests] == ["http://93.184.216.34/film.mp4"]
        assert "Proxy-Authorization" in proxy.requests[0].headers
    dead = failure("http://93.184.216.34/film.mp4", tmp_path / "media", proxies=proxies)
    assert dead.error_class == "transient"
    assert PASSWORD not in caplog.text + str(error) + str(dead)


@pytest.mark.parametrize("text", ["pass=" + COOKIE, f"127.0.0.1 FALSE / FALSE 0 pass {COOKIE}\n", "\xff"])
def test_file_that_holds_no_cookies_is_refused_without_being_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cookies.txt"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError) as raised:
        fetch(source("http://h/v.mp4"), tmp_path / "media", SETTINGS.model_copy(update={"cookies": path}))
    assert COOKIE not in str(raised.value)
    with pytest.raises(SettingsError):
        fetch(source("http://h/v.mp4"), tmp_path / "media", SETTINGS.model_copy(update={"proxies": path}))
