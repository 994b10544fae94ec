"""The commands that look and change nothing: inspect, doctor."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.shared import (
    DataOption,
    JsonOption,
    ProfileOption,
    SetOption,
    busy,
    check_plot,
    log_to_stderr,
    print_json,
    reported,
    say,
    terminal,
)
from pipeline import DEFAULT_PROFILE
from pipeline.errors import DvmsetError

if TYPE_CHECKING:
    from rich.console import Console


def inspect(
    media: Annotated[str, typer.Argument(help="A media file, or a link.")],
    profile: ProfileOption = DEFAULT_PROFILE,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw all of it on one time axis, into a .png, .svg, .pdf.")
    ] = None,
) -> None:
    """Run all analysis on one file and say what the pipeline would think of it."""
    with reported():
        from pipeline.config import load_profile

        log_to_stderr(False)
        if plot is not None:
            check_plot(plot)
        settings = load_profile(profile, overrides)
        with _local(media, settings.fetch) as path:
            with busy(terminal(stderr=as_json), "looking and listening ..."):
                from pipeline import inspect as inspection

                found = inspection.inspect_file(path, settings, name=media if "://" in media else Path(media).name)
            if plot is not None:
                inspection.plot(found, path, plot)
        if as_json:
            print_json(found.as_json())
            return
        _print_inspection(found.as_json(), terminal())
        if plot is not None:
            terminal().print(f"plot     {plot}")


def doctor(
    profile: ProfileOption = DEFAULT_PROFILE,
    preset: Annotated[
        str, typer.Option("--preset", help="Also a preset that has to run: nano, small, medium, ..., or a YAML file.")
    ] = "",
    data: DataOption = "data",
    as_json: JsonOption = False,
) -> None:
    """Check what dvmset depends on: versions, ffmpeg, disk, GPU, weights. Exits with 1 if the profile can't run.

    The models that `train` and `generate` need are told, too; they count only with --preset. Weights are looked at, not
    loaded: a file that is cut short is found, one with wrong numbers in it isn't.
    """
    with reported():
        from pipeline.config import load_profile
        from pipeline.doctor import examine

        checks = examine(load_profile(profile), Path(data))
        if find_spec("torch"):  # else one of the checks has said so
            from flows.doctor import examine_presets

            checks += examine_presets(preset)
        broken = [c for c in checks if c.needed and not c.ok]
        if as_json:
            shown = {"profile": profile, "preset": preset or None, "ok": not broken}
            print_json(shown | {"checks": [vars(c) for c in checks]})
        else:
            console = terminal()
            for check in checks:
                mark = ("ok  ", "green") if check.ok else ("FAIL", "red") if check.needed else ("note", "yellow")
                say(console, *mark, f"{check.name:<20} {check.detail}")
                if check.hint and not check.ok:
                    console.print(f"     {'':<20} {check.hint}", style="dim", highlight=False, soft_wrap=True)
            what = f"profile {profile}" + (f" and preset {preset}" if preset else "")
            console.print(f"{what}: {len(broken)} things are missing or damaged" if broken else f"{what} can run")
        raise typer.Exit(1 if broken else 0)


@contextmanager
def _local(media: str, fetch_settings: Any) -> Iterator[Path]:
    """The path of a media file; a link is downloaded into a temporary folder first."""
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
            known = [value for value in values if value is not None]
            mean = f"mean {sum(known) / len(known):.2f}" if known else "nothing was separated"
            console.print(f"{name:<12} {sparkline(values)}  {mean}", highlight=False, no_wrap=True)
    style = "green" if found["verdict"] == "keep" else "yellow"
    console.print("verdict  ", end="")
    say(console, found["verdict"], style, found["reason"])
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


def sparkline(values: list[float | None], width: int = 60) -> str:
    """Values between 0 and 1 as a row of bars, means over equal stretches of time; a dot where there is no value."""
    bars = " ▁▂▃▄▅▆▇█"
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    parts = ([value for value in values[a:b] if value is not None] for a, b in pairwise(edges))
    return "".join(bars[min(8, max(0, round(8 * sum(part) / len(part))))] if part else "·" for part in parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:05.2f}"
