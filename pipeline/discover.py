"""Finding sources: searches, playlists, channels and pages become rows of a source list; nothing is downloaded.

yt-dlp lists the videos without opening their pages (flat extraction): one request for some twenty videos.
"""

from __future__ import annotations

import csv
import io
import logging
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import FetchSettings
from pipeline.errors import DvmsetError, SourceError
from pipeline.sources import canonical_key, read_list
from pipeline.sources.addresses import Unusable, resolve
from pipeline.sources.files import ADDRESS, CATEGORY
from pipeline.storage import Store, scratch_folder, sweep_scratch

log = logging.getLogger(__name__)

SITES = {"youtube": "ytsearch", "bilibili": "bilisearch"}  # yt-dlp's search prefixes
KEYWORDS = Path(__file__).with_name("keywords")
COLUMNS = ("url", "category", "title", "channel", "seconds", "query")
LONGEST_CELL = 200  # characters of a title or a name
DEEPEST = 2  # a channel lists its tabs, which list videos


@dataclass(frozen=True)
class Query:
    """One thing to look through.

    Attributes:
        text: words to search for, or the address of a playlist, channel or page.
        site: where to search; "" for an address.
        category: of what is found.
    """

    text: str
    site: str
    category: str


@dataclass(frozen=True)
class Filter:
    """Which videos are wanted; a bound of 0 is none. A video of unknown length passes."""

    least_s: float = 0.0
    most_s: float = 0.0

    def passes(self, entry: dict[str, Any]) -> bool:
        """Whether yt-dlp's entry is wanted; what is live or hasn't begun isn't."""
        if entry.get("live_status") in ("is_live", "is_upcoming"):
            return False
        seconds = entry.get("duration")
        return seconds is None or (self.least_s <= seconds and (not self.most_s or seconds <= self.most_s))


@dataclass(frozen=True)
class Found:
    """What came of a query.

    Attributes:
        query: it.
        added: videos that are new in the list.
        known: videos that it had.
        left_out: those that the filter refused, or that have no address of their own.
        error: why there is no more; None if all went well.
    """

    query: Query
    added: int = 0
    known: int = 0
    left_out: int = 0
    error: SourceError | None = None


def search(text: str, site: str = "", category: str = "") -> Query:
    """A query from a person's words.

    Raises:
        DvmsetError: there is no such site, or the address is none.
    """
    text = " ".join(text.split())
    if site and site not in SITES:
        raise DvmsetError(f"There is no search on {site!r}.", hint=f"Use {' or '.join(SITES)}, or give an address.")
    if not site and not text.startswith(("http://", "https://")):
        raise DvmsetError(f"{text!r} is no address.", hint="Give one with https://, or a site to search.")
    return Query(text, site, category or ("" if not site else text.lower()[:40].strip()))


def read_queries(name: str, category: str = "") -> list[Query]:
    """Queries from a CSV file with the columns query, site and category; bundled ones go by name.

    Args:
        name: of a bundled file, or the path of one.
        category: only the queries of this category, and those without one, which get it.

    Raises:
        DvmsetError: it can't be read, or has no such query.
    """
    bundled = KEYWORDS / f"{name}.csv"
    path = bundled if bundled.is_file() else Path(name)
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        known = ", ".join(sorted(p.stem for p in KEYWORDS.glob("*.csv")))
        raise DvmsetError(
            f"Can't read the keywords {name}: {error}.", hint=f"Give a CSV file, or one of: {known}."
        ) from error
    if not rows or "query" not in rows[0]:
        raise DvmsetError(f"{path} has no column `query`.", hint="Its first row is: query,site,category.")
    asked = [
        (row["query"], row.get("site") or "", (row.get("category") or "").strip())
        for row in rows
        if (row["query"] or "").strip()
    ]
    queries = [search(text, site, of or category) for text, site, of in asked if not category or of in ("", category)]
    if asked and not queries:
        there = ", ".join(sorted({of for _, _, of in asked}))
        raise DvmsetError(f"No query of {path} is of the category {category!r}.", hint=f"Use one of: {there}.")
    return queries


def discover(
    queries: Sequence[Query], path: Path, limit: int, wanted: Filter, settings: FetchSettings
) -> Iterator[Found]:
    """Looks through the queries one by one, and adds what is new to the list at once, whole or not at all.

    A site that throttles, or says Retry-After, is not asked again by this call.

    Args:
        queries: in order.
        path: a .csv list; made if it isn't there. What stands in it stays as it is, byte for byte.
        limit: most videos of each query.
        wanted: which of them.
        settings: who may be talked to, the pause between two queries, cookies and proxies.

    Raises:
        DvmsetError: the list can't be read or added to.
    """
    sweep_scratch()
    target = _List(path)
    tired: dict[str, SourceError] = {}
    for number, query in enumerate(queries):
        if error := tired.get(query.site):
            yield Found(query, error=error)
            continue
        if number:
            time.sleep(random.uniform(*settings.pause_s))
        found = Found(query)
        rows: list[dict[str, str]] = []
        try:
            for entry in _entries(query, limit, settings):
                row = _row(entry, query) if wanted.passes(entry) else None
                if row is None:
                    found = replace(found, left_out=found.left_out + 1)
                elif target.takes(row["url"]):
                    rows.append(row)
                    found = replace(found, added=found.added + 1)
                else:
                    found = replace(found, known=found.known + 1)
        except SourceError as error:
            found = replace(found, error=error)
            if error.error_class == "throttled" or error.retry_after_s:
                tired[query.site] = error
        target.add(rows)
        yield found


def _entries(query: Query, limit: int, settings: FetchSettings) -> Iterator[dict[str, Any]]:
    """yt-dlp's flat entries of a query, at most `limit`."""
    from yt_dlp.utils import YoutubeDLError

    from pipeline.fetch.failures import explain
    from pipeline.fetch.secrets import secrets_for
    from pipeline.fetch.vetted import Vetted

    address = f"{SITES[query.site]}{limit}:{query.text}" if query.site else query.text.partition("#")[0]
    families = [f"{name}.*" for name in settings.extractors if name != "generic"]
    pages = ["generic", "html5"] if "generic" in settings.extractors else []
    with scratch_folder() as folder:
        secrets = secrets_for(settings, folder)
        with Vetted(
            "discover",
            query.text,
            settings.model_copy(update={"cookies": secrets.cookies}),
            secrets.proxy,
            allowed_extractors=families + pages,
            extract_flat=True,
            playlist_items=f"1:{limit}",
            sleep_interval_requests=min(settings.pause_s[0], 1.0),
            skip_download=True,
        ) as client:
            left = limit
            waiting = [(address, 0)]
            while waiting and left > 0:
                place, depth = waiting.pop(0)
                try:
                    info = client.extract_info(place, download=False) or {}
                    entries = list(_flat([info]))
                except YoutubeDLError as error:
                    raised = explain(error, query.text, client.said.warnings)
                    raised.message = secrets.out_of(raised.message)
                    raise raised from None
                for entry in entries[:left]:
                    if len(entries) > 1 and entry.get("webpage_url") == info.get("webpage_url"):
                        entry["webpage_url"] = None  # several videos of one page: each by the address of its file
                    if "_type" in entry and _is_list(entry) and depth < DEEPEST:
                        waiting.append((entry["url"], depth + 1))
                    else:
                        left -= 1
                        yield entry


def _flat(entries: Iterable[dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
    """Entries, with those of a list in its place: a channel's address gives the lists of its tabs."""
    for entry in filter(None, entries):
        if "entries" in entry:
            yield from _flat(entry["entries"] or ())
        else:
            yield entry


def _is_list(entry: dict[str, Any]) -> bool:
    """Whether an entry leads to more entries: a tab of a channel, a playlist on a list of playlists."""
    return str(entry.get("ie_key") or "").startswith(("YoutubeTab", "YoutubePlaylist", "BilibiliPlaylist"))


def _row(entry: dict[str, Any], query: Query) -> dict[str, str] | None:
    """A row of the list; None for an entry without an address of a video."""
    address = next((entry[k] for k in ("webpage_url", "url") if str(entry.get(k)).startswith("http")), "")
    try:
        _, url = resolve(address)
    except Unusable:
        return None
    seconds = entry.get("duration")
    values = (
        url,
        query.category,
        entry.get("title"),
        entry.get("channel") or entry.get("uploader"),
        "" if seconds is None else f"{seconds:.0f}",
        query.text,
    )
    return dict(zip(COLUMNS, map(_cell, values), strict=True))


def _cell(value: Any) -> str:
    """One printable line; one that a spreadsheet would take for a formula is quoted."""
    text = "".join(c if c.isprintable() else " " for c in str(value or ""))
    text = " ".join(text.split())[:LONGEST_CELL]
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


class _List:
    """A CSV source list that grows at its end.

    Args:
        path: of the list.

    Raises:
        DvmsetError: it isn't CSV, or can't be read.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() != ".csv":
            raise DvmsetError(f"{path} is no .csv file.", hint="Give --output a name that ends on .csv.")
        self.path = path
        self.text = ""
        self.columns: Sequence[str] = COLUMNS
        self.delimiter = ","
        self.keys: set[str] = set()
        if path.exists():
            self.keys = {source.key for source in read_list(path)[0]}
            self.text = path.read_bytes().decode("utf-8-sig")
            header = next(line for line in self.text.splitlines() if line.strip())
            self.delimiter = max(",\t;", key=header.count)
            self.columns = next(csv.reader([header], delimiter=self.delimiter))

    def takes(self, url: str) -> bool:
        """Whether a video is new; it isn't any more after this."""
        key = canonical_key(url)
        new = key not in self.keys
        self.keys.add(key)
        return new

    def add(self, rows: Sequence[dict[str, str]]) -> None:
        """Adds rows under the list's own columns, in one write."""
        if not rows and self.path.exists():
            return
        lines = io.StringIO()
        writer = csv.writer(lines, delimiter=self.delimiter, lineterminator="\n")
        if not self.text:
            writer.writerow(self.columns)
        names = [_known_as(column) for column in self.columns]
        first = {names.index(name) for name in set(names)}  # of two columns of addresses the first gets it
        for row in rows:
            writer.writerow([row.get(name, "") if i in first else "" for i, name in enumerate(names)])
        gap = "\n" if self.text and not self.text.endswith("\n") else ""
        self.text += gap + lines.getvalue()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        Store(self.path.parent.absolute()).write_text(self.path.name, self.text)


def _known_as(column: str) -> str:
    """Our name of a list's column."""
    name = "_".join(column.strip().lower().replace("-", " ").split())
    return "url" if name in ADDRESS else "category" if name in CATEGORY else name
