"""A process as the ledger knows it: what it holds leases on, so that no other does the same work."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError

from pipeline.ledger import Ledger

log = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks at a lease that another worker has


class Worker:
    """Takes leases and renews them, in a thread of its own, until they are given back.

    Args:
        ledger: where the leases are.
        lease_s: how long a lease lasts that nobody renews.
    """

    def __init__(self, ledger: Ledger, lease_s: float) -> None:
        self.ledger = ledger
        self.lease_s = lease_s
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.held: set[str] = set()
        self._lock = threading.Lock()
        self._beating = False

    def take(self, name: str) -> bool:
        """Takes a lease; false if another worker has it."""
        if not self.ledger.take_lease(name, self.name, self.lease_s):
            return False
        with self._lock:
            self.held.add(name)
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._beat, name="leases", daemon=True).start()
        return True

    def give_back(self, name: str) -> None:
        """Gives a lease back, if it is held."""
        with self._lock:
            if name not in self.held:
                return
            self.held.remove(name)
        self.ledger.release_lease(name, self.name)

    def give_all_back(self) -> None:
        """Gives back what is held."""
        for name in sorted(self.held):
            self.give_back(name)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Holds a lease for the block, as soon as it can be had."""
        while not self.take(name):
            time.sleep(LOOK_S)
        try:
            yield
        finally:
            self.give_back(name)

    def _beat(self) -> None:
        while True:
            time.sleep(self.lease_s / 4)
            with self._lock:
                held = set(self.held)
                if not held:
                    self._beating = False
                    return
            try:
                lost = self.ledger.renew_leases(held, self.name, self.lease_s)
            except OperationalError as error:
                log.warning("leases of %s can't be renewed just now: %s", self.name, error.orig)
                continue
            with self._lock:
                lost &= self.held  # what was given back meanwhile isn't lost
                self.held -= lost
            if lost:
                log.warning("%s was too slow and lost its leases on %s", self.name, ", ".join(sorted(lost)))
