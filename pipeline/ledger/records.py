"""All that is known of one source, and of all sources as a release lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import select

from pipeline.ledger.core import Core
from pipeline.ledger.tables import AttemptRow, ClipRow, EventRow, MediaRow, SourceRow, SpanRow, UpstreamRow


class Record(NamedTuple):
    """A source with its history; without rows of its own, but for attempts and events, if it was taken down."""

    source: SourceRow | None
    media: MediaRow | None
    upstream: UpstreamRow | None
    attempts: Sequence[AttemptRow]
    events: Sequence[EventRow]
    spans: Sequence[SpanRow]
    clips: Sequence[ClipRow]

    @property
    def known(self) -> bool:
        """Whether the ledger has ever heard of it."""
        return bool(self.source or self.attempts or self.events)


class Records(Core):
    """Reads for `pipeline.lineage` and `pipeline.rebuild`."""

    def record(self, source_id: str) -> Record:
        """All that is known of a source, in the order in which it happened or lies in the media."""

        def of(table: Any, order: Any) -> Sequence[Any]:
            return session.scalars(select(table).where(table.source_id == source_id).order_by(order)).all()

        with self.session() as session:
            source = session.scalar(select(SourceRow).where(SourceRow.source_id == source_id))
            media, upstream = session.get(MediaRow, source_id), session.get(UpstreamRow, source_id)
            attempts, events = of(AttemptRow, AttemptRow.id), of(EventRow, EventRow.id)
            return Record(
                source, media, upstream, attempts, events, of(SpanRow, SpanRow.start_ms), of(ClipRow, ClipRow.start_ms)
            )

    def sections(self, key: str) -> list[SourceRow]:
        """The sources that are a video, or sections of it, in list order."""
        with self.session() as session:
            return list(session.scalars(select(SourceRow).where(SourceRow.key == key).order_by(SourceRow.position)))

    def spans_of_clips(self, source_ids: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """Where the clips of some hundred sources lie, in milliseconds, by source and in order of time."""
        query = (
            select(ClipRow.source_id, ClipRow.start_ms, ClipRow.end_ms)
            .where(ClipRow.source_id.in_(source_ids))
            .order_by(ClipRow.source_id, ClipRow.start_ms)
        )
        found: dict[str, list[tuple[int, int]]] = {}
        with self.session() as session:
            for source_id, start_ms, end_ms in session.execute(query):
                found.setdefault(source_id, []).append((start_ms, end_ms))
        return found
