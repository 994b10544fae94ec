"""Who may work on a data folder: one command at a time on a folder that holds its own ledger, else any number."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DvmsetError
from pipeline.ledger import Ledger
from pipeline.storage import Store

IDLE_S = 24 * 3600.0  # what a write left behind in a shared folder is taken for dead after a day


@contextmanager
def locked(store: Store, ledger: Ledger, *, shared: bool) -> Iterator[None]:
    """Keeps a second command off a data folder, and clears what an interrupted one left half written.

    Args:
        shared: the ledger has an address of its own, so that several workers may be at work; they keep out of each
            other's way by leases (`Worker`), and those of the dead run out.

    Raises:
        DvmsetError: another process works on it.
    """
    if shared:
        store.sweep(IDLE_S)
        yield
        return
    with Path(store.path(".lock")).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DvmsetError(
                f"Another dvmset command is at work on {store}.", hint="Wait until it ends, or stop it."
            ) from error
        store.sweep()
        ledger.clear_leases()
        yield
