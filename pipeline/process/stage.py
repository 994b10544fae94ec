"""One stage of one source: timed, told to whoever shows progress, recorded in the ledger, errors caught here only."""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import BROKEN_STAGE, DiskFull, DvmsetError, SourceError
from pipeline.ledger import Ledger

log = logging.getLogger(__name__)

_FULL = re.compile(r"no space left|os error 28|disk is full|quota exceeded", re.I)


@dataclass(frozen=True)
class StageEvent:
    """Something that happened to a source, or to all sources of a host that rests."""

    kind: Literal["begin", "end", "failed", "ready", "rests"]
    source_id: str
    stage: str
    seconds: float = 0.0
    error_class: str = ""
    message: str = ""


Listener = Callable[[StageEvent], None]


@dataclass
class Tally:
    """What a stage reports of itself."""

    bytes: int = 0


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk; libraries in C or Rust, and SQLite, tell it by text alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def recorded(ledger: Ledger, source_id: str, stage: str, listener: Listener | None) -> Iterator[Tally]:
    """Runs the block as one attempt of a stage.

    What is not the source's fault (a full disk, missing weights) goes through as it is, unrecorded: it stops the build.

    Raises:
        SourceError: the block failed; it is in the ledger.
        DvmsetError: the build can't go on.
    """
    tally = Tally()
    began = time.perf_counter()

    def tell(event: StageEvent) -> None:
        if listener:
            listener(event)

    def fail(error_class: str, message: str, retry_after_s: float | None = None) -> None:
        seconds = time.perf_counter() - began
        ledger.fail(source_id, stage, error_class, message, seconds=seconds, retry_after_s=retry_after_s)
        tell(StageEvent("failed", source_id, stage, seconds, error_class, message))

    tell(StageEvent("begin", source_id, stage))
    try:
        yield tally
    except SourceError as error:
        fail(error.error_class, str(error), error.retry_after_s)
        raise
    except DvmsetError:
        raise
    except Exception as error:
        if disk_is_full(error):
            raise DiskFull(
                f"The disk is full (at {stage} of {source_id}: {error}).",
                hint="Free some space and run the same command again; nothing that was finished is lost.",
            ) from error
        log.info("%s %s broke", source_id, stage, exc_info=True)
        fail("internal", f"{type(error).__name__}: {error}")
        raise SourceError(f"{stage} of {source_id} broke: {error}", "internal", hint=BROKEN_STAGE) from error
    seconds = time.perf_counter() - began
    ledger.succeed(source_id, stage, seconds=seconds, bytes=tally.bytes)
    tell(StageEvent("end", source_id, stage, seconds))
