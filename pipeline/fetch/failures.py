"""Why a fetch failed, in one of our error classes and in words for a person.

yt-dlp tells what went wrong by exception types, by types wrapped in other types, or by text alone. Types are looked at
first and text last, by patterns in a fixed order: what YouTube says when it throttles begins with "Video unavailable".
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from yt_dlp.networking.exceptions import HTTPError, NoSupportingHandlers, TransportError, UnsupportedRequest
from yt_dlp.utils import (
    GeoRestrictedError,
    PostProcessingError,
    UnsupportedError,
    UserNotLive,
    remove_terminal_sequences,
)

from pipeline.errors import ErrorClass, SourceError, failed
from pipeline.fetch.network import RefusedAddress

NEEDS_RUNTIME = "Install Deno (2.3 or later) and update yt-dlp; `dvmset doctor` checks both."
NEEDS_PUBLIC = "Only public addresses are fetched; fetch.allow_loopback lets this machine's own through, for tests."
NEEDS_EXTRACTOR = "If you trust that site, add yt-dlp's name of it to fetch.extractors."
NEEDS_A_LOOK = "Open the page in a browser: it may be gone, or want a cookie; if it plays there, update yt-dlp."
UNAVAILABLE = re.compile(r"video (?:is )?unavailable|redirect loop", re.I)  # for good or not: no reason is given
KEPT_BACK = re.compile(r"javascript runtime|po token|sabr|challenge solving", re.I)  # why YouTube shows no formats

# class of a text, in the order in which they are tried
_TEXTS: tuple[tuple[ErrorClass, str], ...] = (
    ("throttled", r"rate.limited|not a bot|captcha|ip is likely being blocked|too many requests"),
    ("throttled", r"isn.t available, try again later"),
    ("geo", r"\b(?:in|from) your (?:country|region|location)\b|geo.?restrict"),
    ("permanent", r"\bprivate video\b|video is private|has been (?:removed|deleted)|account .*terminated|\bcopyright"),
    ("blocked", r"members.only|join this channel|sign in|log ?in\b|confirm your age|age.restricted|requires? payment"),
    ("transient", r"premieres? in|(?:event|stream) will begin"),
    ("unsupported", r"\bdrm\b|unsupported url|no suitable extractor|not currently live"),
    ("unsupported", r"no video formats found|requested format is not available|is unusual and will be skipped"),
    ("unsupported", r"no connection adapters|not a valid url|invalid url|failed to parse|file:// urls are disabled"),
    ("permanent", r"no longer available|does not exist"),
    ("internal", UNAVAILABLE.pattern),
    ("corrupt", r"^postprocessing: "),
    ("transient", r"timed out|more expected|giving up after \d+ retries|connection (?:reset|refused|aborted|broken)"),
    ("transient", r"file is empty|did not get any data"),
)


def explain(error: Exception, url: str, warnings: Sequence[str] = ()) -> SourceError:
    """What an error of yt-dlp comes to.

    Args:
        error: a `YoutubeDLError`.
        url: the address that was fetched.
        warnings: what yt-dlp said before.

    Raises:
        OSError: the disk is full: that is no fault of the source.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cause
    detail = _plain(str(error))
    error_class, retry_after_s = _class_of(causes, detail)
    hint = ""
    if any(isinstance(cause, RefusedAddress) for cause in causes):
        hint = NEEDS_PUBLIC
    elif error_class == "unsupported" and any(map(KEPT_BACK.search, warnings)):
        error_class, hint = "blocked", NEEDS_RUNTIME
    elif "No suitable extractor" in detail:
        hint = NEEDS_EXTRACTOR
    elif error_class == "internal" and UNAVAILABLE.search(detail):
        hint = NEEDS_A_LOOK
    return failed(error_class, detail, url, hint=hint, retry_after_s=retry_after_s)


def _class_of(causes: Sequence[BaseException], detail: str) -> tuple[ErrorClass, float | None]:
    for cause in causes:
        match cause:
            case HTTPError():
                error_class = "internal" if cause.redirect_loop else _class_of_status(cause.status)
                wait = None if error_class == "permanent" else cause.response.headers.get("Retry-After")
                return error_class, _seconds(wait)
            case GeoRestrictedError():
                return "geo", None
            case RefusedAddress() | UnsupportedError() | UserNotLive() | UnsupportedRequest() | NoSupportingHandlers():
                return "unsupported", None
            case TransportError():
                return "transient", None
            case PostProcessingError():
                return "corrupt", None
    if status := re.search(r"\bHTTP Error (\d{3})\b", detail):
        of_part = _class_of_status(int(status[1]))  # of one part of a stream: the video itself is there
        return ("transient" if of_part in ("permanent", "internal") else of_part), None
    for error_class, pattern in _TEXTS:
        if re.search(pattern, detail, re.I):
            return error_class, None
    return "internal", None


def _class_of_status(status: int) -> ErrorClass:
    if status in (412, 429):  # 412 is Bilibili's way to throttle
        return "throttled"
    if status in (401, 402, 403, 407):
        return "blocked"
    if status >= 500 or status in (408, 425):
        return "transient"
    return "permanent" if status in (404, 410, 451) else "internal"  # what else may be wrong with the question


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what is wrapped in it, outermost first."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        cause = left.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        left += [(getattr(cause, "exc_info", None) or (None, None))[1], getattr(cause, "cause", None), cause.__cause__]


def _seconds(header: str | None) -> float | None:
    """Retry-After: seconds or a date (RFC 9110, section 10.2.3); None for one that has passed: it asks for nothing."""
    if not header:
        return None
    if re.fullmatch(r"\d{1,8}", header.strip(), re.ASCII):
        return float(header) or None
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    left_s = (then - datetime.now(UTC)).total_seconds()
    return left_s if left_s > 0 else None


def _plain(text: str) -> str:
    """yt-dlp's text without colours, prefixes, names of its classes and advice on its command line."""
    text = " ".join(remove_terminal_sequences(text).split())
    for noise, instead in (
        (r"^(?:ERROR: )?(?:\[download\] Got error: |\[[\w:+-]+\] (?:[^\s:]+: )?)?", ""),
        (r"^Unable to download webpage: ", ""),
        (r"^Unsupported URL: \S+$", "no video found on the page"),
        (r"\b_\w+\(host=.*?\): ", ""),
        (r"[;.,]? ?(?:\(caused by|please report this issue|Use --|Try selecting|You might want).*$", ""),
    ):
        text = re.sub(noise, instead, text)
    return text.rstrip(". ")[:300] or "no reason given"
