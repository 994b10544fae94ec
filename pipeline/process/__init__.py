"""The way of one source through the rooms: which stage is missing or stale, run it, store it, record it.

No Prefect here: the flows call a `Desk`, and so may a script; `inspect` calls the same decisions on one file.
"""

from pipeline.process.decide import Decision, clip_measures, decide, section
from pipeline.process.desk import LEDGER, RELEASE, RETRIED, STAGES, Desk
from pipeline.process.lock import locked
from pipeline.process.stage import Listener, StageEvent
from pipeline.process.worker import Worker

__all__ = [
    "LEDGER",
    "RELEASE",
    "RETRIED",
    "STAGES",
    "Decision",
    "Desk",
    "Listener",
    "StageEvent",
    "Worker",
    "clip_measures",
    "decide",
    "locked",
    "section",
]
