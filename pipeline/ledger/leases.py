"""Leases: what only one worker may do at a time, for as long as it lives.

A lease is taken in one statement, so that no two workers can both get it, and runs out unless its worker renews it: one
that dies holds up the others no longer than that.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, or_, select, update

from pipeline.ledger.core import Core
from pipeline.ledger.tables import LeaseRow

_PART = 500  # names in one statement


class Leases(Core):
    """Leases by name; `worker` is any text that is unique to a process."""

    def take_lease(self, name: str, worker: str, seconds: float) -> bool:
        """Takes or renews a lease; false if another worker has it."""
        taken = self.insert(LeaseRow).values(name=name, worker=worker, until=self.clock + seconds)
        free = or_(LeaseRow.until <= self.clock, LeaseRow.worker == worker)
        mine = {"worker": taken.excluded.worker, "until": taken.excluded.until}
        with self.session.begin() as session:
            statement = taken.on_conflict_do_update(index_elements=["name"], set_=mine, where=free)
            return session.scalar(statement.returning(LeaseRow.name)) is not None

    def renew_leases(self, names: Iterable[str], worker: str, seconds: float) -> set[str]:
        """Renews leases of a worker; returns those that it has lost because it was late."""
        names = sorted(names)
        kept: set[str] = set()
        for part in (names[i : i + _PART] for i in range(0, len(names), _PART)):
            mine = LeaseRow.name.in_(part) & (LeaseRow.worker == worker)
            with self.session.begin() as session:
                renewed = update(LeaseRow).where(mine).values(until=self.clock + seconds).returning(LeaseRow.name)
                kept |= set(session.scalars(renewed))
        return set(names) - kept

    def release_lease(self, name: str, worker: str) -> None:
        """Gives a lease back, if the worker still has it."""
        with self.session.begin() as session:
            session.execute(delete(LeaseRow).where(LeaseRow.name == name, LeaseRow.worker == worker))

    def leases(self) -> dict[str, str]:
        """The worker of each lease that hasn't run out, by name."""
        with self.session() as session:
            rows = select(LeaseRow.name, LeaseRow.worker).where(LeaseRow.until > self.clock).order_by(LeaseRow.name)
            return dict(session.execute(rows).tuples().all())

    def clear_leases(self) -> None:
        """Ends all leases: nobody else can be at work."""
        with self.session.begin() as session:
            session.execute(delete(LeaseRow))
