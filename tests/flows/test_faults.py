"""The real command against a site with every fault: classes, tries, pacing, breaker; and no secret anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np
import pytest

from pipeline.media import encode
from tests.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
FAST = (
    "fetch.allow_loopback=true", "fetch.socket_timeout_s=6", "fetch.retries=0", "fetch.stall_s=12",
    "fetch.free_bytes=0",
)  # fmt: skip
HOSTILE = "../../../etc/passwd \x1b[31m <script>alert(1)</script> ${HOME} '; DROP TABLE sources; -- %s.mp4"
FATES = {
    "mute.mp4": "ready",
    "two.mp4": "ready",  # two frames
    "blind.mp4": "ready",  # audio only
    "page/mute.mp4?" + quote(HOSTILE): "ready",
    "flaky/mute.mp4": "ready",  # 503 twice, then fine
    "redirect?to=/mute.mp4": "ready",
    "members/mute.mp4": "ready",  # with the cookie
    "err/404": "permanent",
    "err/410": "permanent",
    "redirect/loop": "permanent",
    "err/401": "blocked",
    "err/403": "blocked",
    "err/500": "transient",
    "err/503": "transient",
    "hang": "transient",
    "stall/mute.mp4": "transient",
    "drip/mute.mp4": "transient",
    "truncated/mute.mp4": "transient",
    "empty.mp4": "transient",  # zero bytes
    "missing/hls/list.m3u8": "transient",  # a segment of it
    "flipped/film.mp4": "corrupt",
    "length/mute.mp4": "corrupt",  # half the length declared, and sent
    "html/mute.mp4": "unsupported",  # a page that says it is a video
    "page/": "unsupported",
    "live/hls/list.m3u8": "unsupported",
    "redirect?to=http://10.0.0.1/film.mp4": "unsupported",
    "redirect?to=http://169.254.169.254/latest/meta-data/": "unsupported",
    "redirect?to=file:///etc/passwd": "unsupported",
}
COOKIE, PROXY_PASSWORD = "c00kie-that-nobody-may-read", "pr0xy-password-that-nobody-may-read"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos without sound or picture, which take no model to work on, and a film that never comes whole."""
    folder = tmp_path_factory.mktemp("site")
    noise = np.random.default_rng(0)
    frames = [np.kron(t, np.ones((10, 10, 1), np.uint8)) for t in noise.integers(0, 255, (100, 18, 32, 3), np.uint8)]
    sound = (0.1 * noise.standard_normal((1, 4 * 44100))).astype(np.float32)
    encode(folder / "mute.mp4", frames[:50], Fraction(25), None, 44100)
    encode(folder / "film.mp4", frames, Fraction(25), sound, 44100)
    encode(folder / "two.mp4", frames[:2], Fraction(25), None, 44100)
    encode(folder / "blind.mp4", None, Fraction(25), np.zeros((1, 44100), np.float32), 44100)
    (folder / "empty.mp4").touch()
    for i in range(6):
        (folder / f"mute{i}.mp4").write_bytes((folder / "mute.mp4").read_bytes() + b"\0\0\0\x08free" * i)
    (folder / "hls").mkdir()
    options = {"hls_time": "1", "hls_segment_filename": str(folder / "hls" / "%d.ts")}
    with (
        av.open(str(folder / "film.mp4")) as old,
        av.open(str(folder / "hls" / "list.m3u8"), "w", format="hls", options=options) as new,
    ):
        streams = [new.add_stream_from_template(stream) for stream in old.streams]
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    assert (folder / "mute.mp4").stat().st_size > 60_000
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    with Site(folder) as site:
        site.password = COOKIE
        yield site


@pytest.fixture(scope="module")
def cookies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secrets") / "cookies.txt"
    path.write_text(f"# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tpass\t{COOKIE}\n")
    return path


def run(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    patient = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600"}  # the machine may be busy
    env = os.environ | patient | ({"PREFECT_HOME": str(home)} if home else {})
    command = [sys.executable, "-m", "flows", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200, env=env)


def build(source_list: Path, data: Path, *settings: str, verbose: bool = False) -> subprocess.CompletedProcess[str]:
    options = [part for setting in (*FAST, *settings) for part in ("--set", setting)]
    shown = ["--verbose"] if verbose else []
    arguments = ["build", source_list, "--data", data, "--profile", "nano", *options, *shown]
    return run(*arguments, home=data.parent / "prefect" if verbose else None)


def fates(data: Path) -> dict[str, str]:
    """What became of each source, by address."""
    from pipeline.ledger import Ledger

    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    found = {row.url: row.error_class if row.state == "failed" else row.state for row in ledger.sources()}
    ledger.close()
    return found


@pytest.fixture(scope="module")
def built(site: Site, cookies: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Data folder and list of a build over all faults, and what it said."""
    folder = tmp_path_factory.mktemp("built")
    source_list = folder / "list.txt"
    source_list.write_text("".join(site.url(path) + "\n" for path in FATES))
    manners = (f"fetch.cookies={cookies}", "fetch.threads=4", "fetch.per_host=4", "fetch.most_refusals=99")
    result = build(source_list, folder / "data", *manners, verbose=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "data", source_list, result.stdout + result.stderr


def test_every_fault_ends_in_its_class(site: Site, built: tuple[Path, Path, str]) -> None:
    got = {url.removeprefix(site.url()): fate for url, fate in fates(built[0]).items()}
    assert {p: got[p] for p in FATES} == FATES


def test_status_groups_by_class_and_says_what_follows(built: tuple[Path, Path, str]) -> None:
    found = json.loads(run("status", "--data", built[0], "--json").stdout)
    wanted = Counter(fate for fate in FATES.values() if fate != "ready")
    assert {name: group["sources"] for name, group in found["failures"].items()} == wanted
    assert found["failures"]["permanent"]["then"] == "never"
    assert found["failures"]["transient"]["waiting"] == wanted["transient"]
    assert found["failures"]["unsupported"]["for_a_person"] == wanted["unsupported"]
    text = run("status", "--data", built[0]).stdout
    assert all(f"{name} {n}: " in text for name, n in wanted.items())


def test_the_site_was_asked_as_the_policies_say(site: Site, built: tuple[Path, Path, str]) -> None:
    for path, fate in FATES.items():
        asked = site.count(path)
        if fate in ("permanent", "blocked", "unsupported") and "loop" not in path and "live" not in path:
            assert asked == (2 if path.startswith("html") else 1), path  # a look at the page, then at the "media"
        if path.startswith(("err/5", "hang")):
            assert asked == 3, path  # one try and two more of the same build


def test_nothing_is_asked_again_before_it_is_due_but_by_retry(site: Site, built: tuple[Path, Path, str]) -> None:
    data, source_list, _ = built
    before = len(site.requests)
    again = build(source_list, data)
    assert "Nothing to do" in again.stdout
    assert len(site.requests) == before
    retried = run("retry", "--data", data, "--class", "permanent", "--older-than", "1d", "--json")
    assert json.loads(retried.stdout)["reopened"] == 0
    retried = run("retry", "--data", data, "--source", site.url("err/404"), "--json")
    assert json.loads(retried.stdout) == {"reopened": 1, "classes": {"permanent": 1}}
    rebuilt = build(source_list, data)
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    assert [r.path for r in site.requests[before:]] == ["/err/404"]


def test_no_secret_is_in_any_log_ledger_or_file(built: tuple[Path, Path, str], cookies: Path, site: Site) -> None:
    data, _, said = built
    assert any(f"pass={COOKIE}" in r.headers.get("Cookie", "") for r in site.requests)
    assert COOKIE not in said
    files = [p for p in data.parent.rglob("*") if p.is_file()]
    assert any(p.name == "prefect.db" for p in files)
    assert [p for p in files if COOKIE.encode() in p.read_bytes()] == []
    assert cookies.read_text().count("\n") == 2  # what the site set went into the copy


def test_nothing_half_done_is_left(built: tuple[Path, Path, str]) -> None:
    data = built[0]
    assert list(data.rglob(".tmp-*")) == []
    assert list((data / "media").glob("*")) == []


def test_a_host_that_throttles_rests_is_probed_and_then_gives_all(folder: Path, tmp_path: Path) -> None:
    with Site(folder) as busy, Site(folder) as other:
        source_list = tmp_path / "list.txt"
        paths = [f"busy/2/mute{i}.mp4?1" for i in range(6)]
        source_list.write_text("".join(f"{s.url(p)}\n" for s, ps in ((busy, paths), (other, ["mute.mp4"])) for p in ps))
        manners = ("fetch.per_host=3", "fetch.pause_s=[0.3,0.4]", "fetch.patience_s=30")
        result = build(source_list, tmp_path / "data", *manners)
        assert result.returncode == 0, result.stdout + result.stderr
        assert set(fates(tmp_path / "data").values()) == {"ready"}
        assert "throttles" in result.stdout
        at = [r.at_s for r in busy.requests]
        refused = busy.requests[:2]
        assert all(r.path.startswith("/busy") for r in refused)
        gaps = np.diff(at)
        assert max(gaps) >= 1.0, "Retry-After: 1"
        assert busy.most_at_a_time <= 3
        firsts = sorted({r.path: r.at_s for r in reversed(busy.requests)}.values())
        assert firsts[-1] - firsts[0] >= 5 * 0.3, "a pause between two starts"
