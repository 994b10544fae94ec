"""Source lists in: CSV, TSV, JSON Lines, Parquet and plain lists become `Source` rows; rows that can't are reported.

A row needs one thing, the address of a video: an http(s) URL, a bare YouTube id or a Bilibili BV id, in a column
called `url`, `link`, `video_id`, `youtube_id`, `ytid`, `id`, ... (`ADDRESS`). Optional columns: `category`, `start`
and `end` (seconds or h:mm:ss), `license`. A plain list has one address a line; `#` starts a
comment.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.sources.addresses import Unusable, canonical_key, resolve
from pipeline.sources.files import ADDRESS, CATEGORY, END, LICENSE, START, Cells, rows

__all__ = ["UNCATEGORISED", "BadRow", "Source", "canonical_key", "iter_list", "read_list", "source_id"]

UNCATEGORISED = "uncategorised"  # the category of a source whose list gives none
LONGEST_CATEGORY = 40  # characters
LATEST_S = 1e6  # a section that ends after eleven days is a mistake in the list

_CLOCK = re.compile(r"(?:(\d{1,3}):(?=[0-5]\d:))?(\d{1,3}):([0-5]\d(?:\.\d+)?)", re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Source:
    """One video, or a section of one, that somebody wants in the data set.

    Attributes:
        source_id: 16 hex digits, the same for the same video and section in any list, see `source_id()`.
        key: canonical name of the video, see `canonical_key()`.
        url: the address to fetch; the site's own watch page where the site is known.
        category: lower-case word, `UNCATEGORISED` where the list gives none.
        start_s, end_s: the section, in seconds to the millisecond; None for the video's own start and end.
        license: as the list gives it, or "".
        file, line: where it stands; the line its row begins on, in Parquet the row's number from 1.
    """

    source_id: str
    key: str
    url: str
    category: str
    start_s: float | None
    end_s: float | None
    license: str
    file: str
    line: int


@dataclass(frozen=True)
class BadRow:
    """A row that gives no source, and why."""

    file: str
    line: int
    reason: str


def read_list(path: str | Path) -> tuple[list[Source], list[BadRow]]:
    """All sources of a list, in its order, and all rows that are none; a bad row never stops the good ones.

    The suffix tells the format: `.csv`, `.tsv`, `.jsonl`/`.ndjson`, `.parquet`, or a plain list; `.gz` may follow.

    Raises:
        DvmsetError: the file can't be read at all, or no column of it holds addresses.
    """
    sources: list[Source] = []
    bad: list[BadRow] = []
    for row in iter_list(path):
        if isinstance(row, Source):
            sources.append(row)
        else:
            bad.append(row)
    return sources, bad


def iter_list(path: str | Path) -> Iterator[Source | BadRow]:
    """The same row by row; of the sources only their ids are held.

    Raises:
        DvmsetError: as `read_list`.
    """
    file = str(path)
    first_lines: dict[str, int] = {}
    for line, row in rows(Path(path)):
        try:
            if isinstance(row, str):
                raise Unusable(row)
            source = _source(row, file, line)
            first = first_lines.setdefault(source.source_id, line)
            if first != line:
                raise Unusable(f"same source as line {first}")
        except Unusable as error:
            yield BadRow(file, line, str(error))
        else:
            yield source


def source_id(key: str, start_s: float | None = None, end_s: float | None = None) -> str:
    """Identity of a section of a video: 16 hex digits of the SHA-256 of its key and its bounds in milliseconds."""
    start_ms = _ms(start_s or 0)
    section = f" {start_ms}-{'' if end_s is None else _ms(end_s)}" if start_ms or end_s is not None else ""
    return hashlib.sha256((key + section).encode()).hexdigest()[:16]


def _source(row: Cells, file: str, line: int) -> Source:
    address = next((text for name in ADDRESS if (text := _text(row.get(name), name))), "")
    if not address:
        raise Unusable("no address")
    key, url = resolve(address)
    start_s = _time(_first(row, START), "start") or None  # a start of 0 is none: the same source either way
    end_s = _time(_first(row, END), "end")
    if end_s is not None and end_s <= (start_s or 0):
        raise Unusable(f"its end, {end_s:.10g} s, is not after its start, {start_s or 0:.10g} s")
    category = _text(_first(row, CATEGORY), "category").lower() or UNCATEGORISED
    if len(category) > LONGEST_CATEGORY:
        raise Unusable(f"its category has more than {LONGEST_CATEGORY} characters")
    rights = _text(_first(row, LICENSE), "license")
    return Source(source_id(key, start_s, end_s), key, url, category, start_s, end_s, rights, file, line)


def _first(row: Cells, names: tuple[str, ...]) -> Any:
    """The first cell under one of the names that holds something; NaN is how tables write nothing."""
    return next((v for n in names if (v := row.get(n)) not in (None, "") and v == v), None)


def _text(value: Any, name: str) -> str:
    """A cell as text, white space collapsed."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable(f"its {name} is no text: {str(value)[:40]}")
    text = " ".join(str(value).split())
    if _UNPRINTABLE.search(text):
        raise Unusable(f"its {name} holds characters that are no text: {text[:40]!r}")
    return text


def _time(value: Any, name: str) -> float | None:
    """Seconds to the millisecond, from a number, `12.5`, `m:ss` or `h:mm:ss.sss`."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str):
        text = value.strip()
        if clock := _CLOCK.fullmatch(text):
            seconds = int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])
        elif _SECONDS.fullmatch(text):
            seconds = float(text)
    if not 0 <= seconds <= LATEST_S:
        raise Unusable(f"its {name}, {str(value)[:40]!r}, is neither seconds nor h:mm:ss")
    return _ms(seconds) / 1000


def _ms(seconds: float) -> int:
    return math.floor(seconds * 1000 + 0.5)
