"""Downloads with yt-dlp: one extraction a source, the smallest format that serves, nothing kept that isn't whole.

A fetch works in a job folder of its own, which is gone afterwards, so that no other attempt's half file is ever built
upon, and in a process of its own, which is watched and killed when it hangs, drips or overruns (`pool`). Source lists
are untrusted: names from the web never become paths, and every connection is vetted (`network`).
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import FetchSettings
from pipeline.fetch.work import Came, Order, Progress
from pipeline.sources import Source
from pipeline.storage import TEMPORARY, Store, file_digest

if TYPE_CHECKING:
    from pipeline.media import MediaInfo

__all__ = ["Fetched", "Progress", "fetch"]

log = logging.getLogger(__name__)


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
        revision: any text that changes with the media, "" where the site gives nothing to tell by.
        language: of the video, as the site states it, mostly a code such as `en`; or "".
        credits: of the music: artist, track, album, album_artist, composer, creator; those that the site states.
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
    revision: str
    language: str = ""
    credits: dict[str, str] = field(default_factory=dict)


def fetch(source: Source, folder: Path, settings: FetchSettings, *, on_progress: Progress | None = None) -> Fetched:
    """Downloads a source into `folder`, whole and checked, or not at all.

    One fetch of a source at a time: it clears away what a killed one has left.

    Args:
        source: what to fetch; always the whole video, also where the list wants a section of it.
        folder: made if need be; afterwards it holds the file and nothing else of this call.
        settings: limits, and what is refused; manners towards the host are the caller's affair (`hosts`).
        on_progress: called with the bytes that have come.

    Raises:
        SourceError: nothing usable came; its class and message say why.
        OSError: the disk is full, or nearly so, or the folder can't be written.
        DvmsetError: the cookies or proxies can't be used.
    """
    from pipeline.fetch.pool import run
    from pipeline.fetch.secrets import secrets_for

    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{TEMPORARY}{source.source_id}-"
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as text:
        job = Path(text)
        secrets = secrets_for(settings, job)
        order = Order(source, job, settings.model_copy(update={"cookies": secrets.cookies}), secrets.proxy)
        came = run(order, secrets, on_progress)
        assert isinstance(came, Came)
        name = f"{source.source_id}.{_suffix(came.info)}"
        with Store(folder).write(name) as path:
            came.path.replace(path)
    path = folder / name
    log.info("%s: fetched %s, %.1f s", source.source_id, name, came.info.duration_ms / 1000)
    return Fetched(path, came.info, file_digest(path), path.stat().st_size, **came.page)


def _suffix(info: MediaInfo) -> str:
    """From the content, never from the web; FFmpeg's names are lists such as `mov,mp4,m4a,3gp,3g2,mj2`."""
    first = info.container.partition(",")[0]
    return {"mov": "mp4", "matroska": "mkv", "mpegts": "ts"}.get(first, first)
