"""A Prefect server of our own: ready before the flow begins, gone with the process that wanted it, however that ends.

The one that Prefect starts by itself outlives a parent that is killed, and one that is slow to start ends in a
traceback. `python -m flows.server PORT LIFELINE` is the server's process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from pipeline.errors import DvmsetError

START_S = 600.0  # a few seconds on an idle machine, minutes on one that is busy

# Who holds a deployment's only slot is kept in a file: a server that dies would never give it back otherwise.
LEASES = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}


@contextmanager
def prefect_at_hand(*, schedules: bool = False) -> Iterator[None]:
    """Flows in the block find a Prefect API: the one that environment or profile name, else a server for the block.

    Args:
        schedules: the server starts runs that are due; one without does less.

    Raises:
        DvmsetError: the server doesn't start.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        yield
        return
    with _server(schedules) as url:
        os.environ["PREFECT_API_URL"] = url  # for this process and those that it starts
        refresh_global_settings_context()
        try:
            yield
        finally:
            del os.environ["PREFECT_API_URL"]
            refresh_global_settings_context()


@contextmanager
def _server(schedules: bool) -> Iterator[str]:
    """Yields the URL of the API of a server on this machine; its history lies in PREFECT_HOME."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    kind = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_FINAL": "1"}
    if not schedules:
        kind["PREFECT__SERVER_EPHEMERAL"] = "1"
    lifeline, held = os.pipe()
    with tempfile.TemporaryFile("w+") as said:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(port), str(lifeline)],
                pass_fds=(lifeline,),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,  # Ctrl-C is for us: the flow still tells the server how it ended
                env={**LEASES, **os.environ, **kind, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            os.close(lifeline)
            try:
                _wait_until_healthy(process, url, said)
                yield url
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        finally:
            os.close(held)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, said: IO[str]) -> None:
    direct = build_opener(ProxyHandler({}))  # a proxy of the environment is not asked for this machine
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with direct.open(f"{url}/health", timeout=5):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    said.seek(0)
    last = next((line.strip() for line in reversed(said.readlines()) if line.strip()), "it said nothing")
    code = process.poll()
    why = f"it didn't answer within {START_S:.0f} s" if code is None else f"it ended with code {code}"
    raise DvmsetError(
        f"Prefect's server doesn't start: {why} ({last}).",
        hint="See what `prefect server start` says, or set PREFECT_API_URL to a server that runs.",
    )


def main() -> None:
    """Serves Prefect's API until it is terminated, or nobody holds the other end of the lifeline."""
    import uvicorn

    port, lifeline = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    app = "prefect.server.api.server:create_app"
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, log_level="error", lifespan="on")


def _die_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
