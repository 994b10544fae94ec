"""What people have said of stretches of media: written at once, never changed; a later word outranks an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from pipeline.ledger.core import Core
from pipeline.ledger.tables import TAKEN_DOWN, EventRow, MediaRow, ReviewRow, SourceRow

UNDO = "undo"
REVIEWED = "reviewed"  # the kind of the event


class Reviews(Core):
    """Reads and writes of reviews; each write is on disk when the call returns."""

    def add_review(self, review: ReviewRow) -> int:
        """Records a person's word; returns its id."""
        with self.session.begin() as session:
            self._write(session, review)
            return review.id

    def undo_review(self, reviewer: str) -> ReviewRow | None:
        """Takes a person's newest standing word back; returns it, or None if there is none."""
        with self.session.begin() as session:
            standing = select(ReviewRow).where(ReviewRow.reviewer == reviewer, *_stands())
            last = session.scalar(standing.order_by(ReviewRow.id.desc()).limit(1))
            if last is not None:
                same = {name: getattr(last, name) for name in ("source_id", "sha256", "start_ms", "end_ms")}
                self._write(session, ReviewRow(decision=UNDO, undoes=last.id, reviewer=reviewer, **same))
            return last

    def reviews(self, source_id: str = "") -> Sequence[ReviewRow]:
        """The words that stand, on media as it is now, oldest first; none on sources that are on their way out.

        Args:
            source_id: asks for this source alone.
        """
        query = (
            select(ReviewRow)
            .join(MediaRow, (MediaRow.source_id == ReviewRow.source_id) & (MediaRow.sha256 == ReviewRow.sha256))
            .where(*_stands())
            .where(ReviewRow.source_id.not_in(select(SourceRow.source_id).where(SourceRow.withheld == TAKEN_DOWN)))
            .order_by(ReviewRow.id)
        )
        if source_id:
            query = query.where(ReviewRow.source_id == source_id)
        with self.session() as session:
            return session.scalars(query).all()

    def last_review(self, source_id: str) -> int:
        """The id of the newest review of a source, undone or not; 0 if there is none."""
        with self.session() as session:
            return session.scalar(select(func.max(ReviewRow.id)).where(ReviewRow.source_id == source_id)) or 0

    def reviewed_since(self) -> list[str]:
        """Ids of ready sources about which somebody has said something that their clips don't take into account."""
        query = select(SourceRow.source_id).where(SourceRow.state == "ready", SourceRow.withheld == "", unheard())
        with self.session() as session:
            return list(session.scalars(query.order_by(SourceRow.position)))

    def _write(self, session: Session, review: ReviewRow) -> None:
        if self.engine.dialect.name == "sqlite":  # elsewhere a commit may be lost to a power cut: see `core`
            session.connection().exec_driver_sql("PRAGMA synchronous=FULL")
        session.add(review)
        session.add(EventRow(source_id=review.source_id, kind=REVIEWED, detail=review.reviewer))
        session.flush()


def unheard() -> ColumnElement[bool]:
    """Whether a source has a review that came after its spans were put down."""
    newest = select(func.max(ReviewRow.id)).where(ReviewRow.source_id == SourceRow.source_id).scalar_subquery()
    return func.coalesce(newest, 0) > SourceRow.last_review


def _stands() -> tuple[ColumnElement[bool], ...]:
    undone = select(ReviewRow.undoes).where(ReviewRow.decision == UNDO)
    return ReviewRow.decision != UNDO, ReviewRow.id.not_in(undone)
