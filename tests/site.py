"""A web site on this machine that serves the files of a folder, whole or with faults, for the tests and the demo.

    with Site(folder) as site:
        fetch(site.url("film.mp4"))         # the file as it is, with Range support
        fetch(site.url("flipped/film.mp4"))  # the same file, damaged on the way
        site.requests                        # what was asked for

`ROUTES` is the table of faults. By hand: `python -m tests.site FOLDER --port 8000`.
"""

from __future__ import annotations

import argparse
import mimetypes
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

BLOCK = 1 << 16
RETRY_AFTER_S = 7  # what /err/429 asks for
mimetypes.add_type("application/vnd.apple.mpegurl", ".m3u8")
mimetypes.add_type("video/mp2t", ".ts")


@dataclass(frozen=True)
class Request:
    """One request as it came in; `range` is its Range header or "", `at_s` the monotonic clock."""

    method: str
    path: str
    range: str
    at_s: float
    headers: Mapping[str, str]


class Site:
    """A threaded server on 127.0.0.1.

    Args:
        folder: its files.
        port: 0 takes a free one.
    """

    def __init__(self, folder: str | Path, port: int = 0) -> None:
        self.folder = Path(folder).resolve()
        self.requests: list[Request] = []
        self.visits: Counter[str] = Counter()  # by path, for routes that change from visit to visit
        self.answering = self.most_at_a_time = 0
        self.password = ""  # of members
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, self))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server.server_address[1])

    def url(self, path: str = "") -> str:
        """The address of a file or fault route."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def count(self, path: str, method: str = "GET") -> int:
        """How often `path` was asked for."""
        with self.lock:
            return sum(r.path == f"/{path}" and r.method == method for r in self.requests)

    def __enter__(self) -> Site:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def __init__(self, site: Site, *args: Any) -> None:
        self.site = site
        super().__init__(*args)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def handle(self) -> None:
        """All requests of a connection, until the client has had enough."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the site keeps its own log."""

    def _answer(self) -> None:
        asked = Request(self.command, self.path, self.headers.get("Range", ""), time.monotonic(), dict(self.headers))
        with self.site.lock:
            self.site.requests.append(asked)
            self.site.visits[self.path] += 1
            visit = self.site.visits[self.path]
            self.site.answering += 1
            self.site.most_at_a_time = max(self.site.most_at_a_time, self.site.answering)
        try:
            self.answer(visit)
        finally:
            with self.site.lock:
                self.site.answering -= 1

    def answer(self, visit: int) -> None:
        """Answers a request, by its route or with a file."""
        parts = urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        first, _, rest = path.partition("/")
        route = ROUTES.get(first)
        if route is None:
            self.send_file(path)
        else:
            route(self, rest, parts.query, visit)

    # answers, used by the routes

    def file(self, path: str) -> Path | None:
        """A file of the folder, or None after a 404 was sent."""
        file = (self.site.folder / path).resolve()
        if file.is_relative_to(self.site.folder) and file.is_file():
            return file
        self.send_text("There is no such file.", status=404)
        return None

    def send_text(self, text: str, *, status: int = 200, kind: str = "text/html", **headers: str) -> None:
        """A short answer."""
        body = text.encode()
        self.start(status, len(body), kind, **headers)
        self.write(body)

    def start(self, status: int, length: int | None, kind: str, **headers: str) -> None:
        """The head of an answer; without a length the connection ends with the body."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def write(self, body: bytes) -> None:
        """Body bytes; none for HEAD."""
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(
        self,
        path: str,
        *,
        share: float = 1.0,
        declared: float | None = 1.0,
        change: Callable[[bytes, int, int], bytes] | None = None,
        pause_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """A file or the range of it that is asked for.

        Args:
            path: within the folder.
            share: how much of the bytes is sent before the connection is cut.
            declared: the Content-Length as a share of the true one; None: no Content-Length, and no ranges.
            change: makes other bytes of a block that stands at an offset in a file of a size.
            pause_s: between blocks of 64 KiB.
            headers: more of them.

        Returns:
            Whether there is such a file.
        """
        file = self.file(path)
        if file is None:
            return False
        size = file.stat().st_size
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        begin, end, status, head = 0, size, 200, {"Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if declared is None:
            head = {}
        elif wanted:
            begin, end = int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else size, size)
            if begin >= end:
                self.send_text("", status=416, Content_Range=f"bytes */{size}")
                return True
            status = 206
            head["Content_Range"] = f"bytes {begin}-{end - 1}/{size}"
        length = None if declared is None else int((end - begin) * declared)
        self.start(status, length, kind, **head, **(headers or {}))
        left = int((end - begin) * share) if length is None else min(int((end - begin) * share), length)
        self.close_connection = self.close_connection or left != length
        with file.open("rb") as opened:
            opened.seek(begin)
            while left and self.command != "HEAD" and not self.site.closing.is_set():
                block = opened.read(min(BLOCK, left))
                self.wfile.write(change(block, begin, size) if change else block)
                begin, left = begin + len(block), left - len(block)
                if pause_s:
                    self.site.closing.wait(pause_s)
        return True

    def wait(self) -> None:
        """Silence until the site closes; at most a minute."""
        self.wfile.flush()
        self.site.closing.wait(60)
        self.close_connection = True


# faults: (handler, rest of the path, query, number of the visit)

Route = Callable[[_Handler, str, str, int], object]


def _error(handler: _Handler, rest: str, query: str, visit: int) -> None:
    status = int(rest.partition("/")[0])
    wait = query or (str(RETRY_AFTER_S) if status == 429 else "")
    headers = {"Retry_After": unquote(wait)} if wait else {}
    handler.send_text(f"Error {status}, as you asked.", status=status, **headers)


def _flaky(handler: _Handler, rest: str, query: str, visit: int) -> None:
    if visit <= 2:
        handler.send_text("Not now.", status=503)
    else:
        handler.send_file(rest)


def _busy(handler: _Handler, rest: str, query: str, visit: int) -> None:
    times, _, path = rest.partition("/")
    with handler.site.lock:
        handler.site.visits["busy"] += 1
        refused = handler.site.visits["busy"] <= int(times)
    if refused:
        handler.send_text("Too many requests.", status=429, Retry_After=query or str(RETRY_AFTER_S))
    else:
        handler.send_file(path)


def _members(handler: _Handler, rest: str, query: str, visit: int) -> None:
    """Also gives the visitor a new cookie."""
    if f"pass={handler.site.password}" in handler.headers.get("Cookie", ""):
        handler.send_file(rest, headers={"Set_Cookie": "seen=yes; Path=/; Max-Age=3600"})
    else:
        handler.send_text("Members only.", status=403)


def _drip(handler: _Handler, rest: str, query: str, visit: int) -> None:
    file = handler.file(rest)
    if file is not None:
        handler.start(200, file.stat().st_size, "video/mp4")
        for byte in file.read_bytes():
            handler.write(bytes([byte]))
            if handler.site.closing.wait(0.1):
                break
        handler.close_connection = True


def _html(handler: _Handler, rest: str, query: str, visit: int) -> None:
    handler.send_text("<!doctype html><p>Please log in.", kind="video/mp4")


def _redirect(handler: _Handler, rest: str, query: str, visit: int) -> None:
    target = handler.path if rest == "loop" else unquote(query.removeprefix("to="))
    handler.send_text("", status=302, Location=target)


def _hang(handler: _Handler, rest: str, query: str, visit: int) -> None:
    handler.wait()


def _stall(handler: _Handler, rest: str, query: str, visit: int) -> None:
    file = handler.file(rest)
    if file is not None:
        handler.start(200, file.stat().st_size, "video/mp4")
        handler.write(file.read_bytes()[:50_000])
        handler.wait()


def _flip(block: bytes, offset: int, size: int) -> bytes:
    """One byte in each 512 inverted, from 4 KiB on and up to nine tenths of the file."""
    changed = bytearray(block)
    for i in range(-offset % 512, len(block), 512):
        if 4096 <= offset + i < size * 0.9:
            changed[i] ^= 0xFF
    return bytes(changed)


def _page(handler: _Handler, rest: str, query: str, visit: int) -> None:
    """A page that declares a video, or shows several, their names parted by commas."""
    names = [name for name in rest.split(",") if name]
    if len(names) == 1:
        tags = f'<meta property="og:video" content="/{rest}">'
    else:
        tags = "".join(f'<video src="/{name}"></video>' for name in names)
    words = escape(unquote(query) or "../../etc/passwd")
    title = f'<meta property="og:title" content="{words}">'
    handler.send_text(f"<!doctype html><html><head><title>A page</title>{title}{tags}</head><body>Words.</body></html>")


def _endless(handler: _Handler, rest: str, query: str, visit: int) -> None:
    handler.start(200, None, "text/html")
    while not handler.site.closing.is_set():
        handler.write(b"<!doctype html><p>" + b"and so on " * 10_000)


def _missing(handler: _Handler, rest: str, query: str, visit: int) -> None:
    """Files of the folder, but for the second segment of a stream."""
    if rest.endswith("1.ts"):
        handler.send_text("Lost.", status=404)
    else:
        handler.send_file(rest)


def _live(handler: _Handler, rest: str, query: str, visit: int) -> None:
    """A stream's list without its end mark: a live stream."""
    file = handler.file(rest)
    if file is not None:
        text = file.read_text().replace("#EXT-X-ENDLIST", "")
        handler.send_text(text, kind="application/vnd.apple.mpegurl")


def _length(handler: _Handler, rest: str, query: str, visit: int) -> None:
    handler.send_file(rest, declared=0.5)


def _text(handler: _Handler, rest: str, query: str, visit: int) -> None:
    """The query as a document whose kind is told by the suffix: an HLS list, an HTML page."""
    handler.send_text(unquote(query), kind=mimetypes.guess_type(rest)[0] or "text/html")


ROUTES: dict[str, Route] = {
    "err": _error,  # /err/404: that status; /err/503?5: with Retry-After: 5
    "busy": _busy,  # /busy/3/FILE?5: 429 with Retry-After: 5 at the first 3 visits to any such path
    "members": _members,  # /members/FILE: 403 without the cookie pass=`Site.password`
    "flaky": _flaky,  # /flaky/FILE: 503 at the first two visits
    "redirect": _redirect,  # /redirect?to=URL, /redirect/loop
    "hang": _hang,  # no answer at all
    "stall": _stall,  # /stall/FILE: 50 kB, then silence
    "truncated": lambda h, rest, q, v: h.send_file(rest, share=0.4),  # cut before the declared length
    "length": _length,  # /length/FILE: half the length declared, and sent
    "nolength": lambda h, rest, q, v: h.send_file(rest, declared=None),  # no length declared
    "drip": _drip,  # /drip/FILE: ten bytes a second
    "html": _html,  # /html/NAME: a page that says it is a video
    "slow": lambda h, rest, q, v: h.send_file(rest, pause_s=0.1),  # 640 KiB a second
    "flipped": lambda h, rest, q, v: h.send_file(rest, change=_flip),  # bytes damaged on the way
    "page": _page,  # /page/FILE,FILE?TITLE: HTML with these videos; /page/ without any
    "endless": _endless,  # an HTML page without end
    "missing": _missing,  # /missing/FILE: but no file that ends on 1.ts
    "live": _live,  # /live/LIST.m3u8 without its end mark
    "text": _text,  # /text/NAME.SUFFIX?DOCUMENT
}


def main() -> None:
    """Serves a folder until interrupted."""
    parser = argparse.ArgumentParser(description="Serve a folder on this machine, with fault routes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options = parser.parse_args()
    with Site(options.folder, options.port) as site:
        print(site.url(), flush=True)
        try:
            site.closing.wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
