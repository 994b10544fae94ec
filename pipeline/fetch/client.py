"""yt-dlp, held to our rules: vetted connections, its own downloaders only, one video, the format we choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
from yt_dlp.downloader.dash import DashSegmentsFD
from yt_dlp.downloader.hls import HlsFD
from yt_dlp.downloader.http import HttpFD
from yt_dlp.utils import YoutubeDLError

from pipeline.config import FetchSettings
from pipeline.errors import ErrorClass, SourceError, failed
from pipeline.fetch.failures import KEPT_BACK, NEEDS_RUNTIME, explain
from pipeline.fetch.formats import Format, choose, container, usable
from pipeline.fetch.vetted import Vetted
from pipeline.fetch.work import Progress
from pipeline.sources import Source

LONGEST_TEXT = 300  # characters of a title or a name
CREDITS = ("artist", "track", "album", "album_artist", "composer", "creator")  # of the music, as yt-dlp calls them
_VALIDATORS = ("ETag", "Last-Modified", "Content-Range", "Content-Length")  # change with a file (RFC 9110, section 8.8)
_TEXT_STARTS = (b"#EXTM3U", b"ffconcat", b"<")  # a playlist or a page; ffmpeg would follow what a playlist says


@dataclass(frozen=True)
class Download:
    """A file as it came, unchecked.

    Attributes:
        path: in the job folder.
        expected_s: the duration that the site gives, or None.
        page: title, channel and so on, the fields of `Fetched` that come from the site.
    """

    path: Path
    expected_s: float | None
    page: dict[str, Any]


def download(source: Source, job: Path, settings: FetchSettings, proxy: str, on_progress: Progress | None) -> Download:
    """Downloads a source into the job folder, through a proxy if one is given.

    Raises:
        SourceError: nothing came, or more than the settings allow.
        OSError: the disk is full.
    """
    with _Client(source, job, settings, proxy, on_progress) as client:
        info = client.ask(download=True)
    files = [d["filepath"] for d in info.get("requested_downloads") or [] if d.get("filepath")]
    if not files or not Path(files[0]).is_file():
        raise failed("internal", "yt-dlp gave no file and no reason", source.url)
    return Download(Path(files[0]), _expected_s(info), _page(info, client, source.url))


def look(source: Source, job: Path, settings: FetchSettings, proxy: str) -> dict[str, Any]:
    """What the page of a source says, the fields of `Download.page`; no media is downloaded.

    Raises:
        SourceError: it isn't to be had.
    """
    with _Client(source, job, settings, proxy, None) as client:
        return _page(client.ask(download=False), client, source.url)


class _Client(Vetted):
    """One download of one source."""

    def __init__(
        self, source: Source, job: Path, settings: FetchSettings, proxy: str, on_progress: Progress | None
    ) -> None:
        self.source = source
        self.on_progress = on_progress
        self.chosen: Sequence[Format] = ()
        self.came: dict[str, int] = {}  # bytes by file name
        self.validators: list[str] = []  # of the first answer: the page, or the file itself
        tags = ("html5",) if "generic" in settings.extractors else ()  # a page's <video> tags: an extractor of its own
        super().__init__(
            source.source_id,
            source.url,
            settings,
            proxy,
            allowed_extractors=[*settings.extractors, *tags],
            noplaylist=True,
            format=self._select,
            outtmpl={"default": f"{job}/".replace("%", "%%") + f"{source.source_id}.%(ext)s"},
            ffmpeg_location=str(_ffmpeg_folder(job)),
            updatetime=False,
            overwrites=True,
            continuedl=False,
            concurrent_fragment_downloads=1,
            skip_unavailable_fragments=False,  # else seconds go missing without a word
            hls_prefer_native=True,
            retries=settings.retries,
            fragment_retries=settings.retries,
            retry_sleep_functions={"http": _backoff_s, "fragment": _backoff_s},
            ratelimit=settings.rate_limit,
        )

    def ask(self, *, download: bool) -> dict[str, Any]:
        """yt-dlp's description of the source, after the download or instead of it.

        Raises:
            SourceError: nothing came, or more than the settings allow.
            OSError: the disk is full.
        """
        url = self.source.url
        if not url.startswith(("http://", "https://")):
            raise self._failed(
                "unsupported", f"{url.partition(':')[0][:20]!r} addresses are refused, only http and https may be"
            )
        try:
            # A fragment may smuggle options into yt-dlp, and is never sent to a server anyway.
            return self.extract_info(url.partition("#")[0], download=download) or {}
        except YoutubeDLError as error:
            raise explain(error, url, self.said.warnings) from error

    def urlopen(self, req: Any) -> Any:
        """Keeps what the first answer says of its revision."""
        response = super().urlopen(req)
        if not self.validators:
            self.validators = [str(response.headers.get(name) or "") for name in _VALIDATORS]
        return response

    # what is offered

    def process_ie_result(self, ie_result: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Refuses lists of videos, before the first of them is asked for."""
        if ie_result.get("_type") in ("playlist", "multi_video", "compat_list"):
            raise self._failed("unsupported", "the page is a list of videos", "Give the address of one of them.")
        return super().process_ie_result(ie_result, *args, **kwargs)

    def process_video_result(self, info_dict: dict[str, Any], download: bool = True) -> Any:
        """Refuses what won't end, what hasn't begun and what is too long, before a byte of it is asked for."""
        if info_dict.get("is_live") or info_dict.get("live_status") == "is_live":
            raise self._failed("unsupported", "it is a live stream", "Come back when it is over.")
        if info_dict.get("live_status") in ("is_upcoming", "post_live"):
            raise self._failed("transient", "its stream hasn't begun yet, or is still being made into a video")
        seconds = info_dict.get("duration")
        if seconds and seconds > self.settings.max_seconds:
            limit = self.settings.max_seconds
            raise self._failed("too_large", f"it lasts {seconds:.0f} s, {limit:.0f} s is the limit")
        return super().process_video_result(info_dict, download)

    def _select(self, context: dict[str, Any]) -> list[Format]:
        offered = context["formats"]
        self.chosen = choose(offered, self.settings.max_height)
        if not self.chosen:
            if any(map(KEPT_BACK.search, self.said.warnings)):
                raise self._failed("blocked", "it keeps its formats back", NEEDS_RUNTIME)
            only = "only sound" if usable(offered) else "nothing but DRM, images or streaming protocols"
            raise self._failed("unsupported", f"{only} is offered, no picture")
        self._limit(sum(f.get("filesize") or 0 for f in self.chosen))
        if len(self.chosen) == 1:
            return [self.chosen[0]]
        # Files are named after the format ids: names of our own in place of the site's.
        parts = [{**f, "format_id": name} for f, name in zip(self.chosen, ("picture", "sound"), strict=True)]
        protocol = "+".join(f["protocol"] for f in parts)
        return [{"format_id": "both", "ext": container(parts), "requested_formats": parts, "protocol": protocol}]

    # the download

    def dl(self, name: str, info: dict[str, Any], *_: Any) -> Any:
        """Downloads with yt-dlp's own downloaders only."""
        kinds = {"http": HttpFD, "https": HttpFD, "http_dash_segments": DashSegmentsFD}
        downloader = kinds.get(info["protocol"], _HlsFD)(self, self.params)
        downloader.add_progress_hook(self._progress)
        return downloader.download(name, self._copy_infodict(info))

    def _progress(self, status: dict[str, Any]) -> None:
        name = status["filename"]
        self.came[name] = int(status.get("downloaded_bytes") or 0)
        if status["status"] == "finished":
            self._refuse_text(Path(name))
        sizes = [int(f.get("filesize") or 0) for f in self.chosen]
        total = status.get("total_bytes") if len(sizes) == 1 else sum(sizes) if all(sizes) else None
        done = sum(self.came.values())
        self._limit(max(done, total or 0))
        if self.on_progress:
            self.on_progress(done, total)

    def _limit(self, size: int) -> None:
        if size > self.settings.max_bytes:
            limit = self.settings.max_bytes / 1e6
            raise self._failed("too_large", f"it has {size / 1e6:.1f} MB or more, {limit:.1f} MB is the limit")

    def _refuse_text(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(64).lstrip().startswith(_TEXT_STARTS):
                raise self._failed("unsupported", "a page or a playlist came in place of a video")

    def _failed(self, error_class: ErrorClass, detail: str, hint: str = "") -> SourceError:
        return failed(error_class, detail, self.source.url, hint=hint)


class _HlsFD(HlsFD):
    """HLS, but for streams that yt-dlp would hand over to ffmpeg, whose connections nobody vets."""

    @classmethod
    def can_download(cls, manifest: str, info_dict: dict[str, Any], *args: Any) -> bool:
        if not super().can_download(manifest, info_dict, *args):
            raise failed("unsupported", "the stream is encrypted (DRM) or live", info_dict["webpage_url"])
        return True


def _ffmpeg_folder(job: Path) -> Path:
    """A folder with the bundled ffmpeg under the one name by which yt-dlp finds it."""
    folder = job / "bin"
    folder.mkdir()
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return folder


def _backoff_s(n: int) -> float:
    """Pause before the nth repetition, counted from 0."""
    return min(2.0**n, 30.0)


def _expected_s(info: dict[str, Any]) -> float | None:
    """The duration that the site or the stream's list gives; what any page says of a file it embeds is hearsay."""
    heard = info.get("extractor") == "generic" and str(info.get("protocol")).startswith(("http:", "https:"))
    return None if heard or not info.get("duration") else float(info["duration"])


def _page(info: dict[str, Any], client: _Client, url: str) -> dict[str, Any]:
    date = str(info.get("upload_date") or "") if info.get("extractor") != "generic" else ""  # else the file's own date
    return {
        "title": _line(info.get("title")),
        "channel": _line(info.get("channel") or info.get("uploader")),
        "license": _line(info.get("license")),
        "upload_date": f"{date[:4]}-{date[4:6]}-{date[6:]}" if len(date) == 8 and date.isdecimal() else "",
        "format_id": "+".join(_line(f.get("format_id")) for f in client.chosen),
        "extractor": _line(info.get("extractor")),
        "webpage_url": _line(info.get("webpage_url")) or url,
        "revision": _revision(info, client.validators),
        "language": _line(info.get("language") or next(filter(None, (f.get("language") for f in client.chosen)), "")),
        "credits": _credits(info),
    }


def _credits(info: dict[str, Any]) -> dict[str, str]:
    """Who made the music, as far as the site says; several names of one kind stand in a list of the plural's name."""
    found = {}
    for name in CREDITS:
        several = info.get(f"{name}s")
        said = ", ".join(map(str, several)) if isinstance(several, list | tuple) else info.get(name)
        if line := _line(said):
            found[name] = line
    return found


def _revision(info: dict[str, Any], validators: Sequence[str]) -> str:
    """What changes with the media, as far as the page tells: the file's own marks, or the length of the video."""
    if info.get("direct"):
        return _line(" ".join(filter(None, validators)))
    return f"{info['duration']:.0f} s" if info.get("duration") else ""


def _line(value: Any) -> str:
    """Text from the web as one printable line."""
    text = "".join(c if c.isprintable() else " " for c in str(value or ""))
    return " ".join(text.split())[:LONGEST_TEXT]
