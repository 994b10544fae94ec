"""Run folders: what a training run was made with, and its checkpoints, written whole and read without pickles.

RUN/run.json                     preset, stage, release, licences, commit: enough to know what the weights are
RUN/metrics.jsonl                one line per log or validation
RUN/tensorboard/                 the same as curves
RUN/checkpoints/00001000/        weights.safetensors (the trained set), optimizer.safetensors, state.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from pipeline.errors import SettingsError
from pipeline.storage import Store

RUN = "run.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
KEPT = 2  # checkpoints of a run


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: optimiser steps tried so far; also the loader's position.
        skipped: of these, steps left out because loss or gradient was not finite.
        tokens: codes trained on so far.
        updates: steps the optimiser has made.
    """

    step: int = 0
    skipped: int = 0
    tokens: int = 0

    @property
    def updates(self) -> int:
        """Steps the optimiser has made."""
        return self.step - self.skipped


def write_run(run: Path, described: Mapping[str, Any]) -> None:
    """Writes `run.json`."""
    Store(run).write_text(RUN, json.dumps(described, indent=1, ensure_ascii=False) + "\n")


def read_run(run: Path) -> dict[str, Any]:
    """What `run.json` says.

    Raises:
        SettingsError: the folder is not a run.
    """
    try:
        found: dict[str, Any] = json.loads((run / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{run} is not a training run: its {RUN} can't be read ({error}).") from error
    return found


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("[0-9]*") if p.is_dir())


def newest(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
        SettingsError: there is none.
    """
    found = checkpoints(run)
    if not found:
        raise SettingsError(f"{run} has no checkpoint.", hint="Give the folder of a run that got that far.")
    return found[-1]


def save(run: Path, position: Position, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint, whole or not at all, and removes old ones."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    target, stage = folder / f"{position.step:08d}", folder / f".tmp-{position.step:08d}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    save_file({n: t.contiguous().cpu() for n, t in weights.items()}, stage / WEIGHTS)
    save_file({n: t.contiguous().cpu() for n, t in optimizer.items()}, stage / OPTIMIZER)
    (stage / STATE).write_text(json.dumps(asdict(position)))
    shutil.rmtree(target, ignore_errors=True)
    stage.rename(target)
    for old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old)
    return target


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        SettingsError: it is missing, cut short or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"{path} can't be read: {error}.", hint="Go on from another checkpoint.") from error


def read_position(checkpoint: Path) -> Position:
    """Where the run was."""
    try:
        return Position(**json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{checkpoint / STATE} can't be read: {error}.") from error


def optimizer_tensors(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """AdamW's state as named tensors; `names` are the parameters' own."""
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    for parameter, name in names.items():
        state = {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == name}
        optimizer.state[parameter] = {k: t if k == "step" else t.to(parameter.device) for k, t in state.items()}
