"""The source lists that a data folder was built from."""

from __future__ import annotations

from sqlalchemy import select

from pipeline.ledger.core import Core
from pipeline.ledger.tables import ListRow


class Origins(Core):
    """Lists by name and content: one that has changed is another."""

    def knows_list(self, name: str, sha256: str) -> bool:
        """Whether a list of that name and content was taken before."""
        with self.session() as session:
            return session.get(ListRow, (name, sha256)) is not None

    def put_list(self, name: str, sha256: str, rows: int, queries: dict[str, int]) -> None:
        """Notes a list, and how many of its rows each query of `discover` found."""
        with self.session.begin() as session:
            session.merge(ListRow(name=name, sha256=sha256, rows=rows, queries=queries))

    def lists(self) -> list[ListRow]:
        """All lists, in the order in which they were first taken."""
        with self.session() as session:
            return list(session.scalars(select(ListRow).order_by(ListRow.at, ListRow.name)))
