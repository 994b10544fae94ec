"""The training flow: stage 1, then stage 2 from its weights, after a release.

Each stage is a `dvmset train` in a process of its own: memory is free again for the next, and Fabric can start one
process per device. A stage that is finished is left alone, one that was stopped or killed goes on where it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipeline.errors import DvmsetError


@task(task_run_name="stage {stage}", cache_policy=NO_CACHE)
def train_stage(stage: int, arguments: list[str]) -> None:
    """One stage; the arguments are those of `dvmset train`.

    Raises:
        DvmsetError: it did not end well; what it said went to standard error.
        KeyboardInterrupt: it was stopped, and has saved its state.
    """
    with _signals_as_ctrl_c():
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "train", *arguments],
            start_new_session=True,  # Ctrl-C is for us: a stage that still starts would end in a traceback
        )
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise DvmsetError(f"Stage {stage} did not end well (exit code {code}).", hint="Its message stands above.")


@flow(name="dvmset-train")
def train(release: str, out: str, preset: str, ablation: str = "", overrides: tuple[str, ...] = ()) -> None:
    """Trains all stages of a preset, those that are finished excepted.

    Args:
        release: folder of the release, or `releases/latest`: all stages take the one that it names at the beginning.
        out: folder in which each stage has its run: `stage1`, `stage2`.
        preset: a preset's name, or the path of a YAML file.
        ablation: laid on it, if any.
        overrides: settings, `group.field=value` each.

    Raises:
        DvmsetError: a stage did not end well, or its folder holds another run.
    """
    from model import runs
    from model.data import open_release
    from model.settings import load_preset

    settings, opened = load_preset(preset, overrides, ablation=ablation), open_release(release)
    before: Path | None = None
    for stage in settings.stages:
        run = runs.of_stage(Path(out), stage)
        if not runs.is_finished(run, settings, stage, opened):
            arguments = [str(opened.path), "--stage", str(stage), "--preset", preset]
            arguments += ["--ablation", ablation] if ablation else []
            arguments += [argument for override in overrides for argument in ("--set", override)]
            if runs.checkpoints(run):
                arguments += ["--resume", str(run)]
            else:
                arguments += ["--out", str(run), *(["--init-from", str(before)] if before else [])]
            train_stage(stage, arguments)
        before = run


@contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """What would end this process at once, and leave the stage to itself, interrupts it instead."""
    main = threading.current_thread() is threading.main_thread()
    ending = [n for n in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(n) is signal.SIG_DFL]
    for number in ending:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a stage with the processes of its other devices: at once while it starts, saved when it trains.

    Another Ctrl-C ends it at once.
    """
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
