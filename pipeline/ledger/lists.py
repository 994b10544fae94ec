"""Source lists against the ledger: what is new, changed, gone from the lists or back on them, in a few statements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from pipeline.errors import DvmsetError
from pipeline.ledger.core import Core
from pipeline.ledger.tables import GONE, REMOVED, EventRow, LedgerRow, SourceRow, TombstoneRow, now

_CHUNK = 5000  # rows held at a time
_FEW = 10  # so many sources may always leave a list
_SHOWN = 20  # refused addresses that are named

_listed = Table(
    "listed",
    MetaData(),
    Column("position", Integer, primary_key=True),
    Column("source_id", String, index=True),
    Column("key", String),
    Column("url", String),
    Column("category", String),
    Column("start_s", Float),
    Column("end_s", Float),
    Column("license", String),
    Column("place", String),
    prefixes=["TEMPORARY"],
)
_FIELDS = ("source_id", "key", "url", "category", "start_s", "end_s", "license")
_LABELS = ("url", "category", "license")


@dataclass(frozen=True)
class ListChanges:
    """What a list changed.

    Attributes:
        listed: sources in the lists, each counted once.
        refused: addresses of some of those that were taken down and stay out; refused_count is their number.
    """

    listed: int
    new: int = 0
    relabelled: int = 0
    removed: int = 0
    restored: int = 0
    refused_count: int = 0
    refused: tuple[str, ...] = ()


class Lists(Core):
    """Sources as the lists have them."""

    def take_list(self, rows: Iterable[dict[str, Any]], *, whole: bool, most_removed: float = 1.0) -> ListChanges:
        """Brings the ledger in line with lists; a source that was taken down is not taken again.

        New sources are added in order, category, licence and address of known ones are taken over, and those that had
        been removed come back with all that is stored of them. Rows pass through a temporary table, a few thousand at
        a time. All of it happens or nothing does.

        Args:
            rows: columns of `SourceRow`, and the `file` and `line` they stand in, which the events of those that came,
                changed or came back tell; of rows with one `source_id` the first counts.
            whole: the rows are all there is: a source that is not among them was removed.
            most_removed: largest share of the sources that may be removed at once; a few always may.

        Raises:
            DvmsetError: more would be removed.
        """
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_listed.name}")  # of a run that was interrupted
            _listed.create(connection)
            left = iter(rows)
            while chunk := [{f: row[f] for f in _FIELDS} | {"place": _place(row)} for row in islice(left, _CHUNK)]:
                connection.execute(insert(_listed), chunk)
            first = select(func.min(_listed.c.position)).group_by(_listed.c.source_id)
            connection.execute(delete(_listed).where(_listed.c.position.not_in(first)))
            connection.execute(update(LedgerRow).values(version=LedgerRow.version))  # waits for another who does this
            changes = _compare(connection, whole, most_removed)
            _listed.drop(connection)
        return changes

    def add_sources(self, rows: Iterable[dict[str, Any]]) -> int:
        """Takes a list that need not be all there is; returns how many of its sources are new."""
        return self.take_list(rows, whole=False).new


def _place(row: dict[str, Any]) -> str:
    """Where a row stands, as `file:line`; "" if it came from no file."""
    return f"{row['file']}:{row['line']}" if row.get("file") else ""


def _compare(connection: Connection, whole: bool, most_removed: float) -> ListChanges:
    at = now()
    buried = select(TombstoneRow.value).where(TombstoneRow.kind == "key")
    refused = _listed.c.key.in_(buried)
    refused_count = connection.scalar(select(func.count()).where(refused)) or 0
    shown = connection.scalars(select(_listed.c.url).where(refused).order_by(_listed.c.position).limit(_SHOWN)).all()
    connection.execute(delete(_listed).where(refused))

    source, ids = SourceRow.__table__.c, select(_listed.c.source_id)
    missing = select(source.source_id).where(source.withheld.in_(("", GONE)), source.source_id.not_in(ids))
    removed = _count(connection, missing) if whole else 0
    if removed > _FEW:
        present = _count(connection, select(source.source_id).where(source.withheld.in_(("", GONE))))
        if removed > most_removed * present:
            raise DvmsetError(
                f"{removed} of {present} sources are not in the lists any more; nothing was changed.",
                hint="Give all lists of this data folder. If they are to go, raise refresh.most_removed (0 to 1).",
            )
    if removed:
        _note(connection, missing.add_columns(literal("")), "removed", at)
        connection.execute(update(SourceRow).where(SourceRow.source_id.in_(missing)).values(withheld=REMOVED))

    same = source.source_id == _listed.c.source_id
    back = select(source.source_id).where(source.withheld == REMOVED, source.source_id.in_(ids))
    came_back = select(source.source_id, _listed.c.place).where(same, source.withheld == REMOVED)
    if restored := _note(connection, came_back, "restored", at):
        connection.execute(update(SourceRow).where(SourceRow.source_id.in_(back)).values(withheld=""))

    differs = or_(*(source[name] != _listed.c[name] for name in _LABELS))
    changed = select(source.source_id, _listed.c.place).where(same, differs)
    if relabelled := _note(connection, changed, "relabelled", at):
        labels = {name: _listed.c[name] for name in _LABELS}
        connection.execute(update(SourceRow).where(same, differs).values(labels))

    known = select(source.source_id)
    unknown = _listed.c.source_id.not_in(known)
    if new := _note(connection, select(_listed.c.source_id, _listed.c.place).where(unknown), "added", at):
        columns = [_listed.c[name] for name in _FIELDS]
        fresh = select(*columns).where(unknown).order_by(_listed.c.position)
        connection.execute(insert(SourceRow).from_select(list(_FIELDS), fresh))
    listed = connection.scalar(select(func.count()).select_from(_listed)) or 0
    return ListChanges(listed, new, relabelled, removed, restored, refused_count, tuple(shown))


def _count(connection: Connection, ids: Select[Any]) -> int:
    return connection.scalar(select(func.count()).select_from(ids.subquery())) or 0


def _note(connection: Connection, places: Select[Any], kind: str, at: datetime) -> int:
    """Records an event of each source that the query finds, with where it stands; returns how many they are."""
    found = places.subquery()
    source_id, place = found.c
    rows = select(source_id, literal(kind), place, literal(at))
    noted = insert(EventRow).from_select(["source_id", "kind", "detail", "at"], rows)
    return connection.execute(noted, execution_options={"preserve_rowcount": True}).rowcount
