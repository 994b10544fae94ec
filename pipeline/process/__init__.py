"""The way of one source through the rooms: which stage is missing or stale, run it, store it, record it.

No Prefect here: the flows call a `Desk`, and so may a script; `inspect` calls the same decisions on one file.
"""

from pipeline.process.decide import Decision, clip_measures, decide, section
from pipeline.process.desk import RETRIED, STAGES, Desk
from pipeline.process.lock import locked
from pipeline.process.stage import Listener, StageEvent

__all__ = [
    "RETRIED",
    "STAGES",
    "Decision",
    "Desk",
    "Listener",
    "StageEvent",
    "clip_measures",
    "decide",
    "locked",
    "section",
]
