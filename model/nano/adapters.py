"""Makes the checkpoint that comes with preset `nano`: both stages of VidMusician, trained on the rhythm study's set.

    python -m model.nano.adapters

They are those of the study's variant `full`, seed 0: taken out of its work folder, or trained there first. `dvmset
generate` uses them where no checkpoint is named.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from model import runs
from model.generate.models import BUNDLED
from model.nano.rhythm_study import benchmark_set
from model.nano.study import VARIANTS, full_study
from model.nano.study.pieces import make_all, makers
from pipeline.storage import Store

SOURCE, SEED = "full", 0
_OF_THE_MACHINE = ("sessions", "release", "init_from")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/rhythm_study"), help="the study's folder of all pieces")
    parser.add_argument("--jobs", type=int, default=2, help="pieces made at a time, of one thread each")
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(1)
    study, work = full_study(), Store(options.work)
    with makers(options.jobs) as pool:
        releases = benchmark_set(study, work, pool, console.print)
        stages = study.runs(next(v for v in VARIANTS if v.name == SOURCE), SEED, releases)
        for stage in stages:
            make_all([stage], work, pool, console.print)
    bundle(Path(work.path(stages[-1].folder)), BUNDLED)
    console.print(f"{BUNDLED}: {sum(p.stat().st_size for p in BUNDLED.rglob('*') if p.is_file()) / 1e6:.2f} MB")


def bundle(run: Path, out: Path) -> None:
    """Copies a run without its optimiser and without what is of the machine it was trained on; replaces what is there.

    Raises:
        SettingsError: the folder is no run, or has no checkpoint.
    """
    described, found = runs.read_run(run), runs.newest(run)
    kept: dict[str, Any] = {name: value for name, value in described.items() if name not in _OF_THE_MACHINE}
    kept["release"] = {name: value for name, value in described["release"].items() if name != "path"}
    kept["made_by"] = "python -m model.nano.adapters"
    shutil.rmtree(out, ignore_errors=True)
    runs.write_run(out, kept)
    inside = Store(out / found.path.relative_to(run))
    for name in (runs.WEIGHTS, runs.STATE):
        with inside.write(name) as path:
            shutil.copyfile(found.path / name, path)
    state = json.loads(inside.read_text(runs.STATE))
    state["digests"].pop(runs.OPTIMIZER)
    inside.write_text(runs.STATE, json.dumps(state, indent=1) + "\n")


if __name__ == "__main__":
    main()
