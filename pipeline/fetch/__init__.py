"""Downloads with yt-dlp: one extraction a source, the smallest format that serves, nothing kept that isn't whole.

A fetch works in a job folder of its own, which is gone afterwards, so that no other attempt's half file is ever built
upon. Source lists are untrusted: names from the web never become paths, and every connection is vetted (`network`).
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import FetchSettings
from pipeline.errors import SourceError
from pipeline.media import MediaInfo, check_integrity
from pipeline.sources import Source
from pipeline.storage import TEMPORARY, Store, file_digest

__all__ = ["Fetched", "Progress", "fetch"]

log = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all where the site says


@dataclass(frozen=True)
class Fetched:
    """A file that came whole, and what its site says of it.

    Attributes:
        path: `{source_id}.mp4`; another suffix where the site had no MP4.
        info: its streams.
        sha256: 64 hex digits over the file.
        bytes: its size.
        title, channel, license: of the site, one line each, "" where it says nothing.
        upload_date: YYYY-MM-DD, or "".
        format_id: the site's name of the format, two joined by + where picture and sound came apart.
        extractor: yt-dlp's name of the site.
        webpage_url: the video's page.
    """

    path: Path
    info: MediaInfo
    sha256: str
    bytes: int
    title: str
    channel: str
    license: str
    upload_date: str
    format_id: str
    extractor: str
    webpage_url: str


def fetch(source: Source, folder: Path, settings: FetchSettings, *, on_progress: Progress | None = None) -> Fetched:
    """Downloads a source into `folder`, whole and checked, or not at all.

    One fetch of a source at a time: it clears away what a killed one has left.

    Args:
        source: what to fetch; always the whole video, also where the list wants a section of it.
        folder: made if need be; afterwards it holds the file and nothing else of this call.
        settings: limits, politeness, what is refused.
        on_progress: called with the bytes that have come.

    Raises:
        SourceError: nothing usable came; its class and message say why.
        OSError: the disk is full or the folder can't be written.
    """
    from pipeline.fetch.client import download
    from pipeline.fetch.failures import failed

    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{TEMPORARY}{source.source_id}-"
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left)
    time.sleep(random.uniform(*settings.pause_s))
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as job:
        came = download(source, Path(job), settings, on_progress)
        try:
            info = check_integrity(came.path, expected_s=came.expected_s)
        except SourceError as error:
            message = f"{error.message.rstrip('.')} ({source.url})."
            raise SourceError(message, error.error_class, hint=error.hint) from error
        if info.duration_ms > settings.max_seconds * 1000:
            detail = f"it lasts {info.duration_ms / 1000:.0f} s, {settings.max_seconds:.0f} s is the limit"
            raise failed("too_large", detail, source.url)
        name = f"{source.source_id}.{_suffix(info)}"
        with Store(folder).write(name) as path:
            came.path.replace(path)
    path = folder / name
    log.info("%s: fetched %s, %.1f s", source.source_id, name, info.duration_ms / 1000)
    return Fetched(path, info, file_digest(path), path.stat().st_size, **came.page)


def _suffix(info: MediaInfo) -> str:
    """From the content, never from the web; FFmpeg's names are lists such as `mov,mp4,m4a,3gp,3g2,mj2`."""
    first = info.container.partition(",")[0]
    return {"mov": "mp4", "matroska": "mkv", "mpegts": "ts"}.get(first, first)
