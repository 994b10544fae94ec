"""The process that downloads: takes orders one after the other over a pipe, and dies with the process that gives them.

`python -m pipeline.fetch.child CONNECTION LIFELINE`, two file descriptors. It says `READY`, then answers each
order with any number of `Said` and `Moved`, `ARRIVED`, and one `Came`, `Seen`, `SourceError` or `Broke`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from pipeline.errors import SourceError
from pipeline.fetch.work import Came, Order, Seen, carry_out

READY, ARRIVED = "ready", "arrived"  # the first thing it says; all bytes have come and are checked


@dataclass(frozen=True)
class Said:
    """A line of the log."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True)
class Moved:
    """Bytes done, and in all where the site says."""

    done: int
    total: int | None


@dataclass(frozen=True)
class Broke:
    """An error that is not the source's: `errno` of an OSError, else 0."""

    errno: int
    text: str


def main() -> None:
    """Works until the other side hangs up."""
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    import pipeline.fetch.client
    import pipeline.media  # noqa: F401  (what a download needs is here before the first order comes)

    _warm_up()
    logging.getLogger("pipeline").addHandler(_Teller(connection))
    logging.getLogger("pipeline").setLevel(logging.DEBUG)  # each line is a sign of life; the parent filters
    connection.send(READY)
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        connection.send(_answer(connection, order))


def _warm_up() -> None:
    """Asks for an address that is always refused: yt-dlp loads the most of itself when it is first asked for a video.

    In the first download that second would come between its turn and its request, and spoil the pause.
    """
    from yt_dlp.utils import YoutubeDLError

    from pipeline.config import FetchSettings
    from pipeline.fetch.vetted import Vetted

    with suppress(YoutubeDLError), Vetted("", "", FetchSettings()) as client:
        client.extract_info("http://0.0.0.0/", download=False)


def _answer(connection: Connection, order: Order) -> Came | Seen | SourceError | Broke:
    try:
        return carry_out(
            order, lambda done, total: connection.send(Moved(done, total)), lambda: connection.send(ARRIVED)
        )
    except SourceError as error:
        return error
    except OSError as error:
        return Broke(error.errno or 0, str(error))
    except Exception as error:  # noqa: BLE001  (the parent raises it)
        return Broke(0, f"{type(error).__name__}: {error}")


def _die_with_parent(lifeline: int) -> None:
    """Kills this process and all it has started as soon as nobody holds the other end, however the parent ended."""
    os.read(lifeline, 1)
    os.killpg(os.getpid(), signal.SIGKILL)


class _Teller(logging.Handler):
    """Sends the log to the parent."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        """Called under the handler's lock, in the thread that also sends the answers."""
        self.connection.send(Said(record.name, record.levelno, record.getMessage()))


if __name__ == "__main__":
    # Under its own name, so that what it sends is of the classes that the parent knows.
    from pipeline.fetch.child import main as work

    work()
