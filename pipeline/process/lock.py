"""One command at a time on a data folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DvmsetError
from pipeline.storage import Store


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Keeps a second command off the same local data folder, and clears what an interrupted one left half written.

    Raises:
        DvmsetError: another process works on it.
    """
    if not store.is_local:
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
        yield
