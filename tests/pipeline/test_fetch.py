"""Downloads from a real site on this machine, with real media and every fault it knows."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import numpy as np
import pytest

from pipeline.config import FetchSettings
from pipeline.errors import SourceError
from pipeline.fetch import fetch
from pipeline.fetch.work import Came, Order, carry_out
from pipeline.media import encode
from pipeline.sources import Source, canonical_key, source_id
from tests.site import RETRY_AFTER_S, Site

RATE = Fraction(25)
SECONDS = 4
SETTINGS = FetchSettings(allow_loopback=True, retries=0, socket_timeout_s=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """film.mp4 and its relatives: without sound, without picture, as MKV, as an HLS and as a DASH stream."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    tiles = random.integers(0, 255, (SECONDS * 25, 18, 32, 3), dtype=np.uint8)
    frames = [np.kron(tile, np.ones((10, 10, 1), np.uint8)) for tile in tiles]
    audio = (0.1 * random.standard_normal((1, SECONDS * 44100))).astype(np.float32)
    encode(folder / "film.mp4", frames, RATE, audio, 44100)
    encode(folder / "silent.mp4", frames[:25], RATE, None, 44100)
    encode(folder / "blind.mp4", None, RATE, audio, 44100)
    (folder / "sound.m4a").write_bytes((folder / "blind.mp4").read_bytes())
    for name in ("hls", "dash"):
        (folder / name).mkdir()
    repack(folder / "film.mp4", folder / "film.mkv", "matroska")
    segments = str(folder / "hls" / "%d.ts")
    repack(folder / "film.mp4", folder / "hls" / "list.m3u8", "hls", hls_time="1", hls_segment_filename=segments)
    repack(folder / "film.mp4", folder / "dash" / "list.mpd", "dash", seg_duration="1")
    return folder


def repack(source: Path, target: Path, container: str, **options: str) -> None:
    with av.open(str(source)) as old, av.open(str(target), "w", format=container, options=options) as new:
        streams = [new.add_stream_from_template(stream) for stream in old.streams]
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


@pytest.fixture
def site(files: Path) -> Any:
    with Site(files) as site:
        yield site


def source(url: str) -> Source:
    key = canonical_key(url)
    return Source(source_id(key), key, url, "promo", None, None, "", "list.csv", 1)


def failure(url: str, folder: Path, settings: FetchSettings = SETTINGS) -> SourceError:
    with pytest.raises(SourceError) as raised:
        fetch(source(url), folder, settings)
    assert list(folder.iterdir()) == [], "a fetch that failed leaves nothing"
    assert url.partition("#")[0] in raised.value.message
    assert raised.value.hint
    return raised.value


def here(url: str, folder: Path) -> Came:
    """The work of a download in this very process, where it can be watched and its surroundings changed."""
    folder.mkdir(exist_ok=True)
    return carry_out(Order(source(url), folder, SETTINGS, ""))


# what comes


def test_file_arrives_whole_checked_and_under_our_name(site: Site, files: Path, tmp_path: Path) -> None:
    asked = source(site.url("film.mp4"))
    got = fetch(asked, tmp_path, SETTINGS)
    data = (files / "film.mp4").read_bytes()
    assert got.path == tmp_path / f"{asked.source_id}.mp4"
    assert got.path.read_bytes() == data
    assert (got.sha256, got.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert got.info.video is not None and got.info.audio is not None
    assert (got.info.video.width, got.info.video.height, got.info.video.frames) == (320, 180, SECONDS * 25)
    assert (got.title, got.extractor, got.webpage_url, got.upload_date) == ("film", "generic", asked.url, "")
    assert list(tmp_path.iterdir()) == [got.path]
    assert site.count("film.mp4") == 2  # yt-dlp looks at the page, which is the file, then takes it


def test_credits_of_the_music_come_as_the_page_states_them(site: Site, files: Path, tmp_path: Path) -> None:
    said = {
        "@context": "https://schema.org", "@type": "VideoObject", "name": "Advert",
        "contentUrl": site.url("film.mp4"), "byArtist": {"name": "A\nBand"},
    }  # fmt: skip
    page = f'<html><script type="application/ld+json">{json.dumps(said)}</script></html>'
    (files / "advert.html").write_text(page)
    got = fetch(source(site.url("advert.html")), tmp_path / "advert", SETTINGS)
    assert (got.title, got.credits, got.language) == ("Advert", {"artist": "A Band"}, "")
    assert fetch(source(site.url("film.mp4")), tmp_path / "film", SETTINGS).credits == {}


def test_several_names_are_one_line_and_the_language_may_be_that_of_the_sound(tmp_path: Path) -> None:
    from pipeline.fetch.client import _Client, _page

    info = {"artists": ["Ann", "Bob, the second"], "artist": "Ann, Bob", "track": "Dawn", "composers": None}
    client = _Client(source("https://a.example/v.mp4"), tmp_path, SETTINGS, "", None)
    client.chosen = [{"format_id": "18"}, {"format_id": "140", "language": "de"}]  # type: ignore[list-item]
    page = _page(info, client, "https://a.example/v.mp4")
    assert page["credits"] == {"artist": "Ann, Bob, the second", "track": "Dawn"}
    assert page["language"] == "de"


@pytest.mark.parametrize("path", ["page/film.mp4", "nolength/film.mp4", "redirect?to=/film.mp4"])
def test_file_is_the_same_behind_a_page_a_redirect_or_no_length(
    site: Site, files: Path, tmp_path: Path, path: str
) -> None:
    got = fetch(source(site.url(path)), tmp_path, SETTINGS)
    assert got.path.read_bytes() == (files / "film.mp4").read_bytes()


def test_titles_of_the_web_never_become_paths(site: Site, tmp_path: Path) -> None:
    got = fetch(source(site.url("page/film.mp4")), tmp_path / "deep" / "media", SETTINGS)
    assert got.title == "../../etc/passwd"
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()] == [got.path.relative_to(tmp_path)]


@pytest.mark.parametrize(("path", "formats"), [("hls/list.m3u8", "0"), ("dash/list.mpd", "0+1")])
def test_streams_become_one_whole_mp4(site: Site, tmp_path: Path, path: str, formats: str) -> None:
    got = fetch(source(site.url(path)), tmp_path, SETTINGS)
    assert (got.path.suffix, got.info.container[:3], got.format_id) == (".mp4", "mov", formats)
    assert got.info.video is not None and got.info.video.frames == SECONDS * 25
    assert got.info.audio is not None and got.info.audio.duration_s == pytest.approx(SECONDS, abs=0.1)


def test_other_containers_keep_a_true_suffix(site: Site, tmp_path: Path) -> None:
    assert fetch(source(site.url("film.mkv")), tmp_path, SETTINGS).path.suffix == ".mkv"


def test_missing_picture_or_sound_is_no_failure(site: Site, tmp_path: Path) -> None:
    assert fetch(source(site.url("silent.mp4")), tmp_path, SETTINGS).info.audio is None
    assert fetch(source(site.url("blind.mp4")), tmp_path, SETTINGS).info.video is None


def test_progress_counts_up_to_all_bytes(site: Site, files: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch(source(site.url("film.mp4")), tmp_path, SETTINGS, on_progress=lambda done, total: seen.append((done, total)))
    size = (files / "film.mp4").stat().st_size
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {size}
    assert seen[-1] == (size, size)


def test_nothing_is_printed_and_ytdlp_speaks_through_the_logger(
    site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "pipeline.fetch"):
        asked = source(site.url("hls/list.m3u8"))
        fetch(asked, tmp_path, SETTINGS)
        failure(site.url("err/404"), tmp_path / "other")
    assert capfd.readouterr() == ("", "")
    assert any(record.message.startswith(f"{asked.source_id}: [download]") for record in caplog.records)


def test_several_sources_are_fetched_at_a_time(site: Site, files: Path, tmp_path: Path) -> None:
    sources = [source(site.url(f"film.mp4?copy={i}")) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda s: fetch(s, tmp_path, SETTINGS), sources))
    assert {g.path.name for g in got} == {f"{s.source_id}.mp4" for s in sources}
    assert {g.bytes for g in got} == {(files / "film.mp4").stat().st_size}


# what goes wrong

POSER = "text/page.html?" + quote('<meta property="og:video" content="/text/clip.mp4?<p>No%20clip">')


@pytest.mark.parametrize(
    ("path", "error_class", "words"),
    [
        ("err/404", "permanent", "gone or was never there: HTTP Error 404: Not Found"),
        ("err/410", "permanent", "HTTP Error 410"),
        ("redirect/loop", "internal", "redirect loop"),
        ("err/400", "internal", "HTTP Error 400"),
        ("page/gone.mp4", "permanent", "HTTP Error 404"),
        ("err/401", "blocked", "127.0.0.1 refuses this machine"),
        ("err/403", "blocked", "HTTP Error 403"),
        ("err/429", "throttled", "127.0.0.1 asks for fewer requests"),
        ("err/412", "throttled", "HTTP Error 412"),
        ("err/500", "transient", "Trouble with the network or 127.0.0.1"),
        ("err/503", "transient", "HTTP Error 503"),
        ("truncated/film.mp4", "transient", "more expected"),
        ("stall/film.mp4", "transient", "timed out"),
        ("hang", "transient", "timed out"),
        ("missing/hls/list.m3u8", "transient", "HTTP Error 404"),
        ("length/film.mp4", "corrupt", "is damaged"),
        ("flipped/film.mp4", "corrupt", "is damaged"),
        ("page/", "unsupported", "no video found on the page"),
        ("page/film.mp4,silent.mp4", "unsupported", "the page is a list of videos"),
        ("sound.m4a", "unsupported", "only sound is offered"),
        ("live/hls/list.m3u8", "unsupported", "it is a live stream"),
        ("endless", "unsupported", "the page has more than 64 MB"),
        (POSER, "unsupported", "a page or a playlist came in place of a video"),
    ],
)
def test_each_fault_has_its_class(site: Site, tmp_path: Path, path: str, error_class: str, words: str) -> None:
    error = failure(site.url(path), tmp_path)
    assert (error.error_class, words in error.message) == (error_class, True), error.message
    assert error.retry_after_s == (RETRY_AFTER_S if path == "err/429" else None)


def test_refused_connection_is_transient(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert failure(f"http://127.0.0.1:{port}/webpage.mp4", tmp_path).error_class == "transient"


def test_flaky_server_is_got_the_better_of_by_trying_again(site: Site, tmp_path: Path) -> None:
    url = site.url("flaky/film.mp4")
    assert [failure(url, tmp_path).error_class for _ in range(2)] == ["transient"] * 2
    assert fetch(source(url), tmp_path, SETTINGS).info.duration_ms == pytest.approx(SECONDS * 1000, abs=100)


def test_flaky_media_is_tried_again_within_one_fetch(site: Site, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"retries": 2})
    assert fetch(source(site.url("page/flaky/film.mp4")), tmp_path, settings).bytes
    assert site.count("flaky/film.mp4") == 3


def test_stream_whose_list_promises_more_than_comes_is_corrupt(site: Site, files: Path, tmp_path: Path) -> None:
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:30"]
    lines += ["#EXTINF:30,", site.url("hls/0.ts"), "#EXT-X-ENDLIST"]
    error = failure(site.url("text/list.m3u8?" + quote("\n".join(lines))), tmp_path)
    assert error.error_class == "corrupt"
    assert "not 30.0 s" in error.message


def test_encrypted_stream_is_refused_and_never_handed_to_ffmpeg(site: Site, tmp_path: Path) -> None:
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", '#EXT-X-KEY:METHOD=SAMPLE-AES,URI="skd://key"']
    lines += ["#EXTINF:2,", site.url("hls/0.ts"), "#EXT-X-ENDLIST"]
    error = failure(site.url("text/list.m3u8?" + quote("\n".join(lines))), tmp_path)
    assert error.error_class == "unsupported"
    assert "DRM" in error.message
    assert site.count("hls/0.ts") == 0


def test_killed_fetch_leaves_nothing_that_the_next_builds_upon(site: Site, files: Path, tmp_path: Path) -> None:
    url = site.url("slow/film.mp4")
    code = f"""
from pathlib import Path
from tests.pipeline.test_fetch import SETTINGS, source
from pipeline.fetch import fetch
fetch(source({url!r}), Path({str(tmp_path)!r}), SETTINGS)
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    parts: list[Path] = []
    while not parts and child.poll() is None:
        parts = [p for p in tmp_path.rglob("*.part") if p.stat().st_size > 10_000]
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    parts[0].write_bytes(b"\0" * 20_000)  # a resumed download would end in a silently corrupt file
    got = fetch(source(url), tmp_path, SETTINGS)
    assert got.path.read_bytes() == (files / "film.mp4").read_bytes()
    assert list(tmp_path.iterdir()) == [got.path]


# limits and manners


def test_too_large_file_is_refused_before_it_comes(site: Site, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_bytes": 100_000})
    seen: list[int] = []
    with pytest.raises(SourceError, match=r"0\.1 MB is the limit") as raised:
        fetch(source(site.url("film.mp4")), tmp_path, settings, on_progress=lambda done, _: seen.append(done))
    assert raised.value.error_class == "too_large"
    assert seen == []


@pytest.mark.parametrize("path", ["nolength/film.mp4", "hls/list.m3u8"])
def test_too_large_file_of_unknown_length_is_stopped_on_the_way(site: Site, tmp_path: Path, path: str) -> None:
    settings = SETTINGS.model_copy(update={"max_bytes": 200_000})
    seen: list[int] = []
    with pytest.raises(SourceError, match=r"0\.2 MB is the limit") as raised:
        fetch(source(site.url(path)), tmp_path, settings, on_progress=lambda done, _: seen.append(done))
    assert raised.value.error_class == "too_large"
    assert 0 < max(seen) <= 200_000
    assert list(tmp_path.iterdir()) == []


def test_too_long_video_is_refused_before_it_comes_where_the_length_is_known(site: Site, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_seconds": 3.0})
    assert failure(site.url("hls/list.m3u8"), tmp_path, settings).error_class == "too_large"
    assert site.count("hls/0.ts") == 0
    error = failure(site.url("film.mp4"), tmp_path, settings)
    assert (error.error_class, "it lasts 4 s, 3 s is the limit" in error.message) == ("too_large", True)


def test_rate_limit_is_kept(site: Site, files: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"rate_limit": (files / "film.mp4").stat().st_size})
    fetch(source(site.url("film.mp4")), tmp_path, settings)
    assert time.monotonic() - site.requests[1].at_s >= 0.7  # one second of bytes, less what came before the first look


# where it may lead


def test_first_url_on_this_machine_is_refused_without_the_setting(site: Site, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"allow_loopback": False})
    for host in ("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"):
        error = failure(site.url("film.mp4").replace("127.0.0.1", host), tmp_path, settings)
        assert error.error_class == "unsupported"
        assert "an address of this machine" in error.message
    assert site.requests == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/film.mp4", "ytsearch:cats", "cats"])
def test_other_schemes_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="only http and https") as raised:
        fetch(Source("0" * 16, url, url, "", None, None, "", "", 0), tmp_path, SETTINGS)
    assert raised.value.error_class == "unsupported"


def test_only_the_sites_of_the_settings_are_asked(site: Site, tmp_path: Path) -> None:
    error = failure(site.url("film.mp4"), tmp_path, SETTINGS.model_copy(update={"extractors": ("youtube",)}))
    assert (error.error_class, "fetch.extractors" in error.hint) == ("unsupported", True)
    assert site.requests == []


def stream(segment: str) -> str:
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{segment}\n#EXT-X-ENDLIST\n"
    return "text/list.m3u8?" + quote(text)


@pytest.mark.parametrize(
    "path",
    [
        "redirect?to=http://10.0.0.1/film.mp4",
        "redirect?to=http://169.254.169.254/latest/meta-data/",
        "redirect?to=http://[fd00::1]/film.mp4",
        "redirect?to=file:///etc/passwd",
        "redirect?to=ftp://127.0.0.1/film.mp4",
        "redirect?to=/redirect?to=http://192.168.0.1/film.mp4",
        "page/redirect?to=http://10.0.0.1/film.mp4",
        "text/page.html?" + quote('<meta property="og:video" content="http://172.16.0.1/film.mp4">'),
        "text/page.html?" + quote('<meta property="og:video" content="http://rebound.example/film.mp4">'),
        stream("http://10.0.0.1/0.ts"),
        stream("http://rebound.example/0.ts"),
        stream("file:///etc/passwd"),
        stream("/redirect?to=http://10.0.0.1/0.ts"),
    ],
)
def test_nothing_leads_to_a_private_address_or_another_scheme(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    resolve = socket.getaddrinfo
    connected: list[Any] = []

    def resolve_rebound(host: str, *args: Any, **kwargs: Any) -> Any:
        return resolve("10.0.0.2" if host == "rebound.example" else host, *args, **kwargs)

    class WatchedSocket(socket.socket):
        def connect(self, address: Any) -> None:
            connected.append(address[0])
            super().connect(address)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_rebound)
    monkeypatch.setattr(socket, "socket", WatchedSocket)
    with pytest.raises(SourceError) as raised:
        here(site.url(path), tmp_path)
    assert raised.value.error_class == "unsupported"
    assert set(connected) == {"127.0.0.1"}


def test_proxy_of_the_environment_neither_sees_loopback_nor_opens_private_addresses(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Site(tmp_path) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url())
        monkeypatch.delenv("no_proxy", raising=False)
        assert here(site.url("film.mp4"), tmp_path / "a").path.is_file()
        with pytest.raises(SourceError, match=r"10\.0\.0\.1 is a private or reserved address"):
            here("http://10.0.0.1/film.mp4", tmp_path / "b")
        assert proxy.requests == []
        with pytest.raises(SourceError):
            here("http://93.184.216.34/film.mp4", tmp_path / "c")
        assert [r.path for r in proxy.requests] == ["http://93.184.216.34/film.mp4"]


def test_options_smuggled_in_a_fragment_are_cut_off(site: Site, tmp_path: Path) -> None:
    smuggled = "#__youtubedl_smuggle=" + quote('{"force_videoid": "x"}')
    assert fetch(source(site.url("film.mp4") + smuggled), tmp_path, SETTINGS).title == "film"
