"""Which of a site's formats to take: the smallest that serves, with sound good enough to be tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Format = dict[str, Any]  # yt-dlp's, documented at the top of its extractor/common.py

# Protocols that yt-dlp speaks itself. The others would start ffmpeg or rtmpdump on an address nobody has vetted.
PROTOCOLS = ("http", "https", "m3u8", "m3u8_native", "http_dash_segments")
AUDIO_KBPS = 96  # AAC or Opus of this rate is transparent to EnCodec at 2.2 kbit/s, whose tokens are all that is kept
WIDE = 16 / 9

_VIDEO_CODECS = ("avc", "h264", "vp9", "vp09", "hev", "hvc", "av01")  # cheap to decode first
_AUDIO_CODECS = ("mp4a", "aac", "opus", "mp3", "vorbis")
_IN_MP4 = ("avc", "h264", "hev", "hvc", "vp9", "vp09", "av01", "mp4a", "aac", "opus", "mp3", "ac-3", "flac")


def usable(formats: Sequence[Format]) -> list[Format]:
    """The formats with picture or sound, without DRM, over a protocol that may be spoken."""
    return [
        f
        for f in formats
        if f.get("protocol") in PROTOCOLS
        and f.get("has_drm") in (None, False, "maybe")
        and not f.get("vcodec") == f.get("acodec") == "none"  # storyboards
    ]


def choose(formats: Sequence[Format], height: int) -> tuple[Format, ...]:
    """One format with picture and sound, or one of each, or only a picture where there is no sound; () for no picture.

    A picture serves if it is as large as a 16:9 one of `height`: by its shorter side, or by its longer one, so that
    neither a wide screen's bars nor an upright phone leads to a format four times the size. The smallest that serves
    is taken, else the largest; of equal ones that which is cheapest to decode, in one piece, of the lowest bit rate.
    """
    formats = usable(formats)
    sounds = [f for f in formats if f.get("vcodec") == "none"]
    pictures = [f for f in formats if f.get("vcodec") != "none"]
    if not pictures:
        return ()
    sound = min(sounds, key=_audio_rank, default=None)
    picture = min(pictures, key=lambda f: _video_rank(f, height, sound))
    return (picture, sound) if sound and picture.get("acodec") == "none" else (picture,)


def container(chosen: Sequence[Format]) -> str:
    """The suffix of the file that two formats are merged into."""
    codecs = [str(f.get(kind) or "none") for f, kind in zip(chosen, ("vcodec", "acodec"), strict=True)]
    return "mp4" if all(codec.startswith(_IN_MP4) for codec in codecs) else "mkv"


def _video_rank(f: Format, height: int, sound: Format | None) -> tuple[Any, ...]:
    """Least is best."""
    apart = f.get("acodec") == "none"
    silent = apart and sound is None
    long, short = sorted((f.get("width") or (f.get("height") or 0) * WIDE, f.get("height") or 0), reverse=True)
    serves = short >= height or long >= height * WIDE
    better_sound = sound is not None and (sound.get("abr") or 0) >= AUDIO_KBPS
    dull = not apart and better_sound and (f.get("abr") or AUDIO_KBPS) < AUDIO_KBPS
    return (
        silent,
        not short,  # of unknown size
        not serves,
        long * short if serves else -long * short,
        dull,
        f.get("dynamic_range") not in (None, "SDR"),
        _place(f.get("vcodec"), _VIDEO_CODECS),
        f["protocol"] not in ("http", "https"),
        apart,
        f.get("tbr") or f.get("vbr") or 0,
    )


def _audio_rank(f: Format) -> tuple[Any, ...]:
    rate = f.get("abr") or f.get("tbr") or 0
    return (
        -(f.get("language_preference") or 0),  # the original before dubbed ones
        "drc" in str(f.get("format_id")).lower(),  # compressed dynamics
        rate < AUDIO_KBPS,
        -rate if rate < AUDIO_KBPS else 0,
        _place(f.get("acodec"), _AUDIO_CODECS),
        f["protocol"] not in ("http", "https"),
        rate,
    )


def _place(codec: str | None, order: tuple[str, ...]) -> int:
    return next((i for i, name in enumerate(order) if str(codec).startswith(name)), len(order))
