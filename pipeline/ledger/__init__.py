"""The ledger: what happened to each source, and what came of it. It is the truth; Prefect's history is not.

One SQLAlchemy database (SQLite in WAL mode by default, any other by URL). Times of media are integer milliseconds, so
that sums are exact.
"""

from pipeline.ledger.ledger import DUPLICATE, FAILED, PENDING, Funnel, Ledger
from pipeline.ledger.tables import AttemptRow, ClipRow, MediaRow, ReleaseRow, SourceRow, SpanRow, now

__all__ = [
    "DUPLICATE",
    "FAILED",
    "PENDING",
    "AttemptRow",
    "ClipRow",
    "Funnel",
    "Ledger",
    "MediaRow",
    "ReleaseRow",
    "SourceRow",
    "SpanRow",
    "now",
]
