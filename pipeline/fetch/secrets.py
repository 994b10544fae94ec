"""Cookies and proxies: opt-in by file, copied for each download, and kept out of every log and message."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.config import FetchSettings
from pipeline.errors import SettingsError

SHORTEST = 5  # characters of a cookie that is told apart from everyday text


@dataclass(frozen=True)
class Secrets:
    """What one download may know and nobody may read.

    Attributes:
        cookies: its copy of the cookie file; yt-dlp writes back to it.
        proxy: URL, or "".
        words: that never appear in a log or a message.
    """

    cookies: Path | None = None
    proxy: str = ""
    words: tuple[str, ...] = field(default=(), repr=False)

    def out_of(self, text: str) -> str:
        """A text with each secret blotted out."""
        for word in self.words:
            text = text.replace(word, "***")
        return text


def secrets_for(settings: FetchSettings, job: Path) -> Secrets:
    """The cookies and the proxy of one download, the cookies copied into its folder.

    Raises:
        SettingsError: a file can't be read, or isn't what it should be; says where, not what stands there.
    """
    words: list[str] = []
    copy = None
    if settings.cookies:
        words += _cookie_values(settings.cookies)
        copy = job / "cookies.txt"
        shutil.copyfile(settings.cookies, copy)
        copy.chmod(0o600)
    proxy = ""
    if settings.proxies:
        proxy = random.choice(_proxies(settings.proxies))
        parts = urlsplit(proxy)
        given = [part for part in (parts.username, parts.password) if part]
        words += [proxy, parts.netloc.rpartition("@")[0], *given, *map(unquote, given)]
    longest_first = sorted({word for word in words if word}, key=len, reverse=True)
    return Secrets(copy, proxy, tuple(longest_first))


def _cookie_values(path: Path) -> list[str]:
    """The values in a cookie file; yt-dlp would print lines that it can't read, so they are refused here."""
    values = []
    for number, line in enumerate(_lines(path, "fetch.cookies"), 1):
        text = line.removeprefix("#HttpOnly_")
        if text.startswith("#") or not text.strip():
            continue
        fields = text.split("\t")
        if len(fields) != 7 or fields[1] not in ("TRUE", "FALSE"):
            raise SettingsError(
                f"Line {number} of the cookie file {path} has not the seven fields of Netscape's format.",
                hint="Export it again with a tool that writes cookies.txt; fields are parted by tabs.",
            )
        values.append(fields[6])
    return [value for value in values if len(value) >= SHORTEST]


def _proxies(path: Path) -> list[str]:
    found = [line.strip() for line in _lines(path, "fetch.proxies")]
    found = [line for line in found if line and not line.startswith("#")]
    for number, url in enumerate(found, 1):
        if urlsplit(url).scheme not in ("http", "https", "socks5", "socks5h") or not urlsplit(url).hostname:
            raise SettingsError(
                f"Proxy {number} of {path} is no proxy URL.", hint="Write http://user:password@host:port, one a line."
            )
    if not found:
        raise SettingsError(f"There is no proxy in {path}.", hint="Write one URL a line, or unset fetch.proxies.")
    return found


def _lines(path: Path, setting: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"Can't read {path} ({setting}): {why}.", hint="Check the path.") from error
