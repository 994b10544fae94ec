"""yt-dlp held to our rules, whatever it is used for: vetted connections, no page without end, words to the logger."""

from __future__ import annotations

import functools
import logging
from typing import Any

from yt_dlp import YoutubeDL
from yt_dlp.networking.exceptions import HTTPError

from pipeline.config import FetchSettings
from pipeline.errors import failed
from pipeline.fetch.failures import explain
from pipeline.fetch.network import VettedRH

log = logging.getLogger(__name__)

LARGEST_PAGE = 64 << 20  # bytes; pages and playlists are read whole into memory


class Vetted(YoutubeDL):
    """yt-dlp for one task.

    Args:
        name: of the task, in each line of the log.
        url: what errors name.
        settings: who may be talked to.
        proxy: URL, or "".
        params: more of yt-dlp's own.
    """

    def __init__(self, name: str, url: str, settings: FetchSettings, proxy: str = "", **params: Any) -> None:
        self.url = url
        self.settings = settings
        self.said = _Words(name)
        super().__init__(
            {
                "logger": self.said,
                "quiet": True,
                "noprogress": True,
                "color": {"stdout": "no_color", "stderr": "no_color"},
                "cachedir": False,
                "default_search": "error",
                "geo_bypass": False,  # it would lie about where we are
                "socket_timeout": settings.socket_timeout_s,
                "cookiefile": str(settings.cookies) if settings.cookies else None,
                "js_runtimes": {runtime: {} for runtime in ("deno", "node", "bun")},  # YouTube's; best first
                **({"proxy": proxy} if proxy else {}),
                **params,
            }
        )

    def build_request_director(self, _handlers: Any, preferences: Any = None) -> Any:
        """Our handler in place of all others: no ftp, no data, no websocket, no impersonation."""
        vetted = functools.partial(VettedRH, allow_loopback=self.settings.allow_loopback)
        return super().build_request_director([vetted], preferences)

    def urlopen(self, req: Any) -> Any:
        """A response whose `read()` without a size ends at a limit.

        Raises:
            SourceError: the server wants to be left alone; yt-dlp would ask for a file or a segment again at once.
        """
        try:
            response = super().urlopen(req)
        except HTTPError as error:
            explained = explain(error, self.url)
            if explained.error_class == "throttled" or explained.retry_after_s:
                raise explained from error
            raise
        read = response.read

        def read_at_most(amount: int | None = None) -> bytes:
            if amount is not None:
                return bytes(read(amount))
            body = bytearray()
            while block := read(1 << 20):
                body += block
                if len(body) > LARGEST_PAGE:
                    raise failed("unsupported", f"the page has more than {LARGEST_PAGE >> 20} MB", self.url)
            return bytes(body)

        response.read = read_at_most
        return response


class _Words:
    """yt-dlp's words go to the standard logger; its warnings are kept, they may explain an error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.warnings: list[str] = []

    def debug(self, message: str) -> None:
        log.debug("%s: %s", self.name, message)

    def warning(self, message: str) -> None:
        self.warnings.append(message)
        log.debug("%s: warning: %s", self.name, message)

    def error(self, message: str) -> None:
        log.debug("%s: %s", self.name, message)  # it is raised as well
