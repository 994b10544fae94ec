"""What a release is made of, which ones were made, and what happened in between."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, String, cast, func, select

from pipeline.ledger.core import Core
from pipeline.ledger.tables import DUPLICATE, PENDING, ClipRow, EventRow, MediaRow, ReleaseRow, SourceRow, SpanRow

_PART = 500  # ids in one statement


class ReadyClip(NamedTuple):
    """A clip that belongs in a release, and all that its row is made of; dicts as the JSON they are stored as."""

    clip_id: str
    source_id: str
    start_ms: int
    end_ms: int
    category: str
    url: str
    license: str
    sha256: str
    vision: str
    codes: str
    reviewed: bool
    measures_json: str
    details_json: str

    @property
    def measures(self) -> dict[str, Any]:
        """Shots, beats, tempo, voice ratio, music score."""
        return dict(json.loads(self.measures_json))

    @property
    def details(self) -> dict[str, Any]:
        """What the site said of the media."""
        return dict(json.loads(self.details_json))


class Story(NamedTuple):
    """What is known of a source when somebody asks why its clips came or went.

    Attributes:
        state, error_class, withheld: of its row; state is "" if there is no such row any more.
        events: kinds of what happened to it since, oldest first.
        spans: (start_ms, end_ms, reason).
    """

    state: str
    error_class: str
    withheld: str
    events: tuple[str, ...]
    spans: tuple[tuple[int, int, str], ...]


class Releases(Core):
    """Clips for releases, and the releases themselves."""

    def stale(self, done_key: str) -> int:
        """Number of ready sources that were finished under another key."""
        stale = (SourceRow.state == "ready", SourceRow.done_key != done_key, SourceRow.withheld == "")
        with self.session() as session:
            return int(session.scalar(select(func.count()).where(*stale)) or 0)

    def in_hand(self) -> int:
        """Number of sources that were ready, have come anew, and are still to be worked on: their clips are out."""
        again = (SourceRow.state.in_(("fetched", "analysed")), SourceRow.done_key != "", SourceRow.withheld == "")
        with self.session() as session:
            return int(session.scalar(select(func.count()).where(*again)) or 0)

    def repeated(self) -> list[str]:
        """Ids of ready sources whose media others brought too and that aren't dropped as their duplicates."""
        twice = select(MediaRow.sha256).group_by(MediaRow.sha256).having(func.count() > 1)
        decided = select(SpanRow.source_id).where(SpanRow.reason.not_in((PENDING, DUPLICATE)))
        query = (
            select(SourceRow.source_id)
            .join(MediaRow, MediaRow.source_id == SourceRow.source_id)
            .where(MediaRow.sha256.in_(twice), SourceRow.state == "ready", SourceRow.withheld == "")
            .where(SourceRow.source_id.in_(decided))
        )
        with self.session() as session:
            return list(session.scalars(query))

    def ready_ids(self) -> Iterator[str]:
        """Id of every ready source that isn't withheld, in no order; a thousand are held at a time."""
        query = select(SourceRow.source_id).where(SourceRow.state == "ready", SourceRow.withheld == "")
        with self.engine.connect() as connection:
            yield from connection.scalars(query.execution_options(yield_per=1000))

    def ready_clips(self) -> Iterator[ReadyClip]:
        """Every clip of every ready source that isn't withheld, in no order; a thousand are held at a time."""
        ready = (SourceRow.state == "ready", SourceRow.withheld == "")
        with self.engine.connect() as connection:
            for row in connection.execute(_clips().where(*ready).execution_options(yield_per=1000)):
                yield ReadyClip._make(row)

    def ready_clips_of(self, clip_ids: Sequence[str]) -> dict[str, ReadyClip]:
        """Some of them, by id; at most a few hundred are asked for at a time."""
        # Said so that no index fits it: SQLite would rather go through all ready sources than look up so many clips.
        ready = SourceRow.state + SourceRow.withheld == "ready"
        with self.engine.connect() as connection:
            found = connection.execute(_clips().where(ClipRow.clip_id.in_(clip_ids), ready))
            return {row.clip_id: ReadyClip._make(row) for row in found}

    def put_release(
        self, release_id: str, digest: str, parent: str, clips: int, seconds: float, *, late: bool = False
    ) -> None:
        """Records the newest release, if that isn't done; where an older one had just this content, it is newest again.

        Args:
            late: whoever made it was killed before this. What it knew of can't be told any more: it is taken to know
                what the one before it did, so that no reason of a change is lost.
        """
        with self.session.begin() as session:
            newest = session.scalar(select(ReleaseRow).order_by(ReleaseRow.number.desc()).limit(1))
            if newest and newest.release_id == release_id:
                return
            row = session.scalar(select(ReleaseRow).where(ReleaseRow.release_id == release_id))
            if row is None:
                row = ReleaseRow(release_id=release_id, digest=digest, parent=parent, clips=clips, seconds=seconds)
            elif newest:
                row.number = 1 + newest.number
            last = newest.event if newest else 0
            row.event = last if late else session.scalar(select(func.coalesce(func.max(EventRow.id), 0))) or 0
            session.add(row)

    def releases(self) -> list[ReleaseRow]:
        """All releases, oldest first."""
        with self.session() as session:
            return list(session.scalars(select(ReleaseRow).order_by(ReleaseRow.number)))

    def release_known(self, release_id: str) -> int:
        """The last event that a release knew of; 0 if there is no such release."""
        with self.session() as session:
            return session.scalar(select(ReleaseRow.event).where(ReleaseRow.release_id == release_id)) or 0

    def stories(self, source_ids: Iterable[str], since: int) -> dict[str, Story]:
        """What is known of each source, with its events after the event `since`."""
        ids = sorted(set(source_ids))
        found: dict[str, Story] = {}
        with self.session() as session:
            for part in (ids[i : i + _PART] for i in range(0, len(ids), _PART)):
                states = _by_id(
                    session.execute(
                        select(SourceRow.source_id, SourceRow.state, SourceRow.error_class, SourceRow.withheld).where(
                            SourceRow.source_id.in_(part)
                        )
                    )
                )
                happened = select(EventRow.source_id, EventRow.kind).where(
                    EventRow.source_id.in_(part), EventRow.id > since
                )
                events = _by_id(session.execute(happened.order_by(EventRow.id)))
                fates = select(SpanRow.source_id, SpanRow.start_ms, SpanRow.end_ms, SpanRow.reason)
                spans = _by_id(session.execute(fates.where(SpanRow.source_id.in_(part)).order_by(SpanRow.start_ms)))
                for name in part:
                    state, error_class, withheld = states.get(name, [("", "", "")])[0]
                    kinds = tuple(kind for (kind,) in events.get(name, []))
                    found[name] = Story(state, error_class, withheld, kinds, tuple(spans.get(name, [])))
        return found


def _clips() -> Select[Any]:
    return (
        select(
            ClipRow.clip_id,
            ClipRow.source_id,
            ClipRow.start_ms,
            ClipRow.end_ms,
            SourceRow.category,
            SourceRow.url,
            SourceRow.license,
            MediaRow.sha256,
            ClipRow.vision,
            ClipRow.codes,
            ClipRow.reviewed,
            cast(ClipRow.measures, String),
            cast(MediaRow.details, String),
        )
        .join(SourceRow, SourceRow.source_id == ClipRow.source_id)
        .join(MediaRow, MediaRow.source_id == ClipRow.source_id)
    )


def _by_id(rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, *rest in rows:
        found.setdefault(name, []).append(tuple(rest))
    return found
