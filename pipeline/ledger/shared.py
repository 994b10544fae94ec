"""What sources share with each other: stretches of sound and picture, and the pairs and groups they make."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, case, delete, func, insert, select

from pipeline.ledger.core import Core
from pipeline.ledger.tables import ClipRow, MediaRow, SharedRow, SourceRow

_PART = 500  # ids in one statement


class Video(NamedTuple):
    """Where the bytes of a source come from."""

    source_id: str
    key: str
    sha256: str


class SharedStretches(Core):
    """Stretches that sources share; see `pipeline.fingerprint`."""

    def put_shared(self, kind: str, source_ids: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
        """Stores what some sources share with those before them, in place of what was known of them.

        Args:
            kind: sound or picture.
            source_ids: that were looked at.
            rows: columns of `SharedRow` without `kind`.
        """
        with self.session.begin() as session:
            _forget(session, kind, source_ids)
            if rows:
                session.execute(insert(SharedRow), [{"kind": kind, **row} for row in rows])

    def drop_shared(self, kind: str, source_ids: Sequence[str]) -> None:
        """Forgets what some sources share with any other."""
        with self.session.begin() as session:
            _forget(session, kind, source_ids)

    def shared(self, source_id: str = "") -> Iterator[SharedRow]:
        """All stretches between ready sources that aren't withheld, of one source or of all; pair by pair."""
        usable = select(SourceRow.source_id).where(SourceRow.state == "ready", SourceRow.withheld == "")
        query = select(SharedRow).where(SharedRow.source_id.in_(usable), SharedRow.other_id.in_(usable))
        if source_id:
            query = query.where((SharedRow.source_id == source_id) | (SharedRow.other_id == source_id))
        ascending = SharedRow.source_id < SharedRow.other_id
        pair = [
            case((ascending, SharedRow.source_id), else_=SharedRow.other_id),
            case((ascending, SharedRow.other_id), else_=SharedRow.source_id),
        ]
        with self.session() as session:
            yield from session.scalars(query.order_by(*pair, SharedRow.id).execution_options(yield_per=1000))

    def videos(self, *, repeated: bool = False) -> Iterator[Video]:
        """Every source that was fetched, in list order.

        Args:
            repeated: only those whose video is listed, or whose file was brought, more than once.
        """
        query = select(SourceRow.source_id, SourceRow.key, MediaRow.sha256).join(
            MediaRow, MediaRow.source_id == SourceRow.source_id
        )
        if repeated:
            listed, brought = (
                select(column).group_by(column).having(func.count() > 1) for column in (SourceRow.key, MediaRow.sha256)
            )
            query = query.where(SourceRow.key.in_(listed) | MediaRow.sha256.in_(brought))
        with self.engine.connect() as connection:
            for row in connection.execute(query.order_by(SourceRow.position).execution_options(yield_per=1000)):
                yield Video._make(row)

    def released_digest(self) -> str:
        """SHA-256 over what fingerprints of the sources of `released_sources` depend on."""
        columns = (SourceRow.source_id, SourceRow.start_s, SourceRow.end_s, MediaRow.sha256, MediaRow.duration_ms)
        hashed = hashlib.sha256()
        with self.engine.connect() as connection:
            for row in connection.execute(_released(*columns).execution_options(yield_per=1000)):
                hashed.update(repr(tuple(row)).encode())
        return hashed.hexdigest()

    def released_sources(self) -> Iterator[tuple[SourceRow, MediaRow]]:
        """Ready sources with clips that aren't withheld, in list order, with their media."""
        with self.session() as session:
            yield from session.execute(_released(SourceRow, MediaRow).execution_options(yield_per=1000)).tuples()


def _released(*columns: Any) -> Select[Any]:
    return (
        select(*columns)
        .select_from(SourceRow)
        .join(MediaRow, MediaRow.source_id == SourceRow.source_id)
        .where(SourceRow.state == "ready", SourceRow.withheld == "")
        .where(SourceRow.source_id.in_(select(ClipRow.source_id)))
        .order_by(SourceRow.position)
    )


def _forget(session: Any, kind: str, source_ids: Sequence[str]) -> None:
    for i in range(0, len(source_ids), _PART):
        part = source_ids[i : i + _PART]
        here = SharedRow.source_id.in_(part) | SharedRow.other_id.in_(part)
        session.execute(delete(SharedRow).where(SharedRow.kind == kind, here))
