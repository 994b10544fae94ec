"""The training flow: stage 1, then stage 2 from its weights, after a release.

Each stage is a `dvmset train` in a process of its own: memory is free again for the next, and Fabric can start one
process per device. A stage that is finished is left alone, one that was stopped or killed goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
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
    process = subprocess.Popen([sys.executable, "-m", "flows", "train", *arguments])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the stage has had it from the terminal too: it saves and ends
        process.wait()
        raise
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise DvmsetError(f"Stage {stage} did not end well (exit code {code}).", hint="Its message stands above.")


@flow(name="dvmset-train")
def train(release: str, out: str, preset: str, ablation: str = "", overrides: tuple[str, ...] = ()) -> None:
    """Trains all stages of a preset, those that are finished excepted.

    Args:
        release: folder of the release.
        out: folder in which each stage has its run: `stage1`, `stage2`.
        preset: a preset's name, or the path of a YAML file.
        ablation: laid on it, if any.
        overrides: settings, `group.field=value` each.

    Raises:
        DvmsetError: a stage did not end well, or its folder holds another run.
    """
    from model import runs
    from model.settings import load_preset

    settings = load_preset(preset, overrides, ablation=ablation)
    before: Path | None = None
    for stage in settings.stages:
        run = Path(out) / f"stage{stage}"
        arguments = [release, "--stage", str(stage), "--preset", preset]
        arguments += ["--ablation", ablation] if ablation else []
        arguments += [argument for override in overrides for argument in ("--set", override)]
        if runs.checkpoints(run):
            arguments += ["--resume", str(run)]
        else:
            arguments += ["--out", str(run), *(["--init-from", str(before)] if before else [])]
        train_stage(stage, arguments)
        before = run
