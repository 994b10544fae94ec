"""The connection that all parts of the ledger share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.orm import sessionmaker

from pipeline.ledger.migrate import bring_up_to_date


class Core:
    """An open ledger; safe to use from several threads.

    Args:
        url: SQLAlchemy URL, e.g. `sqlite:////data/ledger.sqlite`.

    Raises:
        DvmsetError: it was written by a newer dvmset.
    """

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url, connect_args={"timeout": 60} if url.startswith("sqlite") else {})
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _use_wal)
        bring_up_to_date(self.engine)
        self.session = sessionmaker(self.engine, expire_on_commit=False)

    def close(self) -> None:
        """Gives all connections back."""
        self.engine.dispose()


def _use_wal(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
