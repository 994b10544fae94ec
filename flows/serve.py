"""A schedule in one process: Prefect's server in a child process, and the deployment served from this one.

Prefect's ephemeral server doesn't schedule, so one is started unless PREFECT_API_URL names one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType
from pydantic import ValidationError

from pipeline.errors import DvmsetError, SettingsError

START_S = 600.0  # a few seconds on an idle machine, minutes on one that is busy


def serve_refresh(parameters: dict[str, Any], cron: str, timezone: str) -> None:
    """Refreshes on a schedule until it is interrupted; a run that is due while one is at work is left out.

    Args:
        parameters: of `flows.refresh.refresh`.
        cron: five fields; timezone: an IANA name.

    Raises:
        SettingsError: the cron line or the time zone can't be used.
        DvmsetError: the server can't be started.
    """
    try:
        schedule = CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise SettingsError(
            f"{cron!r} ({timezone}) is no schedule.", hint='Write five fields, such as "0 3 * * *", and Area/City.'
        ) from error
    if os.environ.get("PREFECT_API_URL"):
        _serve(parameters, schedule)
        return
    with server() as url:
        os.environ["PREFECT_API_URL"] = url  # read by the processes that the runs are in
        _serve(parameters, schedule)


@contextmanager
def server() -> Iterator[str]:
    """A Prefect server on this machine for the time of the block; its history lies in PREFECT_HOME.

    Yields:
        The URL of its API.

    Raises:
        DvmsetError: it doesn't answer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_until_healthy(process, url)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    direct = build_opener(ProxyHandler({}))  # a proxy of the environment is not asked for this machine
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with direct.open(f"{url}/health", timeout=5):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise DvmsetError("Prefect's server doesn't start.", hint="See what `prefect server start` says.")


def _serve(parameters: dict[str, Any], schedule: CronSchedule) -> None:
    from flows.refresh import refresh

    refresh.serve(
        "dvmset",
        parameters=parameters,
        schedules=[schedule],
        limit=1,
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        pause_on_shutdown=False,  # else the schedule is off after a restart
        print_starting_message=False,
        entrypoint_type=EntrypointType.MODULE_PATH,  # whatever folder the command is run in
    )
