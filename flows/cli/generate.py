"""The command for a finished model: generate."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.learn import AblationOption
from flows.cli.shared import JsonOption, busy, check_plot, log_to_stderr, print_json, reported, say, terminal
from pipeline.errors import DvmsetError, SettingsError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from model.generate import OnStep, Result

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv", ".ogv")


def generate(
    video: Annotated[Path | None, typer.Argument(help="A video file.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The .mp4 to make; with --batch a folder.")] = None,
    batch: Annotated[
        Path | None, typer.Option("--batch", help="Make music for all videos of this folder, into the folder -o.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Videos composed for at a time.")] = 4,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The --out folder of a `dvmset train`; else a bundled toy.")
    ] = None,
    preset: Annotated[str, typer.Option("--preset", help="Without --checkpoint: this one, untrained.")] = "",
    ablation: AblationOption = "",
    profile: Annotated[
        str, typer.Option("--profile", help="nano, dvmset or a YAML file: which vision model and codec.")
    ] = "",
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same music.")] = 0,
    text: Annotated[str, typer.Option("--text", help="A prompt, read together with the video.")] = "",
    audio_only: Annotated[bool, typer.Option("--audio-only", help="Make a .wav instead of an .mp4.")] = False,
    guidance: Annotated[float, typer.Option("--guidance", help="Exaggerate both conditions; 1 is not at all.")] = 3.0,
    guidance_semantic: Annotated[
        float | None, typer.Option("--guidance-semantic", help="What is seen, apart; --guidance by default.")
    ] = None,
    guidance_rhythm: Annotated[
        float | None, typer.Option("--guidance-rhythm", help="How it moves, apart; --guidance by default.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="More is wilder.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Draw among the k likeliest codes; 0: all.")] = 250,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest code, draw nothing.")] = False,
    prompt_s: Annotated[
        int | None, typer.Option("--prompt-s", min=1, help="Seconds a window goes on from; 0.4 of it by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there already.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ... of the model.")] = "auto",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw music, onsets, rhythm and cuts, into a .png, .svg, .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make music for a video: its pictures stay as they are, its sound is replaced.

    Of any length. The file says in its metadata (`comment`, JSON) what made it. With --batch, a video whose output is
    there already is left out, and one that can't be read doesn't stop the others; exits with 1 then.
    """
    with reported():
        log_to_stderr(False)
        console = terminal(stderr=as_json)
        if batch is not None and (video is not None or plot is not None):
            raise SettingsError("--batch takes no VIDEO and no --plot.", hint="Give one or the other.")
        if out is None or (batch is None and video is None):
            raise SettingsError("There has to be a VIDEO, or --batch DIR, and -o.", hint="See dvmset generate --help.")
        if plot is not None:
            check_plot(plot)
        places = _in_folder(batch, out, ".wav" if audio_only else ".mp4") if batch else [(video or Path(), out)]
        if batch and not force:
            places = _left(places, console)
        with busy(console, "starting ..."):
            from model import generate as music
        options = music.Options(
            seed=seed,
            text=text,
            guidance=guidance if guidance_semantic is None else guidance_semantic,
            guidance_rhythm=guidance if guidance_rhythm is None else guidance_rhythm,
            temperature=temperature,
            top_k=top_k,
            greedy=greedy,
            prompt_s=prompt_s,
            audio_only=audio_only,
            overwrite=force,
            command=shlex.join(["dvmset", *sys.argv[1:]]),
        )
        tasks = [music.Task(*place) for place in places]
        if not batch:
            music.check(tasks[0], options)  # once more later, but a slip of the pen needn't wait for the models
        with busy(console, "loading the models ..."):
            models = music.load(checkpoint=checkpoint, preset=preset, ablation=ablation, profile=profile, device=device)
        for caveat in models.caveats():
            say(console, "warning", "bold yellow", caveat)
        if not batch:
            with _progress(console) as on_step:
                made = music.generate(*places[0], models, options, on_step)
            _say(made, as_json, console)
            if plot is not None:
                music.plot(made, plot)
                console.print(f"plot     {plot}", highlight=False, soft_wrap=True)
            return
        _make(out)
        failed = 0
        with _progress(console) as on_step:
            for task, found in music.generate_batch(tasks, models, options, batch=batch_size, on_step=on_step):
                if isinstance(found, DvmsetError):
                    failed += 1
                    say(terminal(stderr=True), "error", "red", f"{task.video}: {found}")
                else:
                    _say(found, as_json, console)
        console.print(f"{len(tasks) - failed} of {len(tasks)} videos have music now", highlight=False)
        raise typer.Exit(1 if failed else 0)


def _in_folder(folder: Path, out: Path, suffix: str) -> list[tuple[Path, Path]]:
    """The videos of a folder, and what is to be made of each."""
    if not folder.is_dir():
        raise DvmsetError(f"There is no folder {folder}.", hint="Give a folder of videos.")
    if out.exists() and (not out.is_dir() or out.samefile(folder)):
        raise DvmsetError(f"The music can't go to {out}.", hint="Give -o another folder; it is made if need be.")
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEOS)
    if not videos:
        raise DvmsetError(f"{folder} has no videos.", hint=f"They are known by {', '.join(VIDEOS)}.")
    by_out: dict[Path, Path] = {}
    for video in videos:
        first = by_out.setdefault(out / f"{video.stem}{suffix}", video)
        if first != video:
            raise DvmsetError(f"{first.name} and {video.name} would become one file.", hint="Rename one of them.")
    return [(video, place) for place, video in by_out.items()]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DvmsetError(f"{folder} can't be made: {error.strerror}.", hint="Give -o another folder.") from error


def _left(places: list[tuple[Path, Path]], console: Console) -> list[tuple[Path, Path]]:
    """Those that aren't there yet."""
    left = [(video, place) for video, place in places if not place.exists()]
    if len(left) < len(places):
        console.print(f"{len(places) - len(left)} are there already and stay; --force makes them anew", highlight=False)
    return left


def _say(made: Result, as_json: bool, console: Console) -> None:
    if as_json:
        print_json(made.as_json())
        return
    took = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in made.took_s.items())
    console.print(
        f"{made.out}  {made.seconds:.2f} s of music at {made.mastering.lufs:.1f} LUFS, "
        f"seed {made.record['options']['seed']} ({took})",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _progress(console: Console) -> Iterator[OnStep]:
    """Shows what is being done: a bar with the time left in a terminal, a line for each step elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        rows: dict[str, TaskID] = {}

        def on_step(what: str, done: float, whole: float) -> None:
            if what not in rows:
                for row in rows.values():
                    progress.update(row, visible=False)
                rows[what] = progress.add_task(what, total=whole)
                if progress.disable:
                    console.print(what, highlight=False, soft_wrap=True)
            progress.update(rows[what], completed=done)

        yield on_step
