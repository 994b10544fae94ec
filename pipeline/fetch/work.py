"""The work of one download, done in a process of its own (`child`), and the order for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import FetchSettings
from pipeline.errors import SourceError, failed
from pipeline.sources import Source

if TYPE_CHECKING:
    from pipeline.media import MediaInfo

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all where the site says


@dataclass(frozen=True)
class Order:
    """One download.

    Attributes:
        source: what to fetch.
        job: an empty folder of its own.
        settings: limits; its `cookies` are this job's copy.
        proxy: URL, or "".
        look: only ask whether it could be had.
    """

    source: Source
    job: Path
    settings: FetchSettings
    proxy: str
    look: bool = False


@dataclass(frozen=True)
class Came:
    """A file that came whole, still in the job folder, with what the site says of it."""

    path: Path
    info: MediaInfo
    page: dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What the site says of a source that it would give out."""

    page: dict[str, Any]


def carry_out(
    order: Order, on_progress: Progress | None = None, on_arrival: Callable[[], None] | None = None
) -> Came | Seen:
    """Downloads and checks a source, or only looks.

    Args:
        order: what to do.
        on_progress: called with the bytes that have come.
        on_arrival: called when all have, and are to be checked.

    Raises:
        SourceError: nothing usable came.
        OSError: the disk is full.
    """
    from pipeline.fetch.client import download, look
    from pipeline.media import check_integrity

    url, settings = order.source.url, order.settings
    if order.look:
        return Seen(look(order.source, order.job, settings, order.proxy))
    came = download(order.source, order.job, settings, order.proxy, on_progress)
    if on_arrival:
        on_arrival()
    try:
        info = check_integrity(came.path, expected_s=came.expected_s)
    except SourceError as error:
        message = f"{error.message.rstrip('.')} ({url})."
        raise SourceError(message, error.error_class, hint=error.hint) from error
    if info.duration_ms > settings.max_seconds * 1000:
        detail = f"it lasts {info.duration_ms / 1000:.0f} s, {settings.max_seconds:.0f} s is the limit"
        raise failed("too_large", detail, url)
    return Came(came.path, info, came.page)
