"""The connection that all parts of the ledger share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Engine, create_engine, event, func, inspect, literal, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import sessionmaker

from pipeline.errors import DvmsetError, SettingsError
from pipeline.ledger.migrate import bring_up_to_date
from pipeline.ledger.tables import LedgerRow


class Core:
    """An open ledger; safe to use from several threads, and from several machines if it is on a server.

    Args:
        url: `sqlite:////data/ledger.sqlite` or `postgresql://user@host/database`.

    Raises:
        DvmsetError: it can't be opened, or was written by a newer dvmset. It is damaged: this may also show later,
            whatever is asked of it then.
        SettingsError: the URL is of no such database, or the package for it is missing.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        with _opening(self.engine):
            bring_up_to_date(self.engine)
        self.session = sessionmaker(self.engine, expire_on_commit=False)

    @property
    def insert(self) -> Any:
        """The INSERT of this database, which knows ON CONFLICT."""
        return postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert

    @property
    def clock(self) -> ColumnElement[Any]:
        """Seconds since the epoch, by a clock that all workers share: the server's, or that of a file's machine."""
        if self.engine.dialect.name == "postgresql":
            return func.extract("epoch", func.clock_timestamp())
        return literal(time.time())

    def close(self) -> None:
        """Gives all connections back."""
        self.engine.dispose()


def is_ledger(url: str) -> bool:
    """Whether there is a ledger; nothing is made.

    Raises:
        DvmsetError: the server can't be reached.
        SettingsError: as `Core`.
    """
    engine = _engine(url)
    if engine.dialect.name == "sqlite":
        return Path(str(engine.url.database)).is_file()  # to connect would make it
    with _opening(engine):
        found = inspect(engine).has_table(LedgerRow.__tablename__)
    engine.dispose()
    return found


@contextmanager
def _opening(engine: Engine) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        shown, why = engine.url.render_as_string(), str(error.orig).strip()  # shown without the password
        raise DvmsetError(f"The ledger {shown} can't be opened: {why}.", hint="Check its URL.") from error


def _engine(text: str) -> Engine:
    hint = "Write postgresql://user@host/database or sqlite:////path/of/ledger.sqlite."
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise SettingsError("The URL of the ledger can't be read.", hint=hint) from error  # not shown: has a password
    match url.get_backend_name():
        case "sqlite":
            engine = create_engine(url, connect_args={"timeout": 60})
            event.listen(engine, "connect", _use_wal)
            event.listen(engine, "handle_error", _tell_damage)
            return engine
        case "postgresql":
            try:
                engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
            except ImportError as error:
                raise SettingsError(
                    f"A ledger on Postgres needs a package that is missing here ({error}).",
                    hint="Run `pip install 'dvmset[postgres]'`.",
                ) from error
            event.listen(engine, "connect", _use_utc)
            return engine
        case name:
            raise SettingsError(f"A ledger can't be kept by {name!r}.", hint=hint)


def _tell_damage(context: Any) -> None:
    """Says what a damaged file is, whichever statement meets it.

    Raises:
        DvmsetError: it is one.
    """
    error = context.original_exception
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        place = context.engine.url.database
        raise DvmsetError(
            f"The ledger {place} is damaged: {error}.",
            hint="Put a copy of it back, without the -wal and -shm files beside it. If there is none, move it away: "
            "the next build begins anew, and reviews and takedowns that stood in it are to be made again.",
        ) from error


def _use_utc(connection: Any, _: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'UTC'")
    connection.commit()


def _use_wal(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
