"""Circuit breakers of hosts, shared by all workers of a ledger and still there after a restart.

A breaker is closed (no row, or no openings), open until `rests_until`, and half open after that: one download at a
time may probe the host, under a lease, so that a worker that dies doesn't keep the probe for ever.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from pipeline.ledger.core import Core
from pipeline.ledger.tables import HostRow


class HostBreakers(Core):
    """Breakers by host; all times are seconds since the epoch."""

    def breaker(self, host: str) -> HostRow:
        """The breaker of a host; closed if nothing is known of it."""
        with self.session() as session:
            return session.get(HostRow, host) or HostRow(**_closed(host))

    def open_breakers(self) -> dict[str, HostRow]:
        """The breakers that are not closed, by host."""
        with self.session() as session:
            rows = session.scalars(select(HostRow).where(HostRow.openings > 0).order_by(HostRow.host))
            return {row.host: row for row in rows}

    def open_breaker(self, host: str, at: float, rest_s: float, longest_s: float) -> float:
        """Opens a breaker: the first time for `rest_s`, for twice as long with each opening in a row.

        One that is open already stays so as long as it was, or for `rest_s` if that is longer: what was under way when
        it opened tells nothing new.

        Returns:
            Until when the host rests.
        """
        with self.session.begin() as session:
            row = self._row(session, host)
            if row.rests_until <= at:
                rest_s = max(rest_s, min(rest_s * 2**row.openings, longest_s))
                row.openings += 1
            row.rests_until = max(row.rests_until, at + rest_s)
            row.probed_until, row.refusals = 0.0, 0
            return row.rests_until

    def count_refusal(self, host: str) -> int:
        """Counts a source that the host refused; returns how many they are in a row."""
        with self.session.begin() as session:
            row = self._row(session, host)
            row.refusals += 1
            return row.refusals

    def close_breaker(self, host: str, at: float) -> None:
        """The host answered: closes its breaker, unless it was opened meanwhile, and forgets refusals."""
        quiet = (HostRow.host == host) & (HostRow.rests_until <= at)
        with self.session.begin() as session:
            session.execute(update(HostRow).where(quiet).values(openings=0, refusals=0, probed_until=0.0))

    def claim_probe(self, host: str, at: float, lease_s: float) -> bool:
        """Takes the one probe of a half-open breaker; false if somebody else has it, or the host rests."""
        free = (HostRow.host == host) & (HostRow.rests_until <= at) & (HostRow.probed_until <= at)
        with self.session.begin() as session:
            claimed = session.execute(update(HostRow).where(free).values(probed_until=at + lease_s))
            return bool(claimed.rowcount)  # type: ignore[attr-defined]

    def _row(self, session: Session, host: str) -> HostRow:
        """The row of a host, locked; made in one statement if it isn't there, since other workers may make it too."""
        session.execute(self.insert(HostRow).values(_closed(host)).on_conflict_do_nothing())
        return session.get_one(HostRow, host, with_for_update=True)


def _closed(host: str) -> dict[str, Any]:
    return {"host": host, "rests_until": 0.0, "openings": 0, "refusals": 0, "probed_until": 0.0}
