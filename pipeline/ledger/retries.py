"""Attempts: which sources failed, how often in a row and when each is due again; what all of it has cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Select, func, select, true, update
from sqlalchemy.orm import aliased

from pipeline.errors import due
from pipeline.ledger.core import Core
from pipeline.ledger.tables import ASKED_FOR, OUTDATED, AttemptRow, MediaRow, SourceRow, TombstoneRow, UpstreamRow

_PART = 500  # ids in one statement


@dataclass(frozen=True)
class Failure:
    """The present state of a source that failed, or whose media couldn't be fetched again when it had changed.

    Attributes:
        source_id, url: of the source.
        stage, error_class, message: of its last attempt.
        failures: of that stage in a row, the last included.
        at: when the last was.
        retry_after_s: what the server asked for then, if it did.
        keeps_clips: it was ready before it changed upstream, and its clips stay until it has come anew.
    """

    source_id: str
    url: str
    stage: str
    error_class: str
    message: str
    failures: int
    at: datetime
    retry_after_s: float | None
    keeps_clips: bool

    @property
    def due(self) -> datetime | None:
        """When it is tried again by itself; None: when somebody has had a look."""
        return due(self.error_class, self.failures, self.at, self.retry_after_s)


@dataclass(frozen=True)
class Rates:
    """What the ledger has measured so far.

    Attributes:
        media: number of media fetched.
        mean_seconds: of their length.
        bytes_per_second: of their length.
        download_bytes_per_s: bytes per second of the fetch stage.
        real_time: by stage, seconds of work per second of media, and the number of attempts behind it.
    """

    media: int = 0
    mean_seconds: float = 0.0
    bytes_per_second: float = 0.0
    download_bytes_per_s: float = 0.0
    real_time: dict[str, tuple[float, int]] = field(default_factory=dict)


class Retries(Core):
    """Failed sources, and what the attempts at all sources have cost."""

    def failures(self) -> list[Failure]:
        """All failed sources that are not withheld, in list order; those that keep their clips are among them."""
        return list(self._failures((SourceRow.state == "failed") | _REFETCHED))

    def refetches(self) -> int:
        """Number of ready sources that changed upstream and are to be fetched again."""
        waiting = select(func.count()).select_from(SourceRow).where(_REFETCHED, SourceRow.withheld == "")
        with self.session() as session:
            return int(session.scalar(waiting) or 0)

    def resting(self, at: datetime, only: str = "") -> set[str]:
        """Ids of the sources whose last attempt failed and that are not due at a moment, if ever.

        Args:
            only: asks for this source alone.
        """
        asked = SourceRow.source_id == only if only else true()
        waiting = (SourceRow.state == "ready") & SourceRow.source_id.in_(outdated(OUTDATED))
        found: set[str] = set()
        for which in (SourceRow.state == "failed", waiting):
            found.update(f.source_id for f in self._failures(which & asked) if f.due is None or f.due > at)
        return found

    def given_up(self, source_ids: Sequence[str]) -> list[str]:
        """Those of some sources that no build works on: withheld ones, and ones that have failed for good."""
        found: list[str] = []
        for begin in range(0, len(source_ids), _PART):
            part = SourceRow.source_id.in_(source_ids[begin : begin + _PART])
            with self.session() as session:
                found += session.scalars(select(SourceRow.source_id).where(part, SourceRow.withheld != ""))
            found += (f.source_id for f in self._failures(part & (SourceRow.state == "failed")) if f.due is None)
        return found

    def _failures(self, which: ColumnElement[bool]) -> Iterator[Failure]:
        """Those of some sources whose last attempt at a stage failed, in list order; a thousand are held at a time."""
        last, tried, good = AttemptRow, aliased(AttemptRow), aliased(AttemptRow)
        newest = (
            select(func.max(AttemptRow.id))
            .join(SourceRow, SourceRow.source_id == AttemptRow.source_id)
            .where(AttemptRow.outcome == "failed", which, SourceRow.withheld == "")
            .group_by(AttemptRow.source_id)
        )
        succeeded = (
            select(func.coalesce(func.max(good.id), 0))
            .where(good.source_id == last.source_id, good.stage == last.stage, good.outcome == "ok")
            .correlate(last)
            .scalar_subquery()
        )
        in_a_row = (
            select(func.count(tried.id))
            .where(tried.source_id == last.source_id, tried.stage == last.stage, tried.outcome == "failed")
            .where(tried.id > succeeded)
            .correlate(last)
            .scalar_subquery()
            .label("failures")
        )
        query = (
            select(last.source_id, SourceRow.url, last.stage, last.error_class, last.message, in_a_row, last.at)
            .add_columns(last.retry_after_s, (SourceRow.state == "ready").label("keeps_clips"))
            .join(SourceRow, SourceRow.source_id == last.source_id)
            .where(last.id.in_(newest), last.id > succeeded)
            .order_by(SourceRow.position)
        )
        with self.engine.connect() as connection:
            for row in connection.execute(query.execution_options(yield_per=1000)):
                yield Failure(**{**row._mapping, "at": _utc(row.at)})

    def rates(self) -> Rates:
        """Rates over all attempts that went well."""
        well = AttemptRow.outcome == "ok"
        worked, length = func.sum(AttemptRow.seconds), func.sum(MediaRow.duration_ms)
        by_stage = (
            select(AttemptRow.stage, worked, length, func.count())
            .join(MediaRow, MediaRow.source_id == AttemptRow.source_id)
            .where(well)
            .group_by(AttemptRow.stage)
        )
        fetched = select(func.sum(AttemptRow.bytes), worked).where(well, AttemptRow.stage == "fetch")
        with self.session() as session:
            media, ms, size = session.execute(
                select(func.count(), length, func.sum(MediaRow.bytes)).select_from(MediaRow)
            ).one()
            down, down_s = session.execute(fetched).one()
            real_time = {stage: (s * 1000 / int(ms), n) for stage, s, ms, n in session.execute(by_stage) if ms}
        if not media or not ms:
            return Rates()
        seconds = int(ms) / 1000  # Postgres gives sums as decimals
        return Rates(media, seconds / media, int(size) / seconds, int(down) / down_s if down_s else 0.0, real_time)

    def buried_keys(self) -> set[str]:
        """Keys of the videos that were taken down."""
        with self.session() as session:
            return set(session.scalars(select(TombstoneRow.value).where(TombstoneRow.kind == "key")))

    def outdated_ids(self) -> set[str]:
        """Ids of the sources that changed upstream and are to be fetched again."""
        with self.session() as session:
            return set(session.scalars(outdated()))

    def addresses(self, source_ids: Sequence[str]) -> dict[str, str]:
        """URL by source id, in the order of the ids."""
        found: dict[str, str] = {}
        with self.session() as session:
            for begin in range(0, len(source_ids), _PART):
                part = SourceRow.source_id.in_(source_ids[begin : begin + _PART])
                found |= dict(row.t for row in session.execute(select(SourceRow.source_id, SourceRow.url).where(part)))
        return {source_id: found[source_id] for source_id in source_ids}

    def reopen(self, source_ids: Sequence[str]) -> None:
        """Lets failed sources be tried again at once; how often they failed before is not forgotten.

        A ready source that changed upstream keeps its clips, and is fetched again at once.
        """
        with self.session.begin() as session:
            for begin in range(0, len(source_ids), _PART):
                part = SourceRow.source_id.in_(source_ids[begin : begin + _PART])
                waiting = select(SourceRow.source_id).where(part, _REFETCHED)
                session.execute(update(MediaRow).where(MediaRow.source_id.in_(waiting)).values(key=ASKED_FOR))
                session.execute(
                    update(SourceRow).where(part, SourceRow.state == "failed").values(state="new", error_class="")
                )


def outdated(*keys: str) -> Select[tuple[str]]:
    """Ids of the sources whose media changed upstream and is to be fetched again, those excepted that are gone now.

    Args:
        keys: which of `OUTDATED` and `ASKED_FOR`; both by default.
    """
    gone = select(UpstreamRow.source_id).where(UpstreamRow.gone != "")
    wanted = MediaRow.key.in_(keys or (OUTDATED, ASKED_FOR))
    return select(MediaRow.source_id).where(wanted, MediaRow.source_id.not_in(gone))


_REFETCHED = (SourceRow.state == "ready") & SourceRow.source_id.in_(outdated())


def _utc(at: datetime) -> datetime:
    """SQLite gives times back without their zone."""
    return at if at.tzinfo else at.replace(tzinfo=UTC)
