"""Threads, Dask and Ray, SQLite and Postgres, folder, bucket and memory: one release. Workers share a list by lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from sqlite3 import connect

import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from flows import build
from pipeline.config import load_profile
from pipeline.ledger import Ledger
from pipeline.media import encode
from pipeline.nano.mixtures import RATE, render
from pipeline.process import Desk
from pipeline.shards import validate
from pipeline.sources import read_list
from tests.faults import another, make
from tests.neighbours import loop
from tests.postgres import Postgres
from tests.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SETTINGS = ("fetch.allow_loopback=true", "fetch.free_bytes=0", "fetch.per_host=4", "fetch.most_refusals=99")
SONG_S = 12
PATHS = ("song.mp4", "song1.mp4", "song.mp4?again", "mute.mp4", "err/404", "flipped/film.mp4")
LEASE_S = 8


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two songs with pictures that change every other second, and videos that take no model to work on."""
    folder = tmp_path_factory.mktemp("site")
    make(folder)
    noise = np.random.default_rng(0)
    pictures = np.repeat(noise.integers(0, 255, (SONG_S // 2, 6, 8, 3), np.uint8), 50, axis=0)
    frames = (np.kron(picture, np.ones((10, 10, 1), np.uint8)) for picture in pictures)
    encode(folder / "song.mp4", frames, Fraction(25), loop(render("music", np.random.default_rng(1)), SONG_S), RATE)
    another(folder / "song.mp4", 1)
    for number in range(6, 12):
        another(folder / "mute.mp4", number)
    with Site(folder) as site:
        yield site


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket of an S3 server on loopback."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    words = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**words, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        yield "s3://dvmset-test/films"
    server.stop()


def built(site: Site, source_list: Path, data: str, ledger: str | None, *settings: str) -> tuple[str, list[str]]:
    """Builds the list in this process; gives the digest of the release, and what became of the sources."""
    source_list.write_text("".join(site.url(path) + "\n" for path in PATHS))
    desk = Desk(data, load_profile("nano", [*SETTINGS, *settings]), ledger_url=ledger)
    with desk.lock():
        desk.add(read_list(source_list)[0])
        made = build.run(desk)
    assert made is not None
    assert desk.ledger.leases() == {}
    report = validate(made.path)
    assert report.ok, report.problems
    assert report.rows == 2
    found = [s.error_class if s.state == "failed" else s.state for s in desk.ledger.sources()]
    desk.ledger.close()
    return made.digest, found


@pytest.fixture(scope="module")
def by_threads(site: Site, prefect: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """What a build in threads, with folder and ledger as they are by default, comes to."""
    folder = tmp_path_factory.mktemp("threads")
    found = built(site, folder / "list.txt", str(folder / "data"), None)
    assert found[1] == ["ready", "ready", "ready", "ready", "permanent", "corrupt"]
    return found


def test_dask_makes_the_same_release_though_a_worker_dies_at_work(
    site: Site, by_threads: tuple[str, list[str]], tmp_path: Path
) -> None:
    settings = ("run.runner=dask", "run.workers=2", "run.gpus=1")  # a resource by that name is all that Dask knows
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill_who_separates, tmp_path / "data")
        assert built(site, tmp_path / "list.txt", str(tmp_path / "data"), None, *settings) == by_threads
    assert killed.result() not in (None, os.getpid())


def kill_who_separates(data: Path) -> int | None:
    """Kills the first process that writes a stem, and gives its id: the name of what it writes has it."""
    while not (data / "releases").exists():
        for writing in (data / "stems").glob(".tmp-*"):
            process = int(writing.name.split("-")[1])
            os.kill(process, signal.SIGKILL)
            return process
        time.sleep(0.02)
    return None


def test_ray_and_a_ledger_on_postgres_make_the_same_release(
    site: Site, by_threads: tuple[str, list[str]], postgres: Postgres, tmp_path: Path
) -> None:
    ledger = postgres.schema("ray")
    found = built(site, tmp_path / "list.txt", str(tmp_path / "data"), ledger, "run.runner=ray", "run.workers=2")
    assert found == by_threads


def test_a_bucket_and_postgres_make_the_same_release(
    site: Site, by_threads: tuple[str, list[str]], postgres: Postgres, bucket: str, tmp_path: Path
) -> None:
    assert built(site, tmp_path / "list.txt", bucket, postgres.schema("bucket")) == by_threads


def test_memory_makes_the_same_release(site: Site, by_threads: tuple[str, list[str]], tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite"
    assert built(site, tmp_path / "list.txt", f"memory://{tmp_path.name}", ledger) == by_threads


def test_prefect_is_told_no_password(prefect: None, postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.schema("secret").replace("postgres@", "postgres:s3same@")
    desk = Desk(tmp_path / "data", load_profile("nano"), ledger_url=url)
    assert build.run(desk) is None
    with connect(Path(os.environ["PREFECT_HOME"]) / "prefect.db") as history:
        (parameters,) = history.execute("SELECT parameters FROM flow_run ORDER BY created DESC LIMIT 1").fetchone()
    assert str(tmp_path) in parameters
    assert "s3same" not in parameters
    desk.ledger.close()


def test_workers_share_a_list_and_finish_what_a_dead_one_left(
    site: Site, prefect: None, postgres: Postgres, tmp_path: Path
) -> None:
    names = [f"mute{number}.mp4" for number in range(12)]
    before = {name: site.count(name) for name in names}
    (tmp_path / "list.txt").write_text("".join(site.url(name) + "\n" for name in names))
    url = postgres.schema("shared")
    settings = [*SETTINGS, f"run.lease_s={LEASE_S}", "fetch.threads=1", "fetch.pause_s=[2.0,2.0]"]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "flows", "build", str(tmp_path / "list.txt"), "--profile", "nano", *options]
    command += ["--data", str(tmp_path / "data"), "--ledger", url]
    ledger = Ledger(url)
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        for _ in range(2)
    ]
    try:
        held = _wait_for_work_of(workers[0], ledger, both=workers)
        os.killpg(workers[0].pid, signal.SIGKILL)
        said, _ = workers[1].communicate(timeout=900)
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    assert workers[1].returncode == 0, said
    assert ledger.states() == {"ready": len(names)}
    fetched = [row.source_id for row in ledger.attempts(0) if row.stage == "fetch"]
    twice = {name for name in fetched if fetched.count(name) > 1}
    assert set(fetched) | held == {source.source_id for source in ledger.sources()}
    assert twice <= held, "only what the dead worker had in hand may be fetched once more"
    asked = sum(site.count(name) - before[name] for name in names)  # a fetch is a look at the page, and the file
    assert asked <= 2 * (len(names) + len(held))
    assert ledger.leases() == {}
    ledger.close()


def _wait_for_work_of(process: subprocess.Popen[str], ledger: Ledger, both: list[subprocess.Popen[str]]) -> set[str]:
    """Waits until both workers have done something and this one has a source in hand; gives what it has in hand."""
    seen: set[str] = set()
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        leases = ledger.leases()
        seen |= set(leases.values())
        mine = {name for name, worker in leases.items() if f"-{process.pid}-" in worker}
        if mine and len(seen) == len(both) and len(ledger.attempts(0)) >= 3:
            return mine
        assert all(worker.poll() is None for worker in both), "a worker ended before it was killed"
        time.sleep(0.02)
    raise AssertionError("the workers never began")
