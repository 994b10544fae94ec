"""The commands of the model: train, model."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.shared import (
    JsonOption,
    SetOption,
    busy,
    log_to_stderr,
    print_json,
    quieten_prefect,
    reported,
    say,
    terminal,
)
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from model.settings import Preset
    from model.train import Event, Job

PresetOption = Annotated[str, typer.Option("--preset", help="nano, small, medium, ..., or the path of a YAML file.")]
AblationOption = Annotated[str, typer.Option("--ablation", help="One of the authors' ablations, laid on the preset.")]


class Stage(StrEnum):
    """What is trained."""

    ONE = "1"
    TWO = "2"
    BOTH = "both"


def train(
    release: Annotated[Path, typer.Argument(help="The folder of a release, or releases/latest.")],
    preset: PresetOption = "",
    ablation: AblationOption = "",
    stage: Annotated[
        Stage | None, typer.Option("--stage", help="1: semantic, 2: rhythm, both (default): --out/stage1, /stage2.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The folder of the new run.")] = None,
    init_from: Annotated[
        Path | None, typer.Option("--init-from", help="Begin with the weights of this run; stage 2 needs a stage 1.")
    ] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with this run, everything as it was.")] = None,
    overrides: SetOption = [],  # noqa: B006
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the logs of Fabric and Prefect.")] = False,
) -> None:
    """Train VidMusician on a release. Ctrl-C saves the run; --resume goes on with it, bit for bit.

    `--stage both` may be run again at any time: what is finished is not done again, what was stopped goes on.
    """
    with reported():
        log_to_stderr(verbose)
        if resume is None and (not preset or out is None):
            raise SettingsError("A new run needs --preset and --out.", hint="Or go on with an old one by --resume.")
        if resume is None and out is not None and stage in (None, Stage.BOTH):
            if init_from:
                raise SettingsError("--init-from begins one stage.", hint="Give --stage 1 or --stage 2.")
            _train_both(release, out, preset, ablation, tuple(overrides), verbose)
            return
        from pipeline.shards import release_folder

        console = terminal()
        console.quiet = not _is_first()
        release = Path(release_folder(release))  # what is said of how to go on holds when there is a newer one
        with busy(console, "starting ..."):
            job = _job(release, preset, ablation, stage, out, init_from, resume, overrides)
        _train(job, console)


def model(
    preset: PresetOption,
    ablation: AblationOption = "",
    overrides: SetOption = [],  # noqa: B006
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Clips in a training step; the preset's train.batch by default."),
    ] = None,
    videos: Annotated[int, typer.Option("--videos", min=1, help="Videos that are decoded together.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Say how large the model of a preset is, part by part, and what memory training and decoding take."""
    with reported():
        from model.settings import load_preset

        settings = load_preset(preset, overrides, ablation=ablation)
        with busy(terminal(stderr=as_json), "starting ..."):
            from model.vidmusician import describe

        how = settings.train
        found = describe(
            settings,
            batch or how.batch,
            videos=videos,
            seconds=how.crop_s,
            precision=how.precision,
            checkpointing=how.checkpointing,
        )
        if as_json:
            print_json(found)
        else:
            _print_model(found, terminal())


class Display:
    """Shows a run as it goes: a bar in a terminal, plain lines elsewhere. A `model.train.Listener`.

    Args:
        console: where to write.
        job: the run.
        loading: is closed when the run begins.
    """

    def __init__(self, console: Console, job: Job, loading: ExitStack) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console, self.job, self.steps, self.loading = console, job, job.preset.train.steps, loading
        self.bar = Progress(
            TextColumn(f"stage {job.stage}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=self.steps)

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        values = event.values
        if event.kind == "begin":
            self.loading.close()
            self._begin(event)
            self.bar.start()
            self.bar.update(self.task, completed=event.step)
        elif event.kind == "train":
            text = _rates(values)
            self.bar.update(self.task, completed=event.step, description=text)
            if self.bar.disable:
                self._line(f"step {event.step}/{self.steps}  {text}")
        elif event.kind == "validation":
            codebooks = " ".join(f"{value:.3f}" for value in values["cross_entropy"])
            side = "below" if values["gain"] > 0 else "above"
            self._line(
                f"validation at step {event.step}: cross-entropy {values['loss']:.4f} nats a code ({codebooks} by "
                f"codebook), {abs(values['gain']):.4f} {side} the untouched backbone's"
            )
        elif event.kind == "skipped":
            self._line(f"step {event.step} was not finite and is skipped ({values['skipped']} so far)")
        elif event.kind in ("stopped", "end"):
            self.bar.stop()
            state = "trained" if event.kind == "end" else "stopped and saved"
            self._line(f"stage {self.job.stage} is {state} at step {event.step}: {self.job.out}")

    def _begin(self, event: Event) -> None:
        values = event.values
        gb = {name: f"{size / 1e9:.1f}" for name, size in values["memory"].items()}
        self._line(
            f"stage {self.job.stage} of {self.job.preset.title}: {values['trainable']:,} parameters are trained, "
            f"of {values['total']:,}"
        )
        self._line(
            f"{values['clips']} clips, {values['validation_clips']} for validation; {values['devices']}; "
            f"a step takes about {gb['needed']} GB, {gb['available']} GB are free"
        )
        longest_s, crop_s = values["longest_clip_s"], self.job.preset.train.crop_s
        if longest_s < crop_s:
            longest = f"crops have {crop_s} s, the longest clip has {longest_s:g}: all are padded"
            say(self.console, "warning", "yellow", longest)
        if event.step >= self.steps:
            self._line(f"all {self.steps} steps are made: there is nothing left to do")
        elif event.step:
            self._line(f"goes on at step {event.step}")
        elif not self.job.resume and (start := values["init_from"]):
            which = f"stage {start['stage']} of {start['preset']} {start['ablation']}".rstrip()
            self._line(f"begins with the weights of {which} at step {start['step']}: {start['run']}")

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def _job(
    release: Path,
    preset: str,
    ablation: str,
    stage: Stage | None,
    out: Path | None,
    init_from: Path | None,
    resume: Path | None,
    overrides: list[str],
) -> Job:
    from model import runs
    from model.settings import load_preset
    from model.train import Job

    command = shlex.join(["dvmset", *sys.argv[1:]])
    if resume is None:
        assert out is not None and stage is not None
        settings = load_preset(preset, overrides, ablation=ablation)
        return Job(release, settings, int(stage), out, init_from, command=command)
    if out is not None and out.absolute() != resume.absolute():
        raise SettingsError("A run goes on in its own folder.", hint="Leave --out out, or begin a run by --init-from.")
    if stage == Stage.BOTH:
        raise SettingsError("--resume goes on with one run.", hint="For both stages run the first command again.")
    described = runs.read_run(resume)
    settings = _settings_of(described, preset, ablation, overrides)
    return Job(release, settings, int(stage or described["stage"]), resume, init_from, resume=True, command=command)


def _settings_of(described: dict[str, Any], preset: str, ablation: str, overrides: list[str]) -> Preset:
    """Those of a run, or those that are asked for, which then have to be the same."""
    from model.runs import preset_of_run
    from model.settings import load_preset

    if preset:
        return load_preset(preset, overrides, ablation=ablation)
    if ablation:
        raise SettingsError("--ablation needs --preset.", hint="To go on with a run, neither is needed.")
    return preset_of_run(described, overrides)


def _train(job: Job, console: Console) -> None:
    from model.train import train as run

    with ExitStack() as loading:
        loading.enter_context(busy(console, "loading the models ..."))
        outcome = run(job, Display(console, job, loading))
    # A process of another device must end well too: Fabric takes down all of them otherwise.
    if not outcome.finished and _is_first():
        again = shlex.join(["dvmset", "train", str(job.release), "--resume", str(job.out)])
        console.print(f"go on with  {again}", highlight=False, soft_wrap=True)
        raise typer.Exit(130)


def _train_both(
    release: Path, out: Path, preset: str, ablation: str, overrides: tuple[str, ...], verbose: bool
) -> None:
    from model.settings import load_preset

    console = terminal()
    settings = load_preset(preset, overrides, ablation=ablation)  # says at once what can't be used
    with busy(console, "opening the release ..."):
        from model import runs
        from model.data import open_release
    opened = open_release(release)
    places = {stage: runs.of_stage(out, stage) for stage in settings.stages}
    finished = [stage for stage, run in places.items() if runs.is_finished(run, settings, stage, opened)]
    for stage in finished:
        console.print(f"stage {stage} is trained already: {places[stage]}", highlight=False, soft_wrap=True)
    if len(finished) == len(places):
        return
    quieten_prefect(verbose)
    with ExitStack() as server:
        with busy(console, "starting Prefect ..."):
            from flows.server import prefect_at_hand
            from flows.train import train as flow

            server.enter_context(prefect_at_hand())
        flow(str(opened.path), str(out), preset, ablation, overrides)


def _is_first() -> bool:
    """Whether this is the process that speaks for all; Fabric starts the same command again for every other device."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _rates(values: dict[str, Any]) -> str:
    minutes, seconds = divmod(int(values["seconds_left"]), 60)
    loss = "no finite step" if values["loss"] is None else f"loss {values['loss']:.4f}"
    skipped = f"  {values['skipped']} skipped" if values["skipped"] else ""
    return (
        f"{loss}  {values['tokens_per_s']:,.0f} tokens/s  waiting for data {values['waiting_share']:.1%}  "
        f"{minutes}:{seconds:02} left{skipped}"
    )


def _print_model(found: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    counts, memory = found["parameters"], found["memory"]
    parts = Table("parameters", "", box=None, padding=(0, 2, 0, 0))
    parts.columns[1].justify = "right"
    for part, number in counts.items():
        parts.add_row(part.replace("_", " "), f"{number:,}")
    needs = Table("GB", "training step", "decoding", box=None, padding=(0, 2, 0, 0))
    training, decoding = memory["training_bytes"], memory["decoding_bytes"]
    for part in [*(p for p in training if p != "total"), *(p for p in decoding if p not in training), "total"]:
        cells = (f"{side[part] / 1e9:.2f}" if part in side else "" for side in (training, decoding))
        needs.add_row(part.replace("_", " "), *cells)
    models = ", ".join(f"{part} {name}" for part, name in found["models"].items())
    console.print(f"{found['preset']} {found['ablation']}".rstrip() + f": {models}", highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in found["geometry"].items()), highlight=False)
    console.print(f"rhythm enters before layers {found['injection_layers']}", highlight=False)
    console.print(parts)
    checkpointing = " with checkpointing" if memory["checkpointing"] else ""
    console.print(
        f"training on {_count(memory['batch'], 'clip')} of {memory['seconds']:g} s, decoding of "
        f"{_count(memory['videos'], 'video')} of as long; decoder in {memory['precision']}{checkpointing}:",
        highlight=False,
    )
    console.print(needs)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
