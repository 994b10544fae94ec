"""The commands `train` and `model`, and the flow through both stages."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from flows import train as flow
from flows.cli import app
from flows.cli.learn import Display
from model import runs
from model.settings import load_preset
from model.train import Event
from model.train.job import check_devices
from tests.model.releases import SETTINGS, toy_job, toy_release

runner = CliRunner()
SET = [argument for setting in SETTINGS for argument in ("--set", setting)]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_release(tmp_path_factory.mktemp("data"))


def test_model_says_what_a_preset_takes() -> None:
    result = runner.invoke(app, ["model", "--preset", "small", "--batch", "4", "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["trainable"]) == (0, 24_793_856)
    assert found["memory"]["batch"] == 4 and found["memory"]["checkpointing"] is True
    assert found["memory"]["training_bytes"]["total"] > found["memory"]["decoding_bytes"]["total"] > 1e9
    override = ["--set", "train.checkpointing=false", "--set", "train.crop_s=60"]
    more = json.loads(runner.invoke(app, ["model", "--preset", "small", "--batch", "4", "--json", *override]).stdout)
    assert more["memory"]["training_bytes"]["total"] > 2 * found["memory"]["training_bytes"]["total"]


def test_model_is_readable() -> None:
    output = runner.invoke(app, ["model", "--preset", "medium", "--ablation", "cls_sim"]).output
    assert "medium cls_sim: decoder facebook/musicgen-medium, t5 t5-base" in output
    assert "24,791,808" in output and "decoder activations" in output
    assert "training on 16 clips of 30 s, decoding of 1 video of as long; decoder in bf16 with checkpointing:" in output


def test_model_and_train_estimate_the_same_memory() -> None:
    found = json.loads(runner.invoke(app, ["model", "--preset", "nano", "--json"]).stdout)["memory"]
    preset = load_preset("nano")
    assert (found["batch"], found["videos"], found["seconds"]) == (preset.train.batch, 1, preset.train.crop_s)
    assert found["training_bytes"]["total"] == check_devices(preset, 1, torch.device("cpu"))["needed"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["r-1"], "A new run needs --preset and --out"),
        (["r-1", "--preset", "none", "--out", "x"], "No preset 'none'"),
        (["r-1", "--preset", "nano", "--out", "x", "--init-from", "y"], "--init-from begins one stage"),
        (["r-1", "--preset", "nano", "--out", "x", "--stage", "2"], "Stage 2 goes on from a stage 1"),
        (["r-1", "--preset", "nano", "--out", "x", "--stage", "1"], "r-1 is not a release"),
        (["r-1", "--preset", "nano", "--out", "x"], "r-1 is not a release"),
        (["r-1", "--preset", "nano", "--out", "x", "--set", "train.lrate=1"], "train.lrate"),
        (["r-1", "--resume", "x"], "x is not a training run"),
        (["r-1", "--resume", "x", "--out", "y"], "A run goes on in its own folder"),
        (["r-1", "--resume", "x", "--stage", "both"], "--resume goes on with one run"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["train", *arguments])
    assert result.exit_code == 2
    assert said in result.output and result.output.count("error") == 1
    assert not list(tmp_path.rglob("run.json"))


def test_train_says_what_it_does_and_how_to_go_on(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "stage1"
    result = runner.invoke(app, ["train", str(release), "--preset", "nano", "--stage", "1", "--out", str(run), *SET])
    assert result.exit_code == 0, result.output
    starting, loading, *said = result.output.splitlines()
    assert (starting, loading) == ("starting ...", "loading the models ...")
    assert said[0] == "stage 1 of nano: 21,568 parameters are trained, of 4,453,760"
    assert "16 clips, 6 for validation; 1 x cpu; a step takes about 0." in said[1]
    assert sum(line.startswith("validation at step ") for line in said) == 3
    steps = [line for line in said if line.startswith("step ")]
    assert len(steps) == 6 and steps[5].startswith("step 6/6  loss ")
    assert all("tokens/s  waiting for data " in line and line.endswith("left") for line in steps)
    assert said[-1] == f"stage 1 is trained at step 6: {run}"
    # The preset comes from the run; a setting that doesn't change the result may be another.
    more = ["--set", "train.steps=7", "--set", "train.log_every=7"]
    result = runner.invoke(app, ["train", str(release), "--resume", str(run), *more])
    assert result.exit_code == 0 and "goes on at step 6" in result.output
    assert runs.newest(run).position.step == 7
    other = runner.invoke(app, ["train", str(release), "--resume", str(run), "--set", "train.seed=1"])
    assert other.exit_code == 2 and "can't go on as another run: train.seed: 0 -> 1" in other.output
    again = runner.invoke(app, ["train", str(release), "--resume", str(run)])
    assert again.exit_code == 0 and "all 7 steps are made: there is nothing left to do" in again.output
    assert "goes on at" not in again.output
    # Of both stages, the one that is finished is left alone, and its weights are the other's start.
    stages: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(flow, "train_stage", lambda *stage: stages.append(stage))
    flow.train.fn(str(release), str(tmp_path), "nano", "", (*SETTINGS, *more[1::2]))
    assert [stage for stage, _ in stages] == [2]
    assert stages[0][1][-4:] == ["--out", str(tmp_path / "stage2"), "--init-from", str(run)]


def test_where_all_stages_are_trained_nothing_is_started(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "is_finished", lambda *_: True)
    monkeypatch.setitem(sys.modules, "flows.train", None)
    result = runner.invoke(app, ["train", str(release), "--preset", "nano", "--out", str(tmp_path), *SET])
    assert result.exit_code == 0, result.output
    trained = [f"stage {stage} is trained already: {tmp_path / f'stage{stage}'}" for stage in (1, 2)]
    assert result.output.splitlines() == ["opening the release ...", *trained]


def test_what_a_run_begins_with_is_said(release: Path, tmp_path: Path) -> None:
    start = {"run": "runs/a", "preset": "nano", "ablation": "cls_sim", "stage": 1, "step": 6}
    values = {"trainable": 1, "total": 2, "clips": 3, "validation_clips": 4, "devices": "1 x cpu", "init_from": start}
    values |= {"memory": {"needed": 1e9, "available": 2e9}, "longest_clip_s": 60.0}
    for crop_s, padded in ((60, False), (600, True)):
        said = io.StringIO()
        job = toy_job(release, tmp_path, f"train.crop_s={crop_s}", stage=2, init_from=Path("runs/a"))
        Display(Console(file=said, width=200), job, ExitStack())(Event("begin", 0, values))
        assert ("warning crops have 600 s, the longest clip has 60: all are padded\n" in said.getvalue()) == padded
        assert said.getvalue().endswith("begins with the weights of stage 1 of nano cls_sim at step 6: runs/a\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_stopped_while_it_starts_ends_at_once_and_quietly(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {n: signal.signal(n, handler) for n, handler in handlers.items()}  # a job in the background has others
    threading.Timer(0.2, os.kill, [os.getpid(), number]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            flow.train_stage.fn(1, [str(tmp_path), "--preset", "nano", "--stage", "1", "--out", str(tmp_path / "run")])
        assert {n: signal.getsignal(n) for n in handlers} == handlers
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert not [p for p in psutil.Process().children() if "train" in p.cmdline()]
    said, complaints = capfd.readouterr()
    assert said in ("", "starting ...\n") and complaints == ""


def test_ctrl_c_says_how_to_go_on(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    presses = iter([lambda: signal.raise_signal(signal.SIGINT)])
    monkeypatch.setattr("flows.cli.learn._rates", lambda _: next(presses, lambda: None)() or "")
    result = runner.invoke(app, ["train", str(release), "--preset", "nano", "--stage", "1", "--out", str(run), *SET])
    assert result.exit_code == 130
    assert result.output.endswith(f"go on with  dvmset train {release} --resume {run}\n")
    assert runs.newest(run).position.step == 2


@pytest.mark.slow
def test_both_stages_are_trained_and_go_on_where_they_were_stopped(release: Path, tmp_path: Path) -> None:
    stages = [tmp_path / "stage1", tmp_path / "stage2"]
    steps = ["--set", "train.steps=30", "--set", "train.save_every=30"]
    command = [sys.executable, "-m", "flows", "train", str(release), "--preset", "nano", "--out", str(tmp_path)]
    first = subprocess.Popen(
        [*command, *SET, *steps], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = stages[1] / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.is_file() and '"train"' in metrics.read_text()):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)
    output, errors = first.communicate(timeout=120)
    assert first.returncode == 130, errors
    assert "Traceback" not in errors
    stopped = runs.newest(stages[1]).position.step
    assert 0 < stopped < 30 and f"stage 2 is stopped and saved at step {stopped}" in output
    done = runs.newest(stages[0])
    assert done.position.step == 30
    written = (done.path / runs.WEIGHTS).stat().st_mtime_ns

    second = subprocess.run([*command, *SET, *steps], check=False, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stdout + second.stderr
    assert runs.newest(stages[1]).position.step == 30
    assert [s["from_step"] for s in runs.read_run(stages[1])["sessions"]] == [0, stopped]
    assert runs.read_run(stages[1])["init_from"]["weights_sha256"] == done.digests[runs.WEIGHTS]
    assert (done.path / runs.WEIGHTS).stat().st_mtime_ns == written  # stage 1 was left alone
