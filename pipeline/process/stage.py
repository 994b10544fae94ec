"""One stage of one source: timed, told to whoever shows progress, recorded in the ledger, errors caught here only."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import DvmsetError, SourceError
from pipeline.ledger import Ledger

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageEvent:
    """Something that happened to a source."""

    kind: Literal["begin", "end", "failed", "ready"]
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

    def fail(error_class: str, message: str) -> None:
        seconds = time.perf_counter() - began
        ledger.fail(source_id, stage, error_class, message, seconds=seconds)
        tell(StageEvent("failed", source_id, stage, seconds, error_class, message))

    tell(StageEvent("begin", source_id, stage))
    try:
        yield tally
    except SourceError as error:
        fail(error.error_class, str(error))
        raise
    except DvmsetError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DvmsetError(
                f"The disk is full (at {stage} of {source_id}: {error}).",
                hint="Free some space and run the same command again; nothing that was finished is lost.",
            ) from error
        log.debug("%s %s broke", source_id, stage, exc_info=True)
        fail("internal", f"{type(error).__name__}: {error}")
        raise SourceError(f"{stage} of {source_id} broke: {error}", "internal") from error
    seconds = time.perf_counter() - began
    ledger.succeed(source_id, stage, seconds=seconds, bytes=tally.bytes)
    tell(StageEvent("end", source_id, stage, seconds))
