"""The Prefect server of a build: one clear error where it doesn't start, and no orphan where its parent is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.faults import building, run

pytestmark = pytest.mark.slow


def test_a_server_that_does_not_start_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "home" / "prefect.db").mkdir(parents=True)  # where its history should be written
    source_list = tmp_path / "list.txt"
    source_list.write_text("http://127.0.0.1:9/film.mp4\n")
    result = run(*building(source_list, tmp_path / "data"), home=tmp_path / "home")
    assert result.returncode == 2
    assert "Prefect's server doesn't start: it ended with code" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_server_ends_with_a_parent_that_is_killed() -> None:
    code = "from flows.server import prefect_at_hand\nwith prefect_at_hand():\n    print('ready', flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdout.readline() == "ready\n"
    (server,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([server], timeout=20)[1] == []
