"""Run folders: what a training run was made with, and its checkpoints, written whole and read without pickles.

RUN/run.json                     settings, stage, release, frozen models, licences, commit: what the weights are
RUN/metrics.jsonl                one line per log or validation
RUN/backbone.json                the untouched decoder's cross-entropy on the validation clips
RUN/tensorboard/                 the metrics as curves
RUN/checkpoints/00001000/        weights.safetensors (the trained set), optimizer.safetensors, state.json
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from model.settings import Preset, differences, preset_of
from pipeline.errors import DvmsetError, SettingsError
from pipeline.storage import TEMPORARY, Store, file_digest, flush

if TYPE_CHECKING:
    from model.data import Release

FORMAT = 1
RUN = "run.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
KEPT = 2  # checkpoints of a run
STEPS_ONLY = "train.steps"  # the one setting of a run that may change when it goes on

_LIBRARIES = ("dvmset", "torch", "lightning-fabric", "transformers", "peft", "safetensors", "numpy", "pyarrow")


@dataclass
class Position:
    """Where a run is. With the seed, which all random draws are functions of, this is all of its state but tensors.

    Attributes:
        step: steps tried so far, the learning rate's and the loader's position.
        skipped: of these, steps left out because loss or gradient was not finite.
        tokens: codes trained on so far.
    """

    step: int = 0
    skipped: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        position: of the run when it was written.
        digests: SHA-256 of its files by name.
    """

    path: Path
    position: Position
    digests: dict[str, str]

    def weights(self) -> dict[str, Tensor]:
        """The trained weights, on the CPU.

        Raises:
            SettingsError: the file is missing, cut short or damaged.
        """
        return self._tensors(WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        """The optimiser's state as `optimizer_tensors` names it; raises as `weights`."""
        return self._tensors(OPTIMIZER)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        path = self.path / name
        hint = f"Remove {self.path}; the run then goes on from the checkpoint before it, if there is one."
        try:
            if file_digest(path) != self.digests[name]:
                raise SettingsError(f"{path} is cut short or damaged: its digest isn't the one in {STATE}.", hint=hint)
            return load_file(path)
        except (OSError, KeyError, SafetensorError) as error:
            raise SettingsError(f"{path} can't be read: {error!r}.", hint=hint) from error


def write_run(run: Path, described: Mapping[str, Any]) -> None:
    """Writes `run.json`."""
    Store(run).write_text(RUN, json.dumps(described, indent=1, ensure_ascii=False) + "\n")


def is_run(folder: Path) -> bool:
    """Whether a run has been begun in a folder; raises as `checkpoints`."""
    with _permitted(folder):
        return (folder / RUN).is_file()


def of_stage(out: Path, stage: int) -> Path:
    """The run of a stage, where all stages are trained into one folder."""
    return out / f"stage{stage}"


def read_run(run: Path) -> dict[str, Any]:
    """What `run.json` says.

    Raises:
        SettingsError: the folder is not a run.
    """
    hint = "Name the --out folder of a `dvmset train`."
    try:
        found = json.loads((run / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if stages := [str(stage) for stage in (of_stage(run, 1), of_stage(run, 2)) if is_run(stage)]:
            hint = f"It holds {' and '.join(stages)}: the command that began it, run again, goes on; or name a stage's."
        raise SettingsError(f"{run} is not a training run: it has no {RUN}.", hint=hint) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{run / RUN} can't be read: {error}.", hint=hint) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise SettingsError(f"{run / RUN} is not of format {FORMAT}.", hint="Use the dvmset that wrote it.")
    return found


def preset_of_run(described: Mapping[str, Any], overrides: tuple[str, ...] | list[str] = ()) -> Preset:
    """The settings that a run was made with, with `group.field=value` overrides on top.

    Raises:
        SettingsError: they aren't settings of this dvmset.
    """
    return preset_of(described["preset"], overrides, where=RUN)


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first; none where there is no run.

    Raises:
        SettingsError: the folder can't be read.
    """
    with _permitted(run):
        try:
            return sorted(p for p in (run / "checkpoints").iterdir() if p.name.isdigit() and p.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []


def newest(run: Path) -> Checkpoint:
    """The newest checkpoint of a run.

    Raises:
        SettingsError: there is none, or its `state.json` is damaged.
    """
    found = checkpoints(run)
    if not found:
        raise SettingsError(f"{run} has no checkpoint.", hint="Give a run that got that far, or begin it anew.")
    try:
        state = json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
        return Checkpoint(found[-1], Position(**state["position"]), dict(state["digests"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{found[-1] / STATE} can't be read: {error!r}.", hint=f"Remove {found[-1]}.") from error


def check_same(run: Path, described: Mapping[str, Any], preset: Preset, stage: int, release: Release) -> None:
    """Whether a run would go on as what it was.

    Raises:
        SettingsError: it wouldn't; the message says what differs.
    """
    pairs = {
        "release": (described["release"]["id"], release.id),
        "release digest": (described["release"]["digest"], release.digest),
        "stage": (described["stage"], stage),
    }
    wrong = [f"{name}: {before} -> {after}" for name, (before, after) in pairs.items() if before != after]
    wrong += [d for d in differences(preset_of_run(described), preset) if not d.startswith(f"{STEPS_ONLY}:")]
    if wrong:
        raise SettingsError(
            f"{run} can't go on as another run: {'; '.join(wrong)}.",
            hint="Resume it as it was, or begin a new run with its weights by --init-from.",
        )


def is_finished(run: Path, preset: Preset, stage: int, release: Release) -> bool:
    """Whether all steps of a stage are made and saved in a folder; False where nothing is. Loads no model.

    Raises:
        SettingsError: as `check_same`, `checkpoints` and `newest`.
    """
    if not checkpoints(run):
        return False
    check_same(run, read_run(run), preset, stage, release)
    return newest(run).position.step >= preset.train.steps


def save(run: Path, position: Position, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
    """Writes a checkpoint, whole or not at all, and removes old ones; one of the same step is left as it is.

    Raises:
        DvmsetError: it can't be written, for instance because the disk is full; the one before it is whole.
    """
    try:
        return _save(run, position, weights, optimizer)
    except (OSError, SafetensorError) as error:
        raise DvmsetError(
            f"The checkpoint of step {position.step} can't be written into {run}: {error}.",
            hint="The one before it, if any, is whole: make room, then go on with --resume.",
        ) from error


def _save(run: Path, position: Position, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
    folder = run / "checkpoints"
    target = folder / f"{position.step:08d}"
    if not target.exists():
        for left in folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left)
        store = Store(folder / f"{TEMPORARY}{position.step:08d}")
        for name, tensors in ((WEIGHTS, weights), (OPTIMIZER, optimizer)):
            with store.write(name) as path:
                save_file({n: t.detach().contiguous().cpu() for n, t in tensors.items()}, path)
        stage = Path(store.root)
        digests = {name: file_digest(stage / name) for name in (WEIGHTS, OPTIMIZER)}
        store.write_text(STATE, json.dumps({"position": asdict(position), "digests": digests}, indent=1) + "\n")
        stage.replace(target)
        flush(folder)
    for old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old)
    return target


def optimizer_tensors(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """An optimiser's state as `parameter/key` -> tensor; `names` are the parameters' own."""
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Raises:
        SettingsError: the tensors are of other parameters.
    """
    parameters = {name: parameter for parameter, name in names.items()}
    if odd := {key.rpartition("/")[0] for key in tensors} ^ parameters.keys() if tensors else set():
        raise SettingsError(f"The optimiser's state is of another model: {sorted(odd)[0]} is in one of them only.")
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        parameter = parameters[name]
        kept = tensor if part == "step" else tensor.to(parameter.device)  # AdamW counts on the CPU
        optimizer.state[parameter][part] = kept


def provenance() -> dict[str, Any]:
    """What computes: commit, versions, machine."""
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _commit() -> str | None:
    """Commit of this code, with `+changes` where files differ from it; None if it doesn't run from a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in another repository
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@contextmanager
def _permitted(run: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise SettingsError(f"The run {run} can't be read: {error}.", hint="Have its owner let you in.") from error
