"""Addresses of videos: what counts as one, and one name for all addresses of the same video."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from pipeline.errors import DvmsetError

_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_YOUTUBE_HOST = re.compile(r"(?:www\.)?youtu\.be|(?:[a-z]+\.)?youtube(?:-nocookie)?\.com")
_NOT_IDS = ("videoseries", "live_stream")  # eleven letters after /embed/, but a playlist and a channel's live stream
_BILIBILI_ID = re.compile(r"[Bb][Vv]([1-9A-HJ-NP-Za-km-z]{10})")  # base 58
_BILIBILI_NUMBER = re.compile(r"[Aa][Vv]([1-9]\d{0,15})", re.ASCII)  # how videos were called before 2020
_BILIBILI_HOST = re.compile(r"(?:[a-z]+\.)?bilibili\.com")
_KEY = re.compile(r"youtube:(?P<youtube>.+)|bilibili:(?P<bilibili>BV\w+)(?:\?p=(?P<part>\d{1,4}))?", re.ASCII)
_BARE_HOST = re.compile(r"[\w-]+(?:\.[\w-]+)*\.[a-zA-Z]{2,}(?::\d+)?/", re.ASCII)
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|[0-9a-f:.]*:[0-9a-f:.]*")  # a name or IPv4 address, or IPv6
_TRACKING = re.compile(r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|igshid|mc_[ce]id|spm_id_from|vd_source|_ga", re.I)
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]", re.ASCII)


class Unusable(Exception):
    """An address, or a row of a list, that gives no source; says why."""


def canonical_key(address: str) -> str:
    """One name for all addresses of a video: `youtube:ID`, `bilibili:BV...`, else the normalised URL.

    A normalised URL (RFC 3986, section 6.2.2) has scheme and host in lower case, no default port, no fragment, its
    query sorted by name and without tracking parameters, and only the percent-encoding it needs. The part of a
    Bilibili video stays: `bilibili:BV...?p=2`. A key is its own key.

    Raises:
        DvmsetError: it is no http(s) address and no id; the message says why.
    """
    try:
        return resolve(address)[0]
    except Unusable as error:
        raise DvmsetError(f"{address!r} is no source: {error}.") from error


def resolve(address: str) -> tuple[str, str]:
    """Key of an address, and the URL to fetch it from.

    Raises:
        Unusable: it is no http(s) address and no id.
    """
    address = address.strip()
    if key := _KEY.fullmatch(address):
        if key["youtube"] and _YOUTUBE_ID.fullmatch(key["youtube"]):
            return _youtube(key["youtube"])
        if key["bilibili"] and _BILIBILI_ID.fullmatch(key["bilibili"]):
            return _bilibili(key["bilibili"], key["part"] or "")
    if _YOUTUBE_ID.fullmatch(address):
        return _youtube(address)
    if _BILIBILI_ID.fullmatch(address):
        return _bilibili(address, "")
    return _resolve_url("https://" + address if _BARE_HOST.match(address) else address)


def _resolve_url(address: str) -> tuple[str, str]:
    if not address.isascii():
        try:
            address.encode()
        except UnicodeEncodeError as error:
            raise Unusable("characters in the address that are no text") from error
    if re.search(r"[\x00-\x1f\x7f]", address):
        raise Unusable("a control character in the address")
    try:
        parts = urlsplit(address)
        host, port = (parts.hostname or "").rstrip("."), parts.port
        host = host if host.isascii() else host.encode("idna").decode().lower()
    except ValueError as error:  # UnicodeError of a name that IDNA can't express is one, too
        raise Unusable(f"no valid address: {error}") from error
    if parts.scheme not in ("http", "https"):
        if parts.scheme and ("://" in address or parts.scheme in ("file", "javascript", "data", "mailto")):
            raise Unusable(f"{parts.scheme}: addresses are refused; only http(s) ones and video ids are sources")
        raise Unusable(f"{address[:60]!r} is neither an http(s) address nor a video id (YouTube's have 11 characters)")
    if parts.username is not None:
        raise Unusable("a user name or password in the address, which would end up in the data card")
    if not _HOST.fullmatch(host):
        raise Unusable("no valid host name in the address")

    query = [piece for piece in _percent(parts.query).split("&") if piece]
    values = {unquote(name): unquote(value) for name, _, value in (piece.partition("=") for piece in reversed(query))}
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    if _YOUTUBE_HOST.fullmatch(host):
        return _youtube(_youtube_id(host, segments, values))
    if _BILIBILI_HOST.fullmatch(host):
        for candidate in (*segments, values.get("bvid", "")):
            part = values.get("p") or values.get("page") or ""
            if _BILIBILI_ID.fullmatch(candidate):
                return _bilibili(candidate, part)
            if number := _BILIBILI_NUMBER.fullmatch(candidate):
                return _bilibili(_bv(int(number[1])), part)

    place = f"[{host}]" if ":" in host else host
    if port not in (None, {"http": 80, "https": 443}[parts.scheme]):
        place += f":{port}"
    base = f"{parts.scheme}://{place}{_percent(parts.path) or '/'}"
    named = [(piece.partition("=")[0], piece) for piece in query]
    kept = [piece for name, piece in sorted(named, key=lambda pair: pair[0]) if not _TRACKING.fullmatch(name)]
    # The order of a query may be signed: the URL to fetch keeps it.
    return "?".join(filter(None, [base, "&".join(kept)])), "?".join(filter(None, [base, _percent(parts.query)]))


def _youtube_id(host: str, segments: list[str], values: dict[str, str]) -> str:
    first, second = [*segments, "", ""][:2]
    if host.endswith("youtu.be"):
        candidate = first
    elif first in ("shorts", "embed", "live", "v", "e") or (first == "watch" and second):
        candidate = second
    else:
        candidate = values.get("v", "")
    if _YOUTUBE_ID.fullmatch(candidate) and candidate not in _NOT_IDS:
        return candidate
    if "list" in values or first in ("channel", "c", "user") or first.startswith("@"):
        raise Unusable("a playlist or a channel of YouTube, not one video")
    raise Unusable("a YouTube address without a video id of 11 characters")


def _youtube(video: str) -> tuple[str, str]:
    return f"youtube:{video}", f"https://www.youtube.com/watch?v={video}"


def _bilibili(video: str, part: str) -> tuple[str, str]:
    name = f"BV{video[2:]}"
    if re.fullmatch(r"0*[1-9]\d{0,3}", part, re.ASCII) and int(part) > 1:  # part 1 is what a bare address gives
        name += f"?p={int(part)}"
    return f"bilibili:{name}", f"https://www.bilibili.com/video/{name}"


def _bv(number: int) -> str:
    """The BV id of an old `av` number.

    Base 58 of the number exclusive-or a key, with four digits swapped: SocialSisterYi/bilibili-API-collect,
    docs/misc/bvid_desc.md.
    """
    digits = "FcwAPNKTMug3GV5Lj7EJnHpWsx4tb8haYeviqBz6rkCy12mUSDQX9RdoZf"
    left = ((1 << 51) | number) ^ 23442827791579
    found = [""] * 9
    for place in reversed(range(9)):
        left, digit = divmod(left, 58)
        found[place] = digits[digit]
    found[0], found[6] = found[6], found[0]
    found[1], found[4] = found[4], found[1]
    return "BV1" + "".join(found)


def _percent(text: str) -> str:
    """Escapes in capitals, none for unreserved characters, all other characters that need one escaped.

    RFC 3986, sections 6.2.2.1 and 6.2.2.2; a % that starts no escape is one that needs it.
    """

    def normal(escape: re.Match[str]) -> str:
        if escape[1] is None:
            return "%25"
        character = chr(int(escape[1], 16))
        return character if _UNRESERVED.fullmatch(character) else escape[0].upper()

    return quote(re.sub(r"%([0-9A-Fa-f]{2})?", normal, text), safe="%/?:@!$&'()*+,;=[]~")
