"""Schedules that really fire: server, worker and deployment as `flows/prefect.yaml` says, on this machine alone."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import prefect
import psutil
import pytest

import flows
from pipeline.ledger import Ledger
from tests.site import Site

YAML = Path(flows.__file__).with_name("prefect.yaml")
SERVE = (
    "dvmset serve list.csv --canaries canaries.txt --data served --profile nano"
    ' --cron "* * * * *" --timezone Europe/Berlin'
)
PATIENCE_S = 600


@pytest.mark.slow
def test_deployments_canary_and_serve_work_as_documented(tmp_path: Path) -> None:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site") as site, processes() as start:
        stable = site.folder / "stable.mp4"
        stable.write_bytes(bytes(100_000))
        (tmp_path / "list.csv").write_text(f"url\n{site.url('gone.mp4')}\n")
        (tmp_path / "canaries.txt").write_text(site.url("stable.mp4") + "\n")
        place = tmp_path / "prefect.yaml"
        place.write_text(for_the_test(YAML.read_text()))
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_SERVER_API_PORT": str(port),
            "NO_PROXY": "127.0.0.1",
            "PWD": str(tmp_path),  # as a shell has it
        }
        for line in documented(YAML.read_text()):
            words = shlex.split(
                line.replace("4200", str(port)).replace("/path/to/dvmset/flows/prefect.yaml", str(place))
            )
            if words[0] == "export":
                environment |= dict(word.split("=", 1) for word in words[1:])
            elif "start" in words:
                start([word for word in words if word != "&"], environment, tmp_path)
                if "server" in words:
                    wait_for(lambda: ask(f"{api}/health"), "the server answers")
            else:
                subprocess.run(words, check=True, env=environment, cwd=tmp_path, capture_output=True)
        limits = {limit["name"] for limit in ask(f"{api}/v2/concurrency_limits/filter", {})}
        assert f"dvmset-127.0.0.1-{site.port}" in limits

        start([*shlex.split(SERVE), "--set", "fetch.allow_loopback=true"], environment, tmp_path)

        def done(deployment: str) -> Any:
            wanted = {
                "deployments": {"name": {"any_": [deployment]}},
                "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
            }
            runs = [run for run in ask(f"{api}/flow_runs/filter", wanted) if run["auto_scheduled"]]
            assert {run["state_type"] for run in runs} <= {"COMPLETED"}, runs
            return runs

        def events() -> Any:
            wanted = {"filter": {"event": {"name": ["dvmset.site.changed"]}}}
            return ask(f"{api}/events/filter", wanted)["events"]

        def leaves_out_a_second_run(deployment: str) -> None:
            states: list[str] = []
            for _ in range(5):  # on a busy machine the first may have ended before the second begins
                two = [start_run(api, f"dvmset-refresh/{deployment}") for _ in range(2)]
                states += wait_for(lambda two=two: ended(api, two), f"two runs of {deployment} at once have ended")
                if "CANCELLED" in states:
                    break
            assert set(states) <= {"CANCELLED", "COMPLETED"} and "CANCELLED" in states
            before = len(done(deployment))
            wait_for(lambda: len(done(deployment)) > before, f"the schedule of {deployment} goes on")

        wait_for(lambda: done("hourly"), "the canary was asked for")
        assert events() == []
        stable.unlink()
        (event,) = wait_for(events, "an event tells that the site has changed")
        assert event["resource"]["prefect.resource.id"] == "dvmset.site.127.0.0.1"
        assert (event["payload"]["before"][:2], event["payload"]["now"]) == ("ok", "permanent")
        wait_for(lambda: done("nightly"), "a scheduled run of the deployment has ended")
        wait_for(lambda: done("dvmset"), "a scheduled run of dvmset serve has ended")
        for name in ("nightly", "dvmset"):
            leaves_out_a_second_run(name)
        one = [start_run(api, "dvmset-canary/canary")]
        assert wait_for(lambda: ended(api, one), "the canaries of dvmset serve were asked for") == ["COMPLETED"]
        assert list(json.loads((tmp_path / "served" / "canary.json").read_text()).values()) == ["permanent"]
        artifacts = ask(f"{api}/artifacts/filter", {})
        assert {artifact["key"] for artifact in artifacts} == {"dvmset-refresh"}
        assert any("1 sources, 1 new" in artifact["data"] for artifact in artifacts)
    for data in ("data", "served"):
        ledger = Ledger(f"sqlite:///{tmp_path / data / 'ledger.sqlite'}")
        assert ledger.errors() == {"permanent": 1}
        ledger.close()
    assert site.count("gone.mp4") == 2


@pytest.mark.slow
def test_a_server_that_died_during_a_run_holds_up_no_later_one(tmp_path: Path) -> None:
    code = (
        "import os\nfrom flows.server import prefect_at_hand\n"
        "with prefect_at_hand(schedules=True): print(os.environ['PREFECT_API_URL'], flush=True); input()"
    )
    settings = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "30"}

    @contextmanager
    def server() -> Iterator[str]:
        parent = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert parent.stdout
            yield parent.stdout.readline().strip()
        finally:
            everyone = psutil.Process(parent.pid).children(recursive=True)
            parent.kill()
            parent.wait()
            psutil.wait_procs(everyone, timeout=20)

    def begin(api: str, deployment: str) -> str:
        run = ask(f"{api}/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        return str(ask(f"{api}/flow_runs/{run['id']}/set_state", {"state": {"type": "PENDING"}})["state"]["name"])

    with server() as api:
        flow = ask(f"{api}/flows/", {"name": "refresh"})["id"]
        limit = {"concurrency_limit": 1, "concurrency_options": {"collision_strategy": "CANCEL_NEW"}}
        deployment = ask(f"{api}/deployments/", {"name": "nightly", "flow_id": flow, **limit})["id"]
        assert [begin(api, deployment), begin(api, deployment)] == ["Pending", "Cancelled"]
    with server() as api:
        wait_for(lambda: begin(api, deployment) == "Pending", "a run is let in when the first one's lease is over")


def documented(text: str) -> list[str]:
    """The commands in the head of the file, without what they say of themselves."""
    return [line[4:].split("  #")[0].strip() for line in text.splitlines() if line.startswith("#   ")]


def for_the_test(text: str) -> str:
    """Often, small and on this machine; all else as it stands."""
    changes = (
        ('cron: "0 3 * * *", timezone: UTC', "interval: 30"),
        ("profile: dvmset, overrides: [", "profile: nano, overrides: [fetch.allow_loopback=true, "),
        ('cron: "30 * * * *", timezone: UTC', "interval: 30"),
        (
            "{data: data, profile: dvmset}",
            "{videos: canaries.txt, data: data, profile: nano, overrides: [fetch.allow_loopback=true]}",
        ),
    )
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


@contextmanager
def processes() -> Iterator[Callable[[list[str], dict[str, str], Path], None]]:
    """Starts commands beside the test, and ends them with all they have started."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], environment: dict[str, str], folder: Path) -> None:
        with (folder / f"{command[1]}.log").open("wb") as log:
            started.append(
                subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
            )

    try:
        yield start
    finally:
        everyone = [p for process in started for p in psutil.Process(process.pid).children(recursive=True)]
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for child in everyone:  # runs are in sessions of their own
            with suppress(psutil.NoSuchProcess):
                child.kill()


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """JSON from Prefect's API, never through a proxy."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "User-Agent": f"prefect/{prefect.__version__} (API 0.8.4)"}
    request = Request(url, data, headers)  # the server treats clients by their version
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)
        except HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(1)  # its database is locked by another request: Prefect's own clients ask again, too


def start_run(api: str, deployment: str) -> str:
    """Has a run begin now; returns its id."""
    there = ask(f"{api}/deployments/name/{deployment}")["id"]
    return str(ask(f"{api}/deployments/{there}/create_flow_run", {"state": {"type": "SCHEDULED"}})["id"])


def ended(api: str, runs: list[str]) -> list[str]:
    """The states of runs, when all of them have ended."""
    states = [str(ask(f"{api}/flow_runs/{run}")["state_type"]) for run in runs]
    return states if {"COMPLETED", "CANCELLED", "FAILED", "CRASHED"} >= set(states) else []


def wait_for(happens: Callable[[], Any], what: str) -> Any:
    """What `happens` gives as soon as it gives something."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if found := happens():
                return found
        time.sleep(1)
    raise AssertionError(f"{what}: it didn't within {PATIENCE_S} s")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
