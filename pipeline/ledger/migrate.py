"""Ledgers of an older version: they get the tables, columns and indexes they lack; nothing is ever taken away."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Engine, delete, func, insert, inspect, literal, select
from sqlalchemy.schema import CreateColumn
from sqlalchemy.sql.schema import ScalarElementColumnDefault

from pipeline.errors import DvmsetError
from pipeline.ledger.tables import Base, LedgerRow

VERSION = 6  # raised when a table or a column is added
_LOCK = 0x64766D73  # "dvms": any number that nobody else locks by


def bring_up_to_date(engine: Engine) -> None:
    """Makes what is missing in a ledger.

    Raises:
        DvmsetError: it was written by a newer dvmset.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # several workers may open a new ledger at the same time
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        found = set(inspect(connection).get_table_names())
        version = connection.scalar(select(LedgerRow.version)) if LedgerRow.__tablename__ in found else None
        if version == VERSION:
            return
        if version is not None and version > VERSION:
            raise DvmsetError(
                f"The ledger {engine.url.render_as_string()} has version {version}; this dvmset knows {VERSION}.",
                hint="Use the dvmset that wrote it, or a newer one.",
            )
        Base.metadata.create_all(connection)
        for table in Base.metadata.tables.values():
            if table.name in found:
                there = {column["name"] for column in inspect(connection).get_columns(table.name)}
                for column in table.columns:
                    if column.name not in there:
                        _add(connection, table.name, column)
                for index in table.indexes:
                    index.create(connection, checkfirst=True)
        connection.execute(delete(LedgerRow))
        connection.execute(insert(LedgerRow).values(version=VERSION))


def _add(connection: Connection, table: str, column: Column[Any]) -> None:
    """ALTER TABLE ... ADD COLUMN; the rows that are there get the column's default."""
    words = str(CreateColumn(column).compile(dialect=connection.dialect))
    if isinstance(column.default, ScalarElementColumnDefault):
        value = literal(column.default.arg).compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        words += f" DEFAULT {value}"
    connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {words}")
