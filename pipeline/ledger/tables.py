"""The ledger's tables. `attempts` and `events` are append-only; the others hold the present state.

A new column needs a default or room for NULL: older ledgers get it when they are opened (`migrate`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pipeline.clips import clip_id

PENDING = "pending"  # the reason of fetched seconds that no verdict has been given on yet
FAILED = "failed"  # ... and of those whose source broke down after it was fetched
DUPLICATE = "duplicate"  # ... and of those that another source brought already, byte for byte
OUTDATED, ASKED_FOR = "", "asked for"  # keys of media that is to be fetched again: when it is due, or at once
REMOVED, GONE, TAKEN_DOWN = "removed", "gone", "taken_down"  # ... and of withheld sources; see `SourceRow`


def now() -> datetime:
    """The time of an event, in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Declarative base; JSON columns hold plain dicts, and times are UTC (SQLite gives them back without the zone)."""

    type_annotation_map = {dict[str, Any]: JSON, datetime: DateTime(timezone=True)}  # noqa: RUF012  (SQLAlchemy's own)


class SourceRow(Base):
    """One row of a source list. `state` is one of new, fetched, analysed, ready, failed.

    `withheld` says why a source is neither worked on nor released, whatever its state: removed (from the list), gone
    (upstream, where the settings drop such), taken_down (on the way out); empty for all others.
    """

    __tablename__ = "sources"
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    source_id: Mapped[str] = mapped_column(unique=True, index=True)
    key: Mapped[str] = mapped_column(index=True)
    url: Mapped[str]
    category: Mapped[str]
    start_s: Mapped[float | None]
    end_s: Mapped[float | None]
    license: Mapped[str]
    state: Mapped[str] = mapped_column(default="new", index=True)
    error_class: Mapped[str] = mapped_column(default="")
    done_key: Mapped[str] = mapped_column(default="", index=True)
    withheld: Mapped[str] = mapped_column(default="", index=True)
    last_review: Mapped[int] = mapped_column(default=0)  # the newest that its spans take into account
    added_at: Mapped[datetime] = mapped_column(default=now)


class ListRow(Base):
    """A source list as it was when it was taken; another content under the same name is another row."""

    __tablename__ = "lists"
    name: Mapped[str] = mapped_column(primary_key=True)  # of the file, without its folder
    sha256: Mapped[str] = mapped_column(primary_key=True)
    rows: Mapped[int]
    queries: Mapped[dict[str, Any]]  # of `discover` -> number of rows
    at: Mapped[datetime] = mapped_column(default=now)


class AttemptRow(Base):
    """One try of one stage on one source; never changed, never deleted (a takedown takes its message)."""

    __tablename__ = "attempts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    source_id: Mapped[str] = mapped_column(index=True)
    stage: Mapped[str]
    outcome: Mapped[str]  # ok or failed
    error_class: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")
    seconds: Mapped[float] = mapped_column(default=0.0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    retry_after_s: Mapped[float | None]  # what the server asked for
    at: Mapped[datetime] = mapped_column(default=now, index=True)


class EventRow(Base):
    """Something that happened to a source from outside; never changed, never deleted.

    `kind` is one of added, relabelled, removed, restored (by a list), gone, returned, changed (upstream), reviewed (by
    a person), taken_down. `detail` is the row of the list as `file:line`, or the class of what is gone.
    """

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    source_id: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    detail: Mapped[str] = mapped_column(default="")
    at: Mapped[datetime] = mapped_column(default=now)


class UpstreamRow(Base):
    """What the site said of a source when it was last asked.

    `revision` is any text that changes with the media, empty if the site gives nothing to tell by; `gone` is the error
    class with which the site refused it, empty while it is there.
    """

    __tablename__ = "upstream"
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.source_id"), primary_key=True)
    checked_at: Mapped[datetime] = mapped_column(default=now, index=True)
    revision: Mapped[str] = mapped_column(default="")
    gone: Mapped[str] = mapped_column(default="", index=True)
    gone_at: Mapped[datetime | None]


class TombstoneRow(Base):
    """Something that was taken down and stays out: a video by its `key`, a file by its `media` digest, a `channel`."""

    __tablename__ = "tombstones"
    kind: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    duration_ms: Mapped[int] = mapped_column(default=0)  # of a video's media that had been fetched
    at: Mapped[datetime] = mapped_column(default=now)


class MediaRow(Base):
    """The media of a source: what was fetched, and from where; `key`: for which settings, or that it is outdated."""

    __tablename__ = "media"
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.source_id"), primary_key=True)
    key: Mapped[str]
    name: Mapped[str]  # within the data folder
    sha256: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    duration_ms: Mapped[int]
    has_video: Mapped[bool]
    has_audio: Mapped[bool]
    details: Mapped[dict[str, Any]]
    fetched_at: Mapped[datetime] = mapped_column(default=now)


class SpanRow(Base):
    """A stretch of a source's media. Its spans cover it without gap or overlap; kept ones have no reason."""

    __tablename__ = "spans"
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.source_id"), primary_key=True)
    start_ms: Mapped[int] = mapped_column(primary_key=True)
    end_ms: Mapped[int]
    reason: Mapped[str] = mapped_column(default="", index=True)


class ClipRow(Base):
    """A kept span, and the keys of the artefacts its shard row is made of."""

    __tablename__ = "clips"
    clip_id: Mapped[str] = mapped_column(primary_key=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.source_id"), index=True)
    start_ms: Mapped[int]
    end_ms: Mapped[int]
    measures: Mapped[dict[str, Any]]  # cuts, beats, tempo, voice ratio, music score
    reviewed: Mapped[bool] = mapped_column(default=False)  # a person has said that it is one
    vision: Mapped[str] = mapped_column(default="")  # file names within the data folder
    codes: Mapped[str] = mapped_column(default="")


class ReviewRow(Base):
    """A person's word on a stretch of a source's media; never changed, and deleted by a takedown alone.

    `decision` is one of keep, drop, unsure, split (into two at `split_ms`), undo (of the review `undoes`). `sha256` is
    that of the media it was said of, `rules` the reason for which the rules dropped it then, "" if they kept it.
    """

    __tablename__ = "reviews"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.source_id"), index=True)
    sha256: Mapped[str]
    start_ms: Mapped[int]
    end_ms: Mapped[int]
    decision: Mapped[str]
    split_ms: Mapped[int | None]
    undoes: Mapped[int | None]
    rules: Mapped[str] = mapped_column(default="")
    reviewer: Mapped[str] = mapped_column(index=True)
    at: Mapped[datetime] = mapped_column(default=now)

    @property
    def window_id(self) -> str:
        """The stretch by name, as a clip of these times is called."""
        return clip_id(self.source_id, self.start_ms, self.end_ms)


class SharedRow(Base):
    """A stretch of sound or picture that two sources share (`pipeline.fingerprint.Shared`)."""

    __tablename__ = "shared"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str]  # sound or picture
    source_id: Mapped[str] = mapped_column(index=True)
    other_id: Mapped[str] = mapped_column(index=True)
    start_ms: Mapped[int]
    end_ms: Mapped[int]
    other_start_ms: Mapped[int]
    other_end_ms: Mapped[int]
    speed: Mapped[float]  # seconds of the other that pass in one of the first
    mirror: Mapped[bool]
    distance: Mapped[float]  # mean bits of 64 that differ


class ReleaseRow(Base):
    """A release that was made; the newest is the one of the highest number. `event`: the last event it knew of."""

    __tablename__ = "releases"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    release_id: Mapped[str] = mapped_column(unique=True)
    parent: Mapped[str] = mapped_column(default="")
    digest: Mapped[str]
    clips: Mapped[int]
    seconds: Mapped[float]
    event: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(default=now)


class HostRow(Base):
    """The circuit breaker of a host; times are seconds since the epoch.

    `openings` in a row, 0 while it is closed; `refusals` (class `blocked`) in a row; `probed_until` is the end of a
    probe's lease.
    """

    __tablename__ = "hosts"
    host: Mapped[str] = mapped_column(primary_key=True)
    rests_until: Mapped[float] = mapped_column(default=0.0)
    openings: Mapped[int] = mapped_column(default=0)
    refusals: Mapped[int] = mapped_column(default=0)
    probed_until: Mapped[float] = mapped_column(default=0.0)

    @property
    def free_at(self) -> float:
        """When the host may be asked again."""
        return max(self.rests_until, self.probed_until)


class LeaseRow(Base):
    """Something that only one worker may do at a time: work on a source (by its id), make a release, change the lists.

    `until` is in seconds since the epoch, by the ledger's clock.
    """

    __tablename__ = "leases"
    name: Mapped[str] = mapped_column(primary_key=True)
    worker: Mapped[str]
    until: Mapped[float]


class LedgerRow(Base):
    """The version of the tables; one row."""

    __tablename__ = "ledger"
    version: Mapped[int] = mapped_column(primary_key=True)
