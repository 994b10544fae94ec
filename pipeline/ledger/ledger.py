"""Reads and writes of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import case, delete, func, select, update
from sqlalchemy.orm import Session

from pipeline.errors import POLICIES
from pipeline.ledger.hosts import HostBreakers
from pipeline.ledger.leases import Leases
from pipeline.ledger.lists import Lists
from pipeline.ledger.origins import Origins
from pipeline.ledger.records import Records
from pipeline.ledger.releases import Releases
from pipeline.ledger.retries import Retries, outdated
from pipeline.ledger.reviews import Reviews, unheard
from pipeline.ledger.shared import SharedStretches
from pipeline.ledger.tables import (
    ASKED_FOR,
    FAILED,
    OUTDATED,
    PENDING,
    TAKEN_DOWN,
    AttemptRow,
    ClipRow,
    EventRow,
    MediaRow,
    SourceRow,
    SpanRow,
    TombstoneRow,
    UpstreamRow,
    now,
)
from pipeline.ledger.takedowns import Takedowns
from pipeline.ledger.upstream import Upstream


@dataclass
class Funnel:
    """Seconds of media by fate: `fetched_ms == kept_ms + sum(dropped_ms.values())`, always."""

    fetched_ms: int = 0
    kept_ms: int = 0
    dropped_ms: dict[str, int] = field(default_factory=dict)

    def as_seconds(self) -> dict[str, Any]:
        """For JSON: seconds with millisecond precision, reasons by falling share."""
        dropped = sorted(self.dropped_ms.items(), key=lambda item: (-item[1], item[0]))
        return {
            "fetched": self.fetched_ms / 1000,
            "kept": self.kept_ms / 1000,
            "dropped": {reason: ms / 1000 for reason, ms in dropped},
        }


class Ledger(
    Lists, Origins, Upstream, Takedowns, Records, Releases, Reviews, SharedStretches, Retries, HostBreakers, Leases
):
    """All reads and writes of the ledger; safe to use from several threads and workers."""

    # sources

    def source(self, source_id: str) -> SourceRow:
        """The source of that id; KeyError if there is none."""
        with self.session() as session:
            row = session.scalar(select(SourceRow).where(SourceRow.source_id == source_id))
        if row is None:
            raise KeyError(source_id)
        return row

    def sources(self) -> Sequence[SourceRow]:
        """All sources in list order."""
        with self.session() as session:
            return session.scalars(select(SourceRow).order_by(SourceRow.position)).all()

    def pending(self, done_key: str, retry: Sequence[str], only: str = "") -> list[str]:
        """Ids, in list order, of sources that are not finished under `done_key` and not failed for good.

        Those that changed upstream are among them: they are to be fetched again, or came and are to be worked on.
        So are those about which people have said something since.

        Args:
            only: asks for this source alone.
        """
        finished = (SourceRow.state == "ready") & (SourceRow.done_key == done_key)
        query = (
            select(SourceRow.source_id)
            .where(~finished | SourceRow.source_id.in_(outdated()) | unheard(), SourceRow.withheld == "")
            .where((SourceRow.state != "failed") | SourceRow.error_class.in_(retry))
            .order_by(SourceRow.position)
        )
        if only:
            query = query.where(SourceRow.source_id == only)
        with self.session() as session:
            return list(session.scalars(query))

    def set_state(self, source_id: str, state: str, *, done_key: str | None = None) -> None:
        """Moves a source to `state`; clears its error."""
        values: dict[str, Any] = {"state": state, "error_class": ""}
        if done_key is not None:
            values["done_key"] = done_key
        with self.session.begin() as session:
            session.execute(update(SourceRow).where(SourceRow.source_id == source_id).values(**values))

    # attempts

    def succeed(self, source_id: str, stage: str, *, seconds: float, bytes: int = 0) -> None:
        """Records a stage that went well."""
        with self.session.begin() as session:
            session.add(AttemptRow(source_id=source_id, stage=stage, outcome="ok", seconds=seconds, bytes=bytes))

    def fail(
        self,
        source_id: str,
        stage: str,
        error_class: str,
        message: str,
        *,
        seconds: float,
        retry_after_s: float | None = None,
    ) -> None:
        """Records a stage that failed, and lays the source's fetched seconds aside as failed.

        One that is ready and is fetched again because it changed upstream stays ready while its class has more tries.
        """
        with self.session.begin() as session:
            media = session.get(MediaRow, source_id)
            ready = session.scalar(select(SourceRow.state).where(SourceRow.source_id == source_id)) == "ready"
            keeps = ready and stage == "fetch" and media is not None and media.key in (OUTDATED, ASKED_FOR)
            session.add(
                AttemptRow(
                    source_id=source_id,
                    stage=stage,
                    outcome="failed",
                    error_class=error_class,
                    message=message,
                    seconds=seconds,
                    retry_after_s=retry_after_s,
                )
            )
            if keeps and media is not None and POLICIES[error_class].tries > 1:  # type: ignore[index]
                media.key = OUTDATED
            else:
                _lay_aside(session, source_id, error_class, media)
            if stage == "fetch":
                asked = session.get(UpstreamRow, source_id) or UpstreamRow(source_id=source_id, revision="", gone="")
                asked.checked_at = now()
                session.add(asked)

    def drop_outdated(self, done_key: str) -> None:
        """Sources that can't be fetched again now have failed if their clips were made under another key."""
        waiting = (SourceRow.state == "ready") & (SourceRow.done_key != done_key) & SourceRow.source_id.in_(outdated())
        for failure in list(self._failures(waiting)):
            with self.session.begin() as session:
                _lay_aside(session, failure.source_id, failure.error_class, session.get(MediaRow, failure.source_id))

    def attempts(self, after: int) -> list[AttemptRow]:
        """Attempts that came after one, by its id; in the order in which they ended."""
        with self.session() as session:
            return list(session.scalars(select(AttemptRow).where(AttemptRow.id > after).order_by(AttemptRow.id)))

    def last_attempt(self) -> int:
        """The id of the newest attempt; 0 if there is none."""
        with self.session() as session:
            return session.scalar(select(func.max(AttemptRow.id))) or 0

    def stage_seconds(self, since: datetime) -> dict[str, tuple[float, int]]:
        """Per stage: seconds of work and number of attempts since a moment."""
        query = (
            select(AttemptRow.stage, func.sum(AttemptRow.seconds), func.count())
            .where(AttemptRow.at >= since)
            .group_by(AttemptRow.stage)
        )
        with self.session() as session:
            return {stage: (float(seconds), int(count)) for stage, seconds, count in session.execute(query)}

    def worked_ms(self, since: datetime) -> int:
        """Milliseconds of media of all sources that any stage has worked on since a moment."""
        touched = select(AttemptRow.source_id).where(AttemptRow.at >= since)
        query = select(func.coalesce(func.sum(MediaRow.duration_ms), 0)).where(MediaRow.source_id.in_(touched))
        with self.session() as session:
            return int(session.scalar(query) or 0)

    # media, spans, clips

    def put_media(self, row: dict[str, Any]) -> None:
        """Stores what was fetched; its seconds are pending until a verdict is given."""
        with self.session.begin() as session:
            known = session.get(MediaRow, row["source_id"])
            same = known is not None and known.sha256 == row["sha256"] and known.duration_ms == row["duration_ms"]
            if known is not None and known.key in (OUTDATED, ASKED_FOR) and not same:
                # Noted again: a release may have come in between.
                session.add(EventRow(source_id=row["source_id"], kind="changed"))
            session.merge(MediaRow(**row, fetched_at=now()))
            if not same:
                session.execute(delete(ClipRow).where(ClipRow.source_id == row["source_id"]))
                _replace_spans(session, row["source_id"], [(0, row["duration_ms"], PENDING)])

    def media(self, source_id: str) -> MediaRow | None:
        """The media of a source, if it was ever fetched."""
        with self.session() as session:
            return session.get(MediaRow, source_id)

    def listened(self, source_id: str, heard_ms: int, separated_ms: int) -> None:
        """Notes how much of a source's sound was heard, and how much of that was separated."""
        with self.session.begin() as session:
            media = session.get_one(MediaRow, source_id)
            media.details = {**media.details, "heard_ms": heard_ms, "separated_ms": separated_ms}

    def first_with(self, sha256: str, asking: str) -> SourceRow | None:
        """The first source in list order that brought media of that digest.

        Those that are withheld or failed don't count, but for the one that asks: its media is as good as new.
        """
        usable = (SourceRow.state != "failed") | (SourceRow.source_id == asking)
        query = (
            select(SourceRow)
            .join(MediaRow, MediaRow.source_id == SourceRow.source_id)
            .where(MediaRow.sha256 == sha256, SourceRow.withheld == "", usable)
            .order_by(SourceRow.position)
            .limit(1)
        )
        with self.session() as session:
            return session.scalars(query).first()

    def put_spans(
        self,
        source_id: str,
        spans: Sequence[tuple[int, int, str]],
        clips: Sequence[dict[str, Any]],
        *,
        last_review: int = 0,
    ) -> None:
        """Replaces a source's spans and clips; a clip that stays keeps the artefacts it has.

        Args:
            last_review: the newest that was taken into account.
        """
        with self.session.begin() as session:
            known = {c.clip_id: c for c in session.scalars(select(ClipRow).where(ClipRow.source_id == source_id))}
            keep = {c["clip_id"] for c in clips}
            for clip in known.values():
                if clip.clip_id not in keep:
                    session.delete(clip)
            for row in clips:
                old = known.get(row["clip_id"])
                if old is None:
                    session.add(ClipRow(**row))
                else:
                    old.measures, old.reviewed = row["measures"], row.get("reviewed", False)
            heard = update(SourceRow).where(SourceRow.source_id == source_id).values(last_review=last_review)
            session.execute(heard)
            _replace_spans(session, source_id, spans)

    def spans(self, source_id: str) -> list[SpanRow]:
        """The spans of a source in time order."""
        with self.session() as session:
            return list(
                session.scalars(select(SpanRow).where(SpanRow.source_id == source_id).order_by(SpanRow.start_ms))
            )

    def fate(self, source_id: str) -> str:
        """What became of a source, in words: how much of it was kept, and why most of the rest was not."""
        spans = self.spans(source_id)
        clips = [span for span in spans if not span.reason]
        dropped: dict[str, int] = {}
        for span in spans:
            if span.reason:
                dropped[span.reason] = dropped.get(span.reason, 0) + span.end_ms - span.start_ms
        kept = f"{sum(c.end_ms - c.start_ms for c in clips) / 1000:.1f} s kept in {len(clips)} clips"
        reasons = [f"{ms / 1000:.1f} s {reason}" for reason, ms in sorted(dropped.items(), key=lambda item: -item[1])]
        return ", ".join([kept if clips else "no clip", *reasons[:3]])

    def clips(self, source_id: str | None = None) -> list[ClipRow]:
        """The clips of a source, or all, by id."""
        query = select(ClipRow).order_by(ClipRow.clip_id)
        if source_id is not None:
            query = query.where(ClipRow.source_id == source_id)
        with self.session() as session:
            return list(session.scalars(query))

    def put_artefact(self, clip_id: str, **names: str) -> None:
        """Notes the file of a clip's artefact: `vision=` or `codes=`."""
        with self.session.begin() as session:
            session.execute(update(ClipRow).where(ClipRow.clip_id == clip_id).values(**names))

    # sums

    def funnel(self) -> Funnel:
        """Seconds of all fetched media by fate; what was taken down still counts, and so do withheld sources.

        What is kept of a source that isn't ready is pending: it is not released yet.
        """
        reason = case(
            (SourceRow.withheld != "", SourceRow.withheld),
            ((SpanRow.reason == "") & (SourceRow.state != "ready"), PENDING),
            else_=SpanRow.reason,
        )
        length = func.sum(SpanRow.end_ms - SpanRow.start_ms)
        spans = select(reason, length).join(SourceRow, SourceRow.source_id == SpanRow.source_id).group_by(reason)
        with self.session() as session:
            fetched = session.scalar(select(func.coalesce(func.sum(MediaRow.duration_ms), 0))) or 0
            buried = session.scalar(select(func.coalesce(func.sum(TombstoneRow.duration_ms), 0))) or 0
            by_reason = {r: int(ms) for r, ms in session.execute(spans)}
        if buried:
            by_reason[TAKEN_DOWN] = by_reason.get(TAKEN_DOWN, 0) + int(buried)
        return Funnel(int(fetched) + int(buried), by_reason.pop("", 0), by_reason)

    def separation(self) -> dict[str, float]:
        """Seconds of sound that were `heard`, `separated`, and `avoided`: heard to be no music before separation."""
        sums = (func.coalesce(func.sum(MediaRow.details[n].as_integer()), 0) for n in ("heard_ms", "separated_ms"))
        stays = select(SourceRow.source_id).where(SourceRow.withheld != TAKEN_DOWN)
        with self.session() as session:
            query = select(*sums).where(MediaRow.source_id.in_(stays))
            heard, separated = map(int, session.execute(query).one())
        return {"heard": heard / 1000, "separated": separated / 1000, "avoided": (heard - separated) / 1000}

    def states(self) -> dict[str, int]:
        """Number of sources by state, withheld ones by why they are; those on their way out count no more."""
        state = case((SourceRow.withheld != "", SourceRow.withheld), else_=SourceRow.state)
        return self._count(state, SourceRow.withheld != TAKEN_DOWN)

    def errors(self) -> dict[str, int]:
        """Number of failed sources by error class."""
        return self._count(SourceRow.error_class, SourceRow.state == "failed", SourceRow.withheld == "")

    def _count(self, column: Any, *where: Any) -> dict[str, int]:
        query = select(column, func.count()).where(*where).group_by(column).order_by(column)
        with self.session() as session:
            return {str(value): int(n) for value, n in session.execute(query)}


def _lay_aside(session: Session, source_id: str, error_class: str, media: MediaRow | None) -> None:
    failed = {"state": "failed", "error_class": error_class, "done_key": ""}
    session.execute(update(SourceRow).where(SourceRow.source_id == source_id).values(**failed))
    if media is not None:
        _replace_spans(session, source_id, [(0, media.duration_ms, FAILED)])


def _replace_spans(session: Session, source_id: str, spans: Sequence[tuple[int, int, str]]) -> None:
    session.execute(delete(SpanRow).where(SpanRow.source_id == source_id))
    session.add_all(SpanRow(source_id=source_id, start_ms=a, end_ms=b, reason=reason) for a, b, reason in spans)
