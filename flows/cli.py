"""The command line: parses, calls, prints. Whatever it imports beyond typer and rich it imports inside a command."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import __version__
from pipeline.errors import DvmsetError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.process import Desk
    from pipeline.release import Release
    from pipeline.sources import Source

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rebuild DVMSet, a video-music data set, from source lists, and train VidMusician on it.",
)

DataOption = Annotated[Path, typer.Option("--data", help="Data folder: ledger, media in work, features, releases.")]
ProfileOption = Annotated[str, typer.Option("--profile", help="nano, dvmset, or the path of a YAML file.")]
SetOption = Annotated[list[str], typer.Option("--set", help="Override a setting: group.field=value. May be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def build(
    lists: Annotated[list[Path], typer.Argument(help="Source lists: CSV, TSV, JSONL, Parquet, or a link a line.")],
    data: DataOption = Path("data"),
    profile: ProfileOption = "dvmset",
    overrides: SetOption = [],  # noqa: B006  (typer reads the default, nothing writes to it)
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a list has a bad row.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of Prefect and of every stage.")] = False,
) -> None:
    """Bring the sources of LISTS up to date: download, shots, stems, verdict, clips, features, tokens, release.

    Run it again at any time: what is done is not done twice, and a run that was killed goes on where it was.
    """
    with _errors():
        from pipeline.ledger import now

        _log_to_stderr(verbose)
        console = _console()
        sources = _read_lists(lists, strict, console)
        desk = _open(data, profile, overrides)
        with desk.lock():
            new = desk.add(sources)
            pending = desk.pending()
            since = now()
            if pending:
                console.print(
                    f"{len(sources)} sources listed, {new} new, {len(pending)} to work on; data in {desk.store}"
                )
                _run_flow(desk, pending, {s.source_id: s.url for s in desk.ledger.sources()}, console, verbose)
            else:
                console.print(
                    f"Nothing to do: {len(sources)} sources are listed, and all are as up to date as they get."
                )
            made = desk.release()
            _print_build(desk, since, made, console)


@app.command()
def status(data: DataOption = Path("data"), as_json: JsonOption = False) -> None:
    """Say where the sources and the seconds of a data folder are, and what went wrong."""
    with _errors():
        ledger = _open_ledger(data)
        funnel, states, errors = ledger.funnel(), ledger.states(), ledger.errors()
        if as_json:
            _print_json({"seconds": funnel.as_seconds(), "states": states, "errors": errors})
            return
        console = _console()
        console.print("sources  " + ", ".join(f"{n} {state}" for state, n in states.items()))
        console.print(_funnel_table(funnel.as_seconds()))
        _print_failures(ledger, console)
        releases = ledger.releases()
        for row in releases[-1:]:
            console.print(
                f"release  {row.release_id}: {row.clips} clips, {row.seconds:.0f} s, {row.created_at:%Y-%m-%d %H:%M}"
            )


@app.command()
def inspect(
    media: Annotated[str, typer.Argument(help="A media file, or a link.")],
    profile: ProfileOption = "nano",
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw everything on one time axis into this PNG.")] = None,
) -> None:
    """Run all analysis on one file and say what the pipeline would think of it."""
    with _errors():
        from pipeline.config import load_profile

        _log_to_stderr(False)
        settings = load_profile(profile, overrides)
        with _local(media, settings.fetch) as path:
            from pipeline import inspect as inspection

            found = inspection.inspect_file(path, settings, name=media if "://" in media else Path(media).name)
            if plot is not None:
                inspection.plot(found, path, plot)
        if as_json:
            _print_json(found.as_json())
            return
        _print_inspection(found.as_json(), _console())
        if plot is not None:
            _console().print(f"plot     {plot}")


@app.command()
def release(
    data: DataOption = Path("data"),
    profile: ProfileOption = "dvmset",
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Make a release of all clips that are ready, without fetching or computing anything."""
    with _errors():
        desk = _open(data, profile, overrides, must_exist=True)
        with desk.lock():
            _print_release(desk.release(), _console())


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(help="The folder of a release.")], as_json: JsonOption = False
) -> None:
    """Check a release: digests, schema, every row. Exits with 1 if anything is wrong."""
    with _errors():
        from pipeline.shards import validate as check

        report = check(folder)
        if as_json:
            _print_json(report.as_json())
        else:
            for problem in report.problems:
                _console().print(f"[red]bad[/] {problem}", highlight=False, soft_wrap=True)
            verdict = f"{len(report.problems)} problems" if report.problems else "all good"
            _console().print(f"{folder}: {report.shards} shards, {report.rows} rows, {verdict}", soft_wrap=True)
        raise typer.Exit(1 if report.problems else 0)


@app.command()
def doctor(
    profile: ProfileOption = "nano",
    data: DataOption = Path("data"),
    as_json: JsonOption = False,
) -> None:
    """Check what dvmset depends on: versions, ffmpeg, disk, GPU, weights. Exits with 1 if the profile can't run."""
    with _errors():
        from pipeline.config import load_profile
        from pipeline.doctor import examine

        checks = examine(load_profile(profile), data)
        broken = [c for c in checks if c.needed and not c.ok]
        if as_json:
            _print_json({"profile": profile, "ok": not broken, "checks": [vars(c) for c in checks]})
        else:
            console = _console()
            for check in checks:
                mark = "[green]ok  [/]" if check.ok else "[red]FAIL[/]" if check.needed else "[yellow]note[/]"
                console.print(f"{mark} {check.name:<20} {check.detail}", highlight=False, soft_wrap=True)
                if check.hint and not check.ok:
                    console.print(f"     {'':<20} {check.hint}", style="dim", highlight=False, soft_wrap=True)
            console.print(
                f"profile {profile} can run" if not broken else f"profile {profile} can't run: {len(broken)} missing"
            )
        raise typer.Exit(1 if broken else 0)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"dvmset {__version__}")
        raise typer.Exit


# what commands share


@contextmanager
def _errors() -> Iterator[None]:
    """Turns errors meant for a person into one message and exit code 2."""
    try:
        yield
    except DvmsetError as error:
        console = _console(stderr=True)
        console.print(f"[red]error[/] {error.message}", highlight=False, soft_wrap=True)
        if error.hint:
            console.print(f"      {error.hint}", style="dim", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        _console(stderr=True).print("stopped; run the same command to go on")
        raise typer.Exit(130) from None


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _log_to_stderr(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.ERROR,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )


def _open(data: Path, profile: str, overrides: list[str], *, must_exist: bool = False) -> Desk:
    from pipeline.config import load_profile
    from pipeline.process import Desk

    if must_exist:
        _open_ledger(data).close()
    return Desk(data, load_profile(profile, overrides))


def _open_ledger(data: Path) -> Any:
    from pipeline.ledger import Ledger

    place = data / "ledger.sqlite"
    if not place.is_file():
        raise DvmsetError(f"{data} is not a data folder: it has no ledger.sqlite.", hint="Give the --data of a build.")
    return Ledger(f"sqlite:///{place.absolute()}")


def _read_lists(lists: list[Path], strict: bool, console: Console) -> list[Source]:
    from pipeline.sources import read_list

    sources: dict[str, Source] = {}
    bad = []
    for path in lists:
        good, problems = read_list(path)
        bad += problems
        for source in good:
            sources.setdefault(source.source_id, source)
    for row in bad:
        console.print(f"[yellow]bad row[/] {row.file}:{row.line}: {row.reason}", highlight=False, soft_wrap=True)
    if bad and strict:
        raise DvmsetError(f"{len(bad)} bad rows, and --strict was given.", hint="Mend the list or leave --strict out.")
    if not sources:
        raise DvmsetError(f"No usable source in {', '.join(map(str, lists))}.", hint="A list needs a link or id a row.")
    return list(sources.values())


def _run_flow(desk: Desk, pending: list[str], names: dict[str, str], console: Console, verbose: bool) -> None:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # what goes wrong is in the ledger and shown by us
    with console.status("starting Prefect ..."):
        from flows.build import run
    from flows.progress import Progress

    with Progress(console, {i: names[i] for i in pending}) as progress:
        run(desk, pending, progress)


@contextmanager
def _local(media: str, fetch_settings: Any) -> Iterator[Path]:
    """The path of a media file; a link is downloaded into a temporary folder first."""
    import tempfile

    if "://" not in media:
        path = Path(media)
        if not path.is_file():
            raise DvmsetError(
                f"There is no file {media}.", hint="Give a media file, or a link with http:// or https://."
            )
        yield path
        return
    from pipeline.fetch import fetch
    from pipeline.sources import Source, canonical_key, source_id

    key = canonical_key(media)
    source = Source(source_id(key, None, None), key, media, "", None, None, "", "", 0)
    with tempfile.TemporaryDirectory() as folder:
        yield fetch(source, Path(folder), fetch_settings).path


# what commands print


def _print_build(desk: Desk, since: datetime, made: Release | None, console: Console) -> None:
    from rich.table import Table

    from pipeline.process import STAGES

    stages = desk.ledger.stage_seconds(since)
    if stages:
        media_s = desk.ledger.worked_ms(since) / 1000
        table = Table("stage", "sources", "seconds", "x real time", box=None, padding=(0, 2, 0, 0))
        for stage in STAGES:
            if stage in stages:
                seconds, count = stages[stage]
                factor = f"{seconds / media_s:.3f}" if media_s else "-"
                table.add_row(stage, str(count), f"{seconds:.1f}", factor)
        console.print(table)
    console.print(_funnel_table(desk.ledger.funnel().as_seconds()))
    _print_failures(desk.ledger, console)
    _print_release(made, console)


def _print_release(made: Release | None, console: Console) -> None:
    if made is None:
        console.print("No clip was kept, so there is no release.")
        return
    state = "new" if made.changed else "unchanged"
    console.print(f"release  {made.id} ({state}): {made.clips} clips, {made.seconds:.1f} s")
    console.print(f"         {made.path}", highlight=False, soft_wrap=True)


def _print_failures(ledger: Any, console: Console) -> None:
    failures = ledger.last_errors()
    for attempt in failures[:20]:
        url = ledger.source(attempt.source_id).url
        console.print(f"[yellow]{attempt.error_class:>11}[/] {url}  {attempt.message}", highlight=False, soft_wrap=True)
    if len(failures) > 20:
        console.print(f"            ... and {len(failures) - 20} more")


def _funnel_table(seconds: dict[str, Any]) -> Any:
    """Fetched = kept + dropped, in seconds and as bars."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "seconds", "", "", box=None, padding=(0, 2, 0, 0), title="where the seconds went", title_justify="left"
    )
    whole = seconds["fetched"] or 1.0
    rows = [("fetched", seconds["fetched"], "blue"), ("kept", seconds["kept"], "green")]
    rows += [(f"dropped: {reason}", s, "yellow") for reason, s in seconds["dropped"].items()]
    for name, s, style in rows:
        share = s / whole
        table.add_row(f"{s:.3f}", Text("█" * max(round(30 * share), s > 0), style), f"{name} ({share:.1%})")
    return table


def _print_inspection(found: dict[str, Any], console: Console) -> None:
    video, audio = found["video"], found["audio"]
    console.print(f"file     {found['file']}  {found['duration_s']:.1f} s, {found['container']}", highlight=False)
    if video:
        rate = f"{video['rate']:.3f} fps" if video["rate"] else "unknown rate"
        variable = ", variable frame rate" if video["variable_rate"] else ""
        console.print(f"video    {video['codec']} {video['width']}x{video['height']} {rate}{variable}", highlight=False)
    else:
        console.print("video    none")
    sound = f"{audio['codec']} {audio['rate']} Hz, {audio['channels']} channels" if audio else "none"
    console.print(f"audio    {sound}", highlight=False)
    console.print(f"shots    {len(found['shots_s'])} cuts", highlight=False)
    for name in ("music", "speech", "voice_ratio", "silence"):
        values = found["curves"].get(name)
        if values:
            mean = sum(values) / len(values)
            console.print(f"{name:<12} {_sparkline(values)}  mean {mean:.2f}", highlight=False, no_wrap=True)
    style = "green" if found["verdict"] == "keep" else "yellow"
    console.print(f"verdict  [{style}]{found['verdict']}[/] {found['reason']}", highlight=False)
    for clip in found["clips"]:
        length = clip["end_s"] - clip["start_s"]
        console.print(
            f"clip     {_clock(clip['start_s'])} to {_clock(clip['end_s'])}  {length:5.1f} s  "
            f"voice {clip['voice_ratio']:.2f}  music {clip['music_score']:.2f}  {clip['tempo_bpm']:.0f} bpm  "
            f"{len(clip['shot_times_s'])} cuts",
            highlight=False,
        )
    for span in found["dropped"]:
        console.print(
            f"dropped  {_clock(span['start_s'])} to {_clock(span['end_s'])}  {span['end_s'] - span['start_s']:5.1f} s  "
            f"{span['reason']}",
            style="dim",
            highlight=False,
        )


def _sparkline(values: list[float], width: int = 60) -> str:
    """Values between 0 and 1 as a row of bars, means over equal stretches of time."""
    bars = " ▁▂▃▄▅▆▇█"
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join(bars[min(8, max(0, round(8 * m)))] for m in means)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:05.2f}"
