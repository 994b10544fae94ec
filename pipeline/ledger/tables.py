"""The ledger's tables. `attempts` is append-only; the others hold the present state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def now() -> datetime:
    """The time of an event, in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Declarative base; JSON columns hold plain dicts."""

    type_annotation_map = {dict[str, Any]: JSON}  # noqa: RUF012  (SQLAlchemy's own protocol)


class SourceRow(Base):
    """One row of a source list. `state` is one of new, fetched, analysed, ready, failed."""

    __tablename__ = "sources"
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    source_id: Mapped[str] = mapped_column(unique=True, index=True)
    key: Mapped[str]
    url: Mapped[str]
    category: Mapped[str]
    start_s: Mapped[float | None]
    end_s: Mapped[float | None]
    license: Mapped[str]
    state: Mapped[str] = mapped_column(default="new", index=True)
    error_class: Mapped[str] = mapped_column(default="")
    done_key: Mapped[str] = mapped_column(default="", index=True)
    added_at: Mapped[datetime] = mapped_column(default=now)


class AttemptRow(Base):
    """One try of one stage on one source; never changed, never deleted."""

    __tablename__ = "attempts"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    source_id: Mapped[str] = mapped_column(index=True)
    stage: Mapped[str]
    outcome: Mapped[str]  # ok or failed
    error_class: Mapped[str] = mapped_column(default="")
    message: Mapped[str] = mapped_column(default="")
    seconds: Mapped[float] = mapped_column(default=0.0)
    bytes: Mapped[int] = mapped_column(default=0)
    at: Mapped[datetime] = mapped_column(default=now, index=True)


class MediaRow(Base):
    """The media of a source: what was fetched, from where, and whether the file is still here."""

    __tablename__ = "media"
    source_id: Mapped[str] = mapped_column(ForeignKey("sources.source_id"), primary_key=True)
    key: Mapped[str]
    name: Mapped[str]  # within the data folder
    sha256: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int]
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
    vision: Mapped[str] = mapped_column(default="")  # file names within the data folder
    codes: Mapped[str] = mapped_column(default="")


class ReleaseRow(Base):
    """A release that was made."""

    __tablename__ = "releases"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    release_id: Mapped[str] = mapped_column(unique=True)
    parent: Mapped[str] = mapped_column(default="")
    digest: Mapped[str]
    clips: Mapped[int]
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(default=now)
