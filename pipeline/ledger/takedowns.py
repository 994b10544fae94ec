"""Sources that have to go for good: found, kept out by tombstones, erased."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from pipeline.ledger.core import Core
from pipeline.ledger.tables import (
    TAKEN_DOWN,
    AttemptRow,
    ClipRow,
    EventRow,
    MediaRow,
    ReviewRow,
    SharedRow,
    SourceRow,
    SpanRow,
    TombstoneRow,
    UpstreamRow,
)

_PART = 500  # ids in one statement


def channel_key(name: str | None) -> str:
    """A channel's name as tombstones have it: the same in any case, and however its accents are written."""
    return unicodedata.normalize("NFC", name or "").casefold()


class Takedowns(Core):
    """Takedowns as the ledger sees them."""

    def find(
        self, *, source_ids: Sequence[str] = (), keys: Sequence[str] = (), channel: str = ""
    ) -> list[tuple[SourceRow, MediaRow | None]]:
        """The sources of some ids, videos or a channel, with all sections and byte-for-byte copies of their videos."""
        found: dict[str, tuple[SourceRow, MediaRow | None]] = {}
        with self.session() as session:
            for part in _parts(source_ids):
                found |= _sources(session, SourceRow.source_id.in_(part))
            for part in _parts(keys):
                found |= _sources(session, SourceRow.key.in_(part))
            if channel:
                named = MediaRow.details["channel"].as_string()
                # Compared here: a database's lower() may know no letters but those of English.
                names = session.scalars(select(named).distinct()).all()
                spelt = [name for name in names if channel_key(name) == channel_key(channel)]
                for part in _parts(spelt):
                    found |= _sources(session, named.in_(part))
            while True:  # a copy has sections of its own, and a section may have been fetched in another revision
                known = len(found)
                for part in _parts([source.key for source, _ in found.values()]):
                    found |= _sources(session, SourceRow.key.in_(part))
                for part in _parts([media.sha256 for _, media in found.values() if media]):
                    found |= _sources(session, MediaRow.sha256.in_(part))
                if len(found) == known:
                    return sorted(found.values(), key=lambda pair: pair[0].position)

    def bury(self, keys: Sequence[str], media: Sequence[str], channel: str = "") -> list[tuple[str, str]]:
        """Keeps videos, files and a channel out for ever, and withholds what of them is here.

        Args:
            keys: of videos, known or not.
            media: SHA-256 of files.
            channel: its name, in any case.

        Returns:
            (kind, value) of all tombstones that stand for these now.
        """
        wanted = [("key", key) for key in keys] + [("media", sha256) for sha256 in media]
        wanted += [("channel", channel_key(channel))] if channel else []
        with self.session.begin() as session:
            for kind, value in dict.fromkeys(wanted):
                if session.get(TombstoneRow, (kind, value)) is None:
                    session.add(TombstoneRow(kind=kind, value=value, duration_ms=0))
            for part in _parts(keys):
                session.execute(update(SourceRow).where(SourceRow.key.in_(part)).values(withheld=TAKEN_DOWN))
        return list(dict.fromkeys(wanted))

    def tombstone(self, key: str, sha256: str, channel: str) -> str:
        """Why media that was just fetched must not stay: `key`, `media` or `channel`, or "" if it may."""
        same = or_(
            (TombstoneRow.kind == "key") & (TombstoneRow.value == key),
            (TombstoneRow.kind == "media") & (TombstoneRow.value == sha256),
            (TombstoneRow.kind == "channel") & (TombstoneRow.value == channel_key(channel)),
        )
        with self.session() as session:
            return session.scalar(select(TombstoneRow.kind).where(same).order_by(TombstoneRow.kind)) or ""

    @contextmanager
    def erased(self, source_ids: Sequence[str]) -> Iterator[dict[str, int]]:
        """Deletes all rows of sources that are buried, for good when the block has ended well.

        Of what was tried only times and outcomes stay. Their seconds stay in the funnel, as taken down.

        Yields:
            Number of rows deleted, by table.
        """
        gone: dict[str, int] = {}
        with self.session.begin() as session:
            for part in _parts(source_ids):
                lengths = (
                    select(SourceRow.key, func.sum(MediaRow.duration_ms))
                    .join(MediaRow, MediaRow.source_id == SourceRow.source_id)
                    .where(SourceRow.source_id.in_(part))
                    .group_by(SourceRow.key)
                )
                for key, milliseconds in session.execute(lengths).all():
                    stone = session.get_one(TombstoneRow, ("key", key))
                    stone.duration_ms += int(milliseconds)
                session.execute(update(AttemptRow).where(AttemptRow.source_id.in_(part)).values(message=""))
                session.add_all(EventRow(source_id=name, kind=TAKEN_DOWN) for name in part)
                for table in (ReviewRow, ClipRow, SpanRow, MediaRow, UpstreamRow, SourceRow):
                    rows: Any = session.execute(delete(table).where(table.source_id.in_(part)))
                    gone[table.__tablename__] = gone.get(table.__tablename__, 0) + rows.rowcount
                here = SharedRow.source_id.in_(part) | SharedRow.other_id.in_(part)
                shared: Any = session.execute(delete(SharedRow).where(here))
                gone[SharedRow.__tablename__] = gone.get(SharedRow.__tablename__, 0) + shared.rowcount
            yield gone


def _parts(values: Sequence[str]) -> list[list[str]]:
    unique = list(dict.fromkeys(values))
    return [unique[i : i + _PART] for i in range(0, len(unique), _PART)]


def _sources(session: Session, where: Any) -> dict[str, tuple[SourceRow, MediaRow | None]]:
    query = select(SourceRow, MediaRow).outerjoin(MediaRow, MediaRow.source_id == SourceRow.source_id).where(where)
    return {source.source_id: (source, media) for source, media in session.execute(query).tuples()}
