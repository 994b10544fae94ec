"""The rules behind a fetch: which addresses, which formats, which error class."""

from __future__ import annotations

import errno
import io
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from yt_dlp.networking.common import Response
from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, TransportError, UnsupportedRequest
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError, PostProcessingError, UnsupportedError

from pipeline.fetch.failures import explain
from pipeline.fetch.formats import choose, container
from pipeline.fetch.network import RefusedAddress, refusal

# addresses


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"],
)
def test_loopback_is_refused_unless_allowed(address: str) -> None:
    assert refusal(address, allow_loopback=False) == "an address of this machine"
    assert refusal(address, allow_loopback=True) == ""


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "::", "10.0.0.1", "172.16.3.4", "192.168.1.1", "100.64.0.1", "198.18.0.1", "224.0.0.1",
        "255.255.255.255", "169.254.169.254", "fe80::1%eth0", "fd00:ec2::254", "168.63.129.16", "192.0.0.192",
        "fec0::1", "::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:a00:1::", "ff02::1", "2001:db8::1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("allow_loopback", [False, True])
def test_private_and_metadata_addresses_are_always_refused(address: str, allow_loopback: bool) -> None:
    assert refusal(address, allow_loopback=allow_loopback)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"])
def test_public_addresses_are_let_through(address: str) -> None:
    assert refusal(address, allow_loopback=False) == ""


# formats

MUXED_360 = {
    "format_id": "18", "protocol": "https", "width": 640, "height": 360, "vcodec": "avc1.42001E",
    "acodec": "mp4a.40.2", "abr": 96, "tbr": 500,
}  # fmt: skip


def picture(name: str, width: int | None, height: int | None, **more: Any) -> dict[str, Any]:
    shape = {"width": width, "height": height, "vcodec": "avc1.4d401e", "acodec": "none", "tbr": 400}
    return {"format_id": name, "protocol": "https", **shape, **more}


def sound(name: str, abr: float | None, **more: Any) -> dict[str, Any]:
    return {"format_id": name, "protocol": "https", "vcodec": "none", "acodec": "mp4a.40.2", "abr": abr, **more}


YOUTUBE = [
    {"format_id": "sb0", "protocol": "mhtml", "vcodec": "none", "acodec": "none", "width": 320, "height": 180},
    sound("139", 48.8), sound("140", 129.5), sound("140-drc", 129.5), sound("251", 130.1, acodec="opus"),
    sound("140-dub", 129.5, language_preference=-10),
    picture("160", 256, 144), picture("133", 426, 240), picture("134", 640, 360),
    picture("243", 640, 360, vcodec="vp9", tbr=300), picture("396", 640, 360, vcodec="av01.0.01M.08", tbr=250),
    picture("135", 854, 480), picture("136", 1280, 720), picture("137", 1920, 1080),
    picture("231", 640, 360, protocol="m3u8_native"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("formats", "ids"),
    [
        (YOUTUBE, "134+140"),
        ([*YOUTUBE, MUXED_360], "18"),  # one request less
        ([*YOUTUBE, {**MUXED_360, "abr": 48}], "134+140"),  # but not for poor sound
        ([MUXED_360], "18"),
        ([picture("137", 1920, 1080), picture("136", 1280, 720), sound("a", 128)], "136+a"),  # only larger: smallest
        ([picture("160", 256, 144), picture("133", 426, 240), sound("a", 128)], "133+a"),  # only smaller: largest
        ([picture("wide", 640, 266), picture("wider", 1280, 534), sound("a", 128)], "wide+a"),  # 2.40:1
        ([picture("small", 202, 360), picture("upright", 360, 640), sound("a", 128)], "upright+a"),
        ([picture("134", 640, 360), {**MUXED_360, "height": 720, "width": 1280}], "18"),  # sound before size
        ([picture("134", 640, 360)], "134"),  # no sound at all
        ([picture("hdr", 640, 360, dynamic_range="HDR10"), picture("sdr", 640, 360), sound("a", 128)], "sdr+a"),
        ([picture("134", 640, 360), sound("low", 48), sound("lower", 32)], "134+low"),
        ([{"format_id": "0", "protocol": "https"}], "0"),  # a file nothing is said of
        ([{"format_id": "0", "protocol": "https"}, MUXED_360], "18"),
        ([sound("140", 128)], ""),
        ([{**MUXED_360, "protocol": "rtmp"}, {**MUXED_360, "protocol": "m3u8", "has_drm": True}], ""),
    ],
)
def test_smallest_format_that_serves_is_chosen(formats: list[dict[str, Any]], ids: str) -> None:
    for order in (formats, formats[::-1]):
        assert "+".join(f["format_id"] for f in choose(order, 360)) == ids


def test_merged_file_is_mp4_where_mp4_can_hold_it() -> None:
    assert container([picture("v", 1, 1), sound("a", 1)]) == "mp4"
    assert container([picture("v", 1, 1, vcodec="vp9"), sound("a", 1, acodec="opus")]) == "mp4"
    assert container([picture("v", 1, 1, vcodec="vp8"), sound("a", 1, acodec="vorbis")]) == "mkv"


# regression table of error classes

YT = "ERROR: [youtube] dQw4w9WgXcQ: "
DL = "ERROR: \r[download] Got error: "


def http_error(status: int, **headers: str) -> HTTPError:
    return HTTPError(Response(io.BytesIO(), "http://h/v", headers, status))


def wrapped(root: Exception, text: str = "ERROR: [generic] v: Unable to download webpage: x") -> DownloadError:
    return DownloadError(text, (type(root), root, None))


@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        (wrapped(http_error(404)), "permanent"),
        (wrapped(http_error(410)), "permanent"),
        (wrapped(http_error(451)), "permanent"),
        *((wrapped(http_error(status)), "internal") for status in (400, 405, 406, 409, 416, 418, 423, 426, 444)),
        (wrapped(HTTPError(http_error(302).response, redirect_loop=True)), "internal"),
        (wrapped(ExtractorError("x", cause=http_error(429))), "throttled"),
        (wrapped(http_error(403)), "blocked"),
        (wrapped(http_error(502)), "transient"),
        (wrapped(http_error(408)), "transient"),
        (wrapped(TransportError("webpage: private video? captcha?")), "transient"),  # types before words
        (wrapped(IncompleteRead(1, 2)), "transient"),
        (wrapped(GeoRestrictedError("x")), "geo"),
        (wrapped(UnsupportedError("http://h/")), "unsupported"),
        (UnsupportedRequest('Unsupported url scheme: "ftp"'), "unsupported"),
        (RefusedAddress("x is a private or reserved address"), "unsupported"),
        (wrapped(PostProcessingError("Conversion failed!"), "ERROR: Postprocessing: Conversion failed!"), "corrupt"),
        (DownloadError(YT + "Sign in to confirm you’re not a bot. This helps protect our community"), "throttled"),
        (DownloadError(YT + "Video unavailable. This content isn’t available, try again later."), "throttled"),
        (DownloadError(YT + "The current session has been rate-limited by YouTube for up to an hour."), "throttled"),
        (DownloadError(YT + "Private video. Sign in if you've been granted access to this video."), "permanent"),
        (DownloadError(YT + "Video unavailable. This video has been removed by the uploader"), "permanent"),
        (DownloadError(YT + "Video unavailable. It contains content from X, on copyright grounds"), "permanent"),
        (DownloadError(YT + "No longer available because the account has been terminated."), "permanent"),
        (DownloadError(YT + "This video is no longer available"), "permanent"),
        (DownloadError(YT + "Video unavailable"), "internal"),
        (DownloadError(YT + "Video unavailable. This video is not available"), "internal"),
        (DownloadError(YT + "The uploader has not made this video available in your country"), "geo"),
        (DownloadError(YT + "Sign in to confirm your age. This video may be inappropriate"), "blocked"),
        (DownloadError(YT + "Join this channel to get access to members-only content like this video"), "blocked"),
        (DownloadError(YT + "Premieres in 3 hours"), "transient"),
        (DownloadError(YT + "This live event will begin in 2 days."), "transient"),
        (DownloadError(YT + "This video is DRM protected"), "unsupported"),
        (DownloadError(YT + "Requested format is not available. Use --list-formats for a list"), "unsupported"),
        (DownloadError("ERROR: [generic] v: No video formats found!; please report this issue on …"), "unsupported"),
        (DownloadError("ERROR: No suitable extractor (Vimeo) found for URL https://vimeo.com/1"), "unsupported"),
        (DownloadError(DL + "12 bytes read, 34 more expected. Giving up after 3 retries"), "transient"),
        (DownloadError(DL + "HTTP Error 404: Not Found. Giving up after 3 retries"), "transient"),
        (DownloadError(DL + "HTTP Error 416: Range Not Satisfiable. Giving up after 3 retries"), "transient"),
        (DownloadError(DL + "HTTP Error 429: Too Many Requests. Giving up after 3 retries"), "throttled"),
        (DownloadError("ERROR: The downloaded file is empty"), "transient"),
        (DownloadError("ERROR: [generic] v: Got HTTP Error 403 caused by Cloudflare anti-bot challenge"), "blocked"),
        (DownloadError("ERROR: [webpage] age: Something new (caused by KeyError('x'))"), "internal"),
    ],
)  # fmt: skip
def test_errors_of_ytdlp_keep_their_classes(error: Exception, error_class: str) -> None:
    explained = explain(error, "https://www.youtube.com/watch?v=dQw4w9WgXcQ")
    assert explained.error_class == error_class
    for noise in ("ERROR", "[youtube]", "--list-formats", "please report", "(caused by", "\r"):
        assert noise not in explained.message


def test_missing_formats_are_blamed_on_the_missing_runtime_where_ytdlp_said_so() -> None:
    error = DownloadError(YT + "Requested format is not available")
    explained = explain(error, "https://h/", ["No supported JavaScript runtime could be found."])
    assert explained.error_class == "blocked"
    assert "Deno" in explained.hint


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    assert explain(wrapped(http_error(429, **{"Retry-After": "120"})), "http://h/").retry_after_s == 120
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)
    dated = explain(wrapped(http_error(503, **{"Retry-After": date})), "http://h/")
    assert dated.retry_after_s == pytest.approx(120, abs=2)
    past = format_datetime(datetime.now(UTC) - timedelta(minutes=2), usegmt=True)
    for nothing in ("soon", "", "-3", "0", "00", past):
        assert explain(wrapped(http_error(429, **{"Retry-After": nothing})), "http://h/").retry_after_s is None
    assert explain(wrapped(http_error(404, **{"Retry-After": "120"})), "http://h/").retry_after_s is None


def test_what_gives_no_reason_is_looked_at_by_a_person_before_it_is_given_up() -> None:
    loop = HTTPError(http_error(302).response, redirect_loop=True)
    for error in (DownloadError(YT + "Video unavailable"), wrapped(loop, f"ERROR: {loop}")):
        assert "in a browser" in explain(error, "https://h/").hint
    assert "Update yt-dlp" in explain(wrapped(http_error(400)), "https://h/").hint


def test_full_disk_is_not_the_sources_fault() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        explain(wrapped(full, "ERROR: unable to write data: [Errno 28] No space left on device"), "http://h/")
