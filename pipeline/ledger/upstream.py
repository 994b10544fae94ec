"""What the sites say of known sources: who is to be asked next, and what the answers change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import case, func, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from pipeline.errors import POLICIES, ErrorClass
from pipeline.ledger.core import Core
from pipeline.ledger.tables import (
    DUPLICATE,
    GONE,
    OUTDATED,
    TAKEN_DOWN,
    AttemptRow,
    EventRow,
    MediaRow,
    SourceRow,
    SpanRow,
    UpstreamRow,
    now,
)

GONE_CLASSES = ("permanent", "blocked", "geo")  # error classes that say a source is out of reach where it was
TRIED_CLASSES: tuple[ErrorClass, ...] = ("transient", "internal")  # ... and that may say so, after all their tries


class Upstream(Core):
    """Liveness and revisions of sources at their sites."""

    def rotation(self, limit: int, before: datetime) -> list[SourceRow]:
        """Sources whose site is to be asked whether they are still there, those longest unasked first.

        Ready ones, and those that failed because they were out of reach or have had all their tries; the ones that are
        tried again anyway are left out.

        Args:
            limit: most sources.
            before: only those last asked before this moment.
        """
        asked = func.coalesce(UpstreamRow.checked_at, SourceRow.added_at)
        tried = select(func.count()).where(AttemptRow.source_id == SourceRow.source_id, AttemptRow.stage == "fetch")
        good = aliased(AttemptRow)
        succeeded = (
            select(func.coalesce(func.max(good.id), 0))
            .where(good.source_id == SourceRow.source_id, good.stage == "fetch", good.outcome == "ok")
            .correlate(SourceRow)
            .scalar_subquery()
        )
        in_a_row = tried.where(AttemptRow.id > succeeded).correlate(SourceRow).scalar_subquery()
        given_up = [(SourceRow.error_class == name) & (in_a_row >= POLICIES[name].tries) for name in TRIED_CLASSES]
        unreachable = (SourceRow.state == "failed") & or_(SourceRow.error_class.in_(GONE_CLASSES), *given_up)
        query = (
            select(SourceRow)
            .outerjoin(UpstreamRow, UpstreamRow.source_id == SourceRow.source_id)
            .where(SourceRow.withheld.in_(("", GONE)), (SourceRow.state == "ready") | unreachable, asked < before)
            .order_by(asked, SourceRow.position)
            .limit(limit)
        )
        with self.session() as session:
            return list(session.scalars(query))

    def saw(self, source_id: str, revision: str = "", *, fetched: bool = False) -> str:
        """Notes that a site still has a source, and in which revision.

        A ready source in another revision than before is to be fetched again, and keeps its clips until then; so is one
        that had failed, unless that is how it was seen.

        Returns:
            What that changed: `changed`, `returned`, or "" for nothing.
        """
        with self.session.begin() as session:
            row = session.get(UpstreamRow, source_id) or UpstreamRow(source_id=source_id, gone="", revision="")
            source = session.scalars(select(SourceRow).where(SourceRow.source_id == source_id)).one()
            changed = (
                not fetched
                and source.state == "ready"
                and "" not in (row.revision, revision)
                and row.revision != revision
            )
            returned = bool(row.gone) or (source.state == "failed" and source.error_class in GONE_CLASSES)
            if source.withheld == GONE:
                source.withheld = ""
            revived = source.state == "failed" and not fetched
            if revived:
                source.state, source.error_class, source.done_key = "new", "", ""
            if revived or changed:
                session.execute(update(MediaRow).where(MediaRow.source_id == source_id).values(key=OUTDATED))
            row.checked_at, row.revision, row.gone, row.gone_at = now(), revision or row.revision, "", None
            session.add(row)
            kind = "changed" if changed else "returned" if returned else ""
            if kind:
                session.add(EventRow(source_id=source_id, kind=kind))
        return kind

    def missed(self, source_id: str, error_class: str, *, withhold: bool) -> str:
        """Notes that a site no longer gives a source out; one that only stumbled counts as asked.

        Args:
            error_class: of the refusal.
            withhold: a source that is gone for good leaves the releases.

        Returns:
            What that changed: `gone`, or "" for nothing.
        """
        with self.session.begin() as session:
            row = session.get(UpstreamRow, source_id) or UpstreamRow(source_id=source_id, gone="", revision="")
            source = session.scalars(select(SourceRow).where(SourceRow.source_id == source_id)).one()
            row.checked_at = now()
            kind = ""
            if error_class in GONE_CLASSES and source.state == "failed":
                source.error_class = error_class
            if error_class in GONE_CLASSES and source.state == "ready":
                kind = "" if row.gone else "gone"
                row.gone_at = row.gone_at or now()
                row.gone = error_class
                if withhold and error_class == "permanent" and not source.withheld:
                    source.withheld = GONE
            session.add(row)
            if kind:
                session.add(EventRow(source_id=source_id, kind=kind, detail=error_class))
        return kind

    def survival(self) -> dict[str, dict[str, float]]:
        """Number of sources and seconds of their fetched media by what became of them.

        Classes: `alive` (ready, and there when last asked), `gone: CLASS` (ready, and refused since), `failed: CLASS`
        (not usable), `pending`, and the reasons of `SourceRow.withheld`; those on their way out count no more.
        """
        gone = func.coalesce(UpstreamRow.gone, "")
        fate = case(
            (SourceRow.withheld != "", SourceRow.withheld),
            (SourceRow.state == "failed", literal("failed: ") + SourceRow.error_class),
            (SourceRow.state != "ready", "pending"),
            (gone != "", literal("gone: ") + gone),
            else_="alive",
        )
        milliseconds = func.coalesce(func.sum(MediaRow.duration_ms), 0)
        query = (
            select(fate, func.count(), milliseconds)
            .select_from(SourceRow)
            .outerjoin(UpstreamRow, UpstreamRow.source_id == SourceRow.source_id)
            .outerjoin(MediaRow, MediaRow.source_id == SourceRow.source_id)
            .where(SourceRow.withheld != TAKEN_DOWN)
            .group_by(fate)
            .order_by(fate)
        )
        with self.session() as session:
            return {name: {"sources": int(n), "seconds": int(ms) / 1000} for name, n, ms in session.execute(query)}

    def revive_duplicates(self) -> int:
        """Sends sources back to work that were dropped as duplicates of one that is out now; returns how many."""
        source, media = SourceRow.__table__.c, MediaRow.__table__.c
        other, its = SourceRow.__table__.alias(), MediaRow.__table__.alias()
        earlier = (
            select(literal(1))
            .select_from(other.join(its, its.c.source_id == other.c.source_id))
            .where(its.c.sha256 == media.sha256, other.c.position < source.position)
            .where(other.c.withheld == "", other.c.state != "failed")
            .exists()
        )
        dropped = select(SpanRow.source_id).where(SpanRow.reason == DUPLICATE)
        found = (
            select(source.source_id)
            .select_from(SourceRow.__table__.join(MediaRow.__table__, media.source_id == source.source_id))
            .where(source.state == "ready", source.withheld == "", source.source_id.in_(dropped))
            .where(~earlier)
        )
        with self.session.begin() as session:
            back: Sequence[str] = session.scalars(found).all()
            _reopen(session, back)
        return len(back)


def _reopen(session: Session, source_ids: Sequence[str]) -> None:
    for begin in range(0, len(source_ids), 500):
        part = source_ids[begin : begin + 500]
        session.execute(update(SourceRow).where(SourceRow.source_id.in_(part)).values(state="new", done_key=""))
