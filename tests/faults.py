"""A site with every fault that the web has in store, the list of them with what must become of each, and the commands.

For the tests of faults (`tests/flows/test_faults.py`), kills and full disks (`tests/chaos.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import av
import numpy as np

from pipeline.ledger import Ledger
from pipeline.media import encode

SETTINGS = (
    "fetch.allow_loopback=true", "fetch.socket_timeout_s=6", "fetch.retries=0", "fetch.stall_s=12",
    "fetch.free_bytes=0",
)  # fmt: skip
MANNERS = ("fetch.threads=4", "fetch.per_host=4", "fetch.most_refusals=99")  # all sources are of one host
COOKIE = "c00kie-that-nobody-may-read"
HOSTILE = "../../../etc/passwd \x1b[31m <script>alert(1)</script> ${HOME} '; DROP TABLE sources; -- %s.mp4"
STOLEN = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
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
    "err/451": "permanent",
    "err/400": "internal",
    "err/418": "internal",
    "redirect/loop": "internal",
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
    "flipped/mute.mp4": "corrupt",
    "length/mute.mp4": "corrupt",  # half the length declared, and sent
    "html/mute.mp4": "unsupported",  # a page that says it is a video
    "page/": "unsupported",
    "live/hls/list.m3u8": "unsupported",
    "text/list.m3u8?" + quote(STOLEN): "unsupported",  # a segment that is a file of this machine
    "redirect?to=http://10.0.0.1/film.mp4": "unsupported",
    "redirect?to=http://169.254.169.254/latest/meta-data/": "unsupported",
    "redirect?to=file:///etc/passwd": "unsupported",
}


def make(folder: Path) -> None:
    """Videos without sound or picture, which take no model to work on, and a film that never comes whole."""
    noise = np.random.default_rng(0)
    frames = [np.kron(t, np.ones((10, 10, 1), np.uint8)) for t in noise.integers(0, 255, (100, 18, 32, 3), np.uint8)]
    sound = (0.1 * noise.standard_normal((1, 4 * 44100))).astype(np.float32)
    encode(folder / "mute.mp4", frames[:50], Fraction(25), None, 44100)
    encode(folder / "film.mp4", frames, Fraction(25), sound, 44100)
    encode(folder / "two.mp4", frames[:2], Fraction(25), None, 44100)
    encode(folder / "blind.mp4", None, Fraction(25), np.zeros((1, 44100), np.float32), 44100)
    (folder / "empty.mp4").touch()
    for i in range(6):
        another(folder / "mute.mp4", i)
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


def another(path: Path, number: int) -> str:
    """Writes a file that plays as `path` does and has another digest, beside it; returns its name."""
    copy = path.with_name(f"{path.stem}{number}{path.suffix}")
    copy.write_bytes(path.read_bytes() + b"\0\0\0\x08free" * number)
    return copy.name


def write_cookies(path: Path) -> Path:
    """A cookie file for the site's members."""
    path.write_text(f"# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tpass\t{COOKIE}\n")
    return path


def run(*arguments: str | Path, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The real command, with Prefect's history in `home` if it is given."""
    env = os.environ | ({"PREFECT_HOME": str(home)} if home else {})
    command = [sys.executable, "-m", "flows", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200, env=env)


def building(source_list: Path, data: Path, *settings: str) -> list[str]:
    """The arguments of a build."""
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return ["build", str(source_list), "--data", str(data), "--profile", "nano", *options]


def fates(data: Path) -> dict[str, str]:
    """What became of each source, by address: its state, or its error class if it failed."""
    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    found = {row.url: row.error_class if row.state == "failed" else row.state for row in ledger.sources()}
    ledger.close()
    return found
