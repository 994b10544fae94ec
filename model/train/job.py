"""What a run is asked to do, and all that can be refused before the first step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from model import runs
from model.data import Clips, Release, open_release
from model.decoder import GEOMETRIES
from model.rhythm import CODE_RATE, CURVE_RATE
from model.settings import Preset, differences
from model.vidmusician import describe
from pipeline.errors import SettingsError
from pipeline.shards import Spec

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Job:
    """A training run to be made.

    Attributes:
        release: folder of the release.
        stage: 1 or 2.
        out: folder of the run.
        init_from: a run whose newest weights this one starts from, with an optimiser and a schedule of its own.
        resume: go on with the run in `out`, with everything as it was.
        command: what the user typed, for the record.
    """

    release: Path
    preset: Preset
    stage: int
    out: Path
    init_from: Path | None = None
    resume: bool = False
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """A job that can be done, with what was opened to find that out.

    Attributes:
        validation: None where the release has no validation clips.
        start: the checkpoint that the weights are taken from; in `job.resume` everything else too.
        described: `run.json` of the run that `start` belongs to; empty without one.
    """

    job: Job
    release: Release
    training: Clips
    validation: Clips | None
    start: runs.Checkpoint | None
    described: dict[str, Any]

    def init_from(self) -> dict[str, Any] | None:
        """Whose weights the run began with, for its record; None if they are its own."""
        if self.job.resume or self.start is None:
            return self.described.get("init_from")
        preset = runs.preset_of_run(self.described)
        return {
            "run": str(self.job.init_from),
            "preset": preset.name,
            "ablation": preset.ablation,
            "preset_digest": preset.digest(),
            "stage": self.described["stage"],
            "step": self.start.position.step,
            "weights_sha256": self.start.digests[runs.WEIGHTS],
        }


def prepare(job: Job) -> Plan:
    """Opens what a job needs.

    Raises:
        SettingsError: stage, run folder, release and preset don't go together; the message says what differs.
        ShardError: the release is damaged or of another schema version.
    """
    if job.resume and job.init_from:
        raise SettingsError(
            "--resume and --init-from don't mix.",
            hint="--resume goes on with everything as it was, --init-from begins a run with the weights of another.",
        )
    if job.stage not in job.preset.stages:
        stages = " and ".join(map(str, job.preset.stages))
        raise SettingsError(
            f"Preset {job.preset.title} has no stage {job.stage}.", hint=f"It is trained in stage {stages}."
        )
    if job.stage == 2 and not (job.init_from or job.resume):
        raise SettingsError("Stage 2 goes on from a stage 1.", hint="Give its run with --init-from.")
    _check_folder(job)
    release = open_release(job.release)
    crop: Any = {"crop_s": job.preset.train.crop_s, "reduction": job.preset.rhythm.reduction}
    training = Clips(release.shards.get("train", []), **crop)
    _check_fit(training.spec, job.preset, release.path)
    held_out = release.shards.get("validation", [])
    validation = Clips(held_out, **crop) if held_out else None
    start, described = None, {}
    if (run := job.out if job.resume else job.init_from) is not None:
        described = runs.read_run(run)
        start = runs.newest(run)
        if job.resume:
            runs.check_same(run, described, job.preset, job.stage, release)
        else:
            _check_initial(job, run, described)
    return Plan(job, release, training, validation if validation else None, start, described)


def check_devices(preset: Preset, processes: int, device: torch.device) -> dict[str, int]:
    """Whether the batch can be divided and a step fits into memory.

    Args:
        preset: the settings.
        processes: of this run, on all nodes.
        device: this process's; processes on CPUs of a node share its memory.

    Returns:
        Bytes that a step needs by estimate, and that are available.

    Raises:
        SettingsError: it can't, or doesn't.
    """
    settings = preset.train
    if settings.batch % processes:
        raise SettingsError(
            f"A batch of {settings.batch} clips can't be shared by {processes} processes.",
            hint=f"Set train.batch to a multiple of {processes}.",
        )
    estimate = describe(
        preset,
        settings.batch // processes,
        seconds=settings.crop_s,
        precision=settings.precision,
        checkpointing=settings.checkpointing,
        device=device.type,
    )
    sharing = processes // settings.nodes if device.type == "cpu" else 1
    needed = sharing * int(estimate["memory"]["training_bytes"]["total"])
    available = available_bytes(device)
    if needed > available:
        raise SettingsError(
            f"A step on {settings.batch} clips of {settings.crop_s} s needs about {needed / 1e9:.1f} GB of "
            f"{device.type} memory, {available / 1e9:.1f} GB are available.",
            hint="Lower train.batch or train.crop_s, set train.checkpointing=true, or take more devices; "
            "`dvmset model` shows what needs how much.",
        )
    return {"needed": needed, "available": available}


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device: of the GPU, else of the machine or of this process's container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    limit = CGROUP / "memory.max"
    if not limit.is_file() or (most := limit.read_text().strip()) == "max":
        return available
    used = int((CGROUP / "memory.current").read_text())
    cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
    return min(available, int(most) - used + int(cached))


def check_frozen(plan: Plan, provenance: Mapping[str, Mapping[str, str]]) -> None:
    """Whether the frozen models are those that the weights to start from were trained beside.

    Raises:
        SettingsError: they aren't.
    """
    before = plan.described["models"]
    if wrong := [part for part, model in provenance.items() if model["digest"] != before[part]["digest"]]:
        raise SettingsError(
            f"The frozen weights of {' and '.join(wrong)} aren't those that the checkpoint was trained with.",
            hint="Take the same files; random weights also depend on torch's version. run.json names all digests.",
        )


def describe_run(
    plan: Plan, provenance: Mapping[str, Mapping[str, str]], parameters: Mapping[str, int], begun_at: int, devices: str
) -> dict[str, Any]:
    """What `run.json` says: enough to know what the weights are and to make them again.

    Args:
        plan: of the run.
        provenance: of the frozen models, as `VidMusician` has it.
        parameters: as `VidMusician.count` has them.
        begun_at: step that this session of the run begins at.
        devices: in words.
    """
    job, decoder = plan.job, provenance["decoder"]
    session = {
        "command": job.command,
        "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": begun_at,
        "devices": devices,
        "threads": torch.get_num_threads(),
        **runs.provenance(),
    }
    return {
        "format": runs.FORMAT,
        "preset": job.preset.model_dump(mode="json"),
        "preset_digest": job.preset.digest(),
        "stage": job.stage,
        "release": {"id": plan.release.id, "digest": plan.release.digest, "path": str(plan.release.path)},
        "models": provenance,
        "data_models": {room: vars(found) for room, found in plan.training.spec.models.items()},
        "licence": f"The weights here are of use only with the decoder {decoder['id']}: {decoder['licence']}.",
        "parameters": parameters,
        "init_from": plan.init_from(),
        "sessions": [*(plan.described["sessions"] if job.resume else []), session],
    }


def _check_folder(job: Job) -> None:
    if not job.resume and runs.checkpoints(job.out):
        raise SettingsError(
            f"{job.out} holds a run already.", hint=f"Go on with it by --resume {job.out}, or name another --out."
        )
    place = job.out.absolute()  # the folder is made with the first file in it: a start that is refused leaves none
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise SettingsError(f"{job.out} can't be made: {place} is a file.", hint="Name another --out.")
    if not os.access(place, os.W_OK):
        raise SettingsError(f"{job.out} can't be written to.", hint="Name another --out.")


def _check_fit(spec: Spec, preset: Preset, where: Path) -> None:
    """Whether the shards hold what the preset reads."""
    geometry = GEOMETRIES[preset.decoder.geometry]
    pairs = {
        "width of a global token": (spec.vision_dim, preset.semantic.clip_dim),
        "codebooks": (spec.codebooks, geometry.codebooks),
        "entries of a codebook": (spec.cardinality, geometry.cardinality),
        "global tokens per second": (spec.global_hz, 1),
        "curve samples per second": (spec.curve_hz, CURVE_RATE),
        "codes per second": (spec.code_hz, CODE_RATE),
    }
    if wrong := [f"{name} {has} (preset: {wants})" for name, (has, wants) in pairs.items() if has != wants]:
        raise SettingsError(
            f"The shards of {where} don't fit preset {preset.name}: {', '.join(wrong)}.",
            hint=f"Take a preset made for {spec.vision.id} and {spec.codec.id}, or another release.",
        )


def _check_initial(job: Job, run: Path, described: Mapping[str, Any]) -> None:
    """Whether the weights of another run mean the same in this one. Their shapes are checked when they are loaded."""
    old = runs.preset_of_run(described)
    rhythm = old.rhythm.kind != "none" and described["stage"] == old.stages[-1]
    if rhythm and described["stage"] < job.stage:
        raise SettingsError(
            f"{run} was trained in one stage ({old.title}): its rhythm part is trained, and stage {job.stage} begins "
            "with one that isn't.",
            hint="Give --init-from a run of stage 1 of a preset that has two.",
        )
    groups = ("decoder.", "semantic.", "rhythm.") if rhythm else ("decoder.", "semantic.")
    if wrong := [d for d in differences(old, job.preset) if d.startswith(groups)]:
        raise SettingsError(
            f"The weights of {run} ({old.title}) are of another model: {'; '.join(wrong)}.",
            hint="Use the preset and ablation it was trained with.",
        )
