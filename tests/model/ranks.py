"""Training jobs in processes of their own: `python -m tests.model.ranks RELEASE FOLDER DEVICES NAME...`

Fabric starts this program again for the second device. Jobs by NAME, each in FOLDER/NAME:

    one     a single step, whose gradient the optimiser's state then holds
    fault   a few steps; on the last rank the third batch holds a NaN
    whole   all steps
    killed  all steps, but all processes are killed after the fifth, which is after the checkpoint at the fourth
    resume  goes on with `killed`
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from model.data import Batch, Loader
from model.train import Event, Job, train
from tests.model.releases import toy_job

EXACT = ("semantic.t5_dropout=0.2", "train.clip=0.05")  # dropout draws random numbers; clipping is at work


def job(name: str, release: Path, folder: Path, devices: int) -> Job:
    """The job of that name."""
    settings = [f"train.devices={devices}", "train.batch=4"]
    if name == "one":
        return toy_job(release, folder / name, *settings, "train.steps=1", "train.clip=1e9")
    if name == "fault":
        return toy_job(release, folder / name, *settings, "train.steps=4")
    run = "killed" if name == "resume" else name
    return toy_job(release, folder / run, *settings, *EXACT, resume=name == "resume")


def kill_at_5(event: Event) -> None:
    """SIGKILL to all processes of this group."""
    if event.kind == "train" and event.step == 5:
        os.killpg(0, signal.SIGKILL)


def with_fault(loader: Loader, stream=Loader.__iter__) -> Iterator[Batch]:
    """`Loader.__iter__`, but on the last rank the third batch is damaged."""
    for batch in stream(loader):
        if loader.position == 3 and loader.rank == loader.world - 1:
            batch.clip_global[0, 0, 0] = torch.nan
        yield batch


def main() -> None:
    """Does the jobs one after another."""
    release, folder, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for name in sys.argv[4:]:
        if name == "fault":
            Loader.__iter__ = with_fault
        train(job(name, release, folder, devices), kill_at_5 if name == "killed" else lambda _: None)


if __name__ == "__main__":
    main()
