"""The ledger: what happened to each source, and what came of it. It is the truth; Prefect's history is not.

One SQLAlchemy database (SQLite in WAL mode by default, Postgres by URL). Times of media are integer milliseconds, so
that sums are exact.
"""

from pipeline.ledger.core import is_ledger
from pipeline.ledger.ledger import Funnel, Ledger
from pipeline.ledger.lists import ListChanges
from pipeline.ledger.records import Record
from pipeline.ledger.releases import ReadyClip, Story
from pipeline.ledger.retries import Failure, Rates
from pipeline.ledger.tables import (
    DUPLICATE,
    FAILED,
    GONE,
    PENDING,
    REMOVED,
    TAKEN_DOWN,
    AttemptRow,
    ClipRow,
    EventRow,
    HostRow,
    ListRow,
    MediaRow,
    ReleaseRow,
    ReviewRow,
    SharedRow,
    SourceRow,
    SpanRow,
    TombstoneRow,
    UpstreamRow,
    now,
)

__all__ = [
    "DUPLICATE",
    "FAILED",
    "GONE",
    "PENDING",
    "REMOVED",
    "TAKEN_DOWN",
    "AttemptRow",
    "ClipRow",
    "EventRow",
    "Failure",
    "Funnel",
    "HostRow",
    "Ledger",
    "ListChanges",
    "ListRow",
    "MediaRow",
    "Rates",
    "ReadyClip",
    "Record",
    "ReleaseRow",
    "ReviewRow",
    "SharedRow",
    "SourceRow",
    "SpanRow",
    "Story",
    "TombstoneRow",
    "UpstreamRow",
    "is_ledger",
    "now",
]
