"""Downloads in processes of their own, killed with all they have started when they overrun a limit.

A process is kept for the next download, since importing yt-dlp takes a second. One that had to be killed, or has done
`JOBS` downloads, is replaced.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.config import FetchSettings
from pipeline.errors import DvmsetError, ErrorClass, SourceError, failed
from pipeline.fetch.child import ARRIVED, READY, Broke, Moved, Said
from pipeline.fetch.secrets import Secrets
from pipeline.fetch.work import Came, Order, Progress, Seen

JOBS = 200  # downloads of one process: what libraries leak stays small
START_S = 120.0  # for a start on a busy machine
STARTS = 3  # a process that is killed while it starts is replaced, so many in all
LOOK_S = 0.25  # between two looks at a download
MERGING = 2.2  # a picture and a sound lie beside the file that they are merged into

_idle: list[_Child] = []
_lock = threading.Lock()
_mine = threading.local()  # `child`: reserved by this thread


@contextmanager
def reserved() -> Iterator[None]:
    """Within the block this thread's next download finds a process that is ready.

    For a pause between two downloads to be one at the site, too, nothing slow may come after it.
    """
    _mine.child = child = _ready()
    try:
        yield
    finally:
        if getattr(_mine, "child", None) is child:
            _mine.child = None
            _give_back(child)


def run(order: Order, secrets: Secrets, on_progress: Progress | None) -> Came | Seen:
    """Has an order carried out by a process of the pool.

    Raises:
        SourceError: nothing usable came, or a limit was overrun.
        OSError: the disk is full, or nearly so.
        DvmsetError: the process can't be started.
    """
    child = _ready()
    try:
        answer = _attend(child, order, secrets, on_progress)
    except BaseException:
        child.kill()
        raise
    child.jobs += 1
    _give_back(child)
    if isinstance(answer, Came | Seen):
        return answer
    if isinstance(answer, SourceError):
        answer.message = secrets.out_of(answer.message)
        raise answer
    if answer.errno:
        raise OSError(answer.errno, answer.text)
    raise SourceError(f"The download broke: {secrets.out_of(answer.text)} ({order.source.url}).", "internal")


def _attend(
    child: _Child, order: Order, secrets: Secrets, on_progress: Progress | None
) -> Came | Seen | SourceError | Broke:
    """Gives the order, passes on what the process says, and watches over it until it answers."""
    watch = Watchdog(order)
    try:
        child.connection.send(order)
        while True:
            if child.connection.poll(LOOK_S):
                answer = child.connection.recv()
                watch.heard()
                if isinstance(answer, Said):
                    log = logging.getLogger(answer.logger)
                    if log.isEnabledFor(answer.level):
                        log.log(answer.level, "%s", secrets.out_of(answer.text))
                elif isinstance(answer, Moved):
                    if on_progress:
                        on_progress(answer.done, answer.total)
                elif answer == ARRIVED:
                    watch.checking = True
                else:
                    return answer
            watch.check()
    except (EOFError, ConnectionError) as error:
        code = child.kill()
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise SourceError(
            f"The process that downloaded {order.source.url} ended {how}.",
            "internal",
            hint="The media may crash a decoder; `dvmset doctor` says what is installed.",
        ) from error


class Watchdog:
    """Looks at what a download does from outside: its time, the bytes in its folder, the disk.

    Args:
        order: the download.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.settings: FetchSettings = order.settings
        self.began = self.mark = time.monotonic()
        self.looked = 0.0
        self.checking = False  # all bytes have come: none move any more
        self.size = self.size_at_mark = 0

    def heard(self) -> None:
        """The process said something: before the first byte has come that is progress, too."""
        if not self.size:
            self.mark = time.monotonic()

    def check(self) -> None:
        """Raises if a limit is overrun.

        Raises:
            SourceError: of time, of progress, of bytes.
            OSError: of disk space.
        """
        now = time.monotonic()
        if now - self.looked < LOOK_S:
            return
        self.looked = now
        if not self.order.look and shutil.disk_usage(self.order.job).free < self.settings.free_bytes:
            raise OSError(errno.ENOSPC, f"less than {self.settings.free_bytes >> 20} MiB are left (fetch.free_bytes)")
        self.size = max(self.size, _size(self.order.job))
        if self.size > MERGING * self.settings.max_bytes:
            raise self._failed("too_large", f"it filled {self.size / 1e6:.1f} MB of disk")
        if now - self.began > self.settings.wall_s:
            raise self._failed("transient", f"it took longer than {self.settings.wall_s:.0f} s (fetch.wall_s)")
        if now - self.mark > self.settings.stall_s and not self.checking:
            came = self.size - self.size_at_mark
            if came < self.settings.least_rate * self.settings.stall_s:
                detail = f"{came} bytes came in {now - self.mark:.1f} s (fetch.stall_s, fetch.least_rate)"
                raise self._failed("transient", detail)
            self.mark, self.size_at_mark = now, self.size

    def _failed(self, error_class: ErrorClass, detail: str) -> SourceError:
        return failed(error_class, detail, self.order.source.url)


class _Child:
    """A process that downloads, with all that it starts in a group of its own."""

    def __init__(self) -> None:
        self.jobs = 0
        self.ready = False
        ours, theirs = socket.socketpair()
        lifeline, self.held = os.pipe()
        command = [sys.executable, "-m", "pipeline.fetch.child", str(theirs.fileno()), str(lifeline)]
        try:
            self.process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            os.close(self.held)
            ours.close()
            raise DvmsetError(f"Can't start a process for downloads: {error}.") from error
        finally:
            theirs.close()
            os.close(lifeline)
        self.connection = Connection(ours.detach())

    def wait_ready(self) -> None:
        """Waits until it has imported what it needs; that is no time of a download.

        Raises:
            DvmsetError: it doesn't start.
        """
        if self.ready:
            return
        try:
            self.ready = self.connection.poll(START_S) and self.connection.recv() == READY
        except (EOFError, ConnectionError):
            self.process.wait()
        if not self.ready:
            raise DvmsetError(
                "The process that downloads doesn't start.",
                hint="`dvmset doctor` says what is missing; its own words stand on standard error.",
            )

    def kill(self) -> int:
        """Ends the process and all it has started; returns its exit code."""
        if self.held >= 0:
            with suppress(ProcessLookupError):  # it ended by itself, and nothing of its group is left
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.connection.close()
            os.close(self.held)
            self.held = -1
        return self.process.returncode


def _give_back(child: _Child) -> None:
    if child.ready and child.jobs < JOBS:
        with _lock:
            _idle.append(child)
    else:
        child.kill()


def _ready() -> _Child:
    """A process that waits for an order; one that was killed while it started, as the kernel does for want of memory,
    is replaced.

    Raises:
        DvmsetError: it doesn't start.
    """
    for left in reversed(range(STARTS)):
        child = _take()
        try:
            child.wait_ready()
            break
        except DvmsetError:
            killed = (child.process.poll() or 0) < 0
            child.kill()
            if not killed or not left:
                raise
    return child


def _take() -> _Child:
    mine: _Child | None = getattr(_mine, "child", None)
    if mine is not None and mine.process.poll() is None:
        _mine.child = None
        return mine
    with _lock:
        while _idle:
            child = _idle.pop()
            if child.process.poll() is None:
                return child
            child.kill()
    return _Child()


@atexit.register
def close() -> None:
    """Ends the processes that wait for an order."""
    with _lock:
        while _idle:
            _idle.pop().kill()


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; one that vanishes meanwhile counts for nothing."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue
    return total
