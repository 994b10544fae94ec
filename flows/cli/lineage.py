"""The commands that tell where things come from: why, diff, rebuild."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.data import open_ledger
from flows.cli.look import sparkline
from flows.cli.shared import (
    DataOption,
    JsonOption,
    LedgerOption,
    SetOption,
    busy,
    check_file,
    log_to_stderr,
    print_json,
    reported,
    terminal,
)
from pipeline.errors import DvmsetError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.rebuild import Rebuilt

LISTED = 20  # clips shown one by one
_UNIT = ("music", "speech", "singing", "voice_ratio", "speech_left", "silence")  # curves between 0 and 1


def why(
    what: Annotated[str, typer.Argument(help="Id of a clip or of a source, or the address of a video.")],
    data: DataOption = "data",
    ledger: LedgerOption = None,
    at: Annotated[float | None, typer.Option("--at", min=0, help="A time in the source, in seconds.")] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="Settings to judge by; those of the newest release by default.")
    ] = "",
    overrides: SetOption = [],  # noqa: B006  (typer reads the default, nothing writes to it)
    as_json: JsonOption = False,
) -> None:
    """Tell the whole story of a clip, from its row in a list to its tokens; or why a stretch of a video is no clip."""
    with reported():
        from pipeline import lineage
        from pipeline.config import load_profile
        from pipeline.storage import Store

        if overrides and not profile:
            raise DvmsetError("--set needs --profile: settings to change.", hint="Give both, or neither.")
        book = open_ledger(data, ledger)
        settings = load_profile(profile, overrides) if profile else None
        story = lineage.why(Store(data), book, lineage.find(book, what, at), settings)
        if as_json:
            print_json(story)
        else:
            _print_story(story, terminal())


def diff(
    old: Annotated[str, typer.Argument(help="A release: its folder or URL, releases/latest, or its id in --data.")],
    new: Annotated[str, typer.Argument(help="Another one.")],
    data: DataOption = "data",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Every clip, as a line of JSON in this file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is not the same in two releases: clips, with reasons where they are known, settings, models, tools."""
    with reported():
        from pipeline.release.between import Place, changes_between, differences
        from pipeline.release.diff import Summary

        if output is not None:
            check_file(output)
        first, second = (Place.at(f"{data}/releases/{name}" if name.startswith("r-") else name) for name in (old, new))
        summary = Summary()
        shown: list[dict[str, Any]] = []
        lines = output.open("w", encoding="utf-8") if output else None
        try:
            for change, reason in changes_between(first, second):
                summary.add(change, reason)
                said = {**vars(change), "reason": reason}
                if len(shown) < LISTED:
                    shown.append(said)
                if lines:
                    lines.write(json.dumps(said, ensure_ascii=False) + "\n")
        finally:
            if lines:
                lines.close()
        others = differences(first, second)
        counts = {name: n for name, n in summary.as_dict(first.id).items() if name != "parent"}
        if as_json:
            print_json({"old": first.id, "new": second.id, "clips": counts, "examples": shown, **others})
            return
        console = terminal()
        console.print(f"{first.id} -> {second.id}", highlight=False)
        for kind, n in counts.items():
            reasons = ", ".join(f"{count} {reason}" for reason, count in n["reasons"].items())
            console.print(
                f"{kind:>11}  {n['clips']} clips, {n['seconds']:.1f} s  {reasons}", highlight=False, soft_wrap=True
            )
        for said in shown:
            console.print(f"{'':11}  {said['clip_id']}  {said['kind']}: {said['reason']}", style="dim", highlight=False)
        for part, names in others.items():
            for name, value in names.items():
                console.print(f"{part:>11}  {name}: {value['then']} -> {value['now']}", highlight=False, soft_wrap=True)


def rebuild(
    manifest: Annotated[Path, typer.Argument(help="The manifest.json of a release, its folder, or releases/latest.")],
    data: DataOption = "data",
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a release again from its own manifest, and say exactly what can no longer be had.

    What the data folder holds is taken as it is; the rest is fetched and computed, one source after the other. The
    release appears under rebuilt/releases/; ledger and releases of the data folder stay as they are. Exits with 1 if
    anything is missing or different.
    """
    with reported():
        from pipeline.rebuild import rebuild as make_again

        log_to_stderr(False)
        console = terminal(stderr=as_json)
        there = ledger or (Path(data) / "ledger.sqlite").is_file()
        known = open_ledger(data, ledger) if there else None
        with busy(console, "making the release again ..."):
            made = make_again(manifest, data, known=known)
        if as_json:
            print_json(made.as_json())
        else:
            _print_rebuilt(made, console)
        raise typer.Exit(0 if made.whole else 1)


def _print_story(story: Mapping[str, Any], console: Console) -> None:
    console.print(story["in_short"], style="bold", highlight=False, soft_wrap=True, markup=False)
    for part in (_outside, _measured, _decided):
        for name, text in part(story):
            console.print(f"{name:<9}{text}", highlight=False, soft_wrap=True, markup=False)


def _outside(story: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """List, site, downloads."""
    if source := story["source"]:
        section = f"  {source['start_s'] or 0:g} s to {source['end_s'] or 'its end'}"
        yield "source", f"{source['source_id']}  {source['url']}" + section * bool(source["start_s"] or source["end_s"])
        said = f"{source['category']}, licence {source['license'] or 'not stated'}, {source['state']}"
        yield "", f"{source['row'] or 'its list is not known'}, {said}"
    for event in story["listed"]:
        yield "event", f"{event['at']}  {event['what']} {event['detail']}"
    if site := story["site"]:
        gone = f", gone since {site['gone_at']} ({site['gone']})" if site["gone"] else ""
        yield "site", f"asked {site['asked_at']}{gone}"
    for tried in story["attempts"]:
        said = f"{tried['error_class']}: {tried['message']}" if tried["error_class"] else tried["outcome"]
        yield "attempt", f"{tried['at']}  {tried['stage']:<7}{tried['seconds']:9.1f} s  {said}"
    if media := story["media"]:
        size = f"{media['seconds']:.1f} s, {media['bytes'] / 1e6:.1f} MB, sha256 {media['sha256'][:12]}"
        yield "media", f"{size}, {media['details']['title']!r}{'' if media['kept'] else ', not kept'}"


def _measured(story: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Cuts and curves."""
    for name in ("shots", "curves"):
        if found := story.get(name):
            yield name, _file(found) + (f"  {len(found['cuts_s'])} cuts" if "cuts_s" in found else "")
    for name, series in story.get("curves", {}).get("series", {}).items():
        if series:
            figures = f"{series['least']:.2f} .. {series['mean']:.2f} .. {series['most']:.2f}"
            yield "", f"{name:<16}{_bars(series, name)}  {figures}"


def _decided(story: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Verdict, clip, releases."""
    for run in story.get("verdict", []):
        yield "rules", f"{_times(run)}  {run['says']}"
    for review in story["reviews"]:
        yield "review", f"{_times(review)}  {review['decision']}, {review['reviewer']} at {review['at']}"
    for span in story["spans"]:
        yield "span", f"{_times(span)}  {span['fate']}"
    if clip := story["clip"]:
        measures = ", ".join(f"{k} {v}" for k, v in clip["measures"].items() if not isinstance(v, list))
        yield "clip", f"{clip['clip_id']}  {clip['seconds']:.1f} s, {measures}"
        for name in ("vision", "codes"):
            found = clip[name]
            yield name, f"{_file(found)}  {found.get('model', '')}  {found.get('arrays', '')}"
    if settings := story["settings"]:
        yield "settings", f"{settings['profile']}, digest {settings['digest'][:12]} (--json has all)"
    for change in story["releases"]:
        yield "release", f"{change['at']}  {change['release']}  {change['clip_id']} {change['what']}: {change['why']}"
    if row := story["released"]:
        yield "row", f"{row['release']}/{row['shard']}, sha256 {row['sha256'][:12]}"
        yield "", f"{row['split']}, group {row['group_id']}, {row['lufs']:.1f} LUFS"


def _times(span: Mapping[str, Any]) -> str:
    return f"{span['start_s']:8.1f} to {span['end_s']:8.1f} s"


def _file(found: Mapping[str, Any]) -> str:
    if not found["file"]:
        return str(found.get("why", "none"))
    return f"{found['file']}  " + (f"sha256 {found['sha256'][:12]}" if found["sha256"] else "is not there")


def _bars(series: Mapping[str, Any], name: str) -> str:
    """The shape of a curve as a row of bars: from 0 to 1, or from its least to its most."""
    low, high = (0.0, 1.0) if name in _UNIT else (series["least"], series["most"])
    span = (high - low) or 1.0
    return sparkline([None if value is None else (value - low) / span for value in series["shape"]])


def _print_rebuilt(made: Rebuilt, console: Console) -> None:
    found = made.as_json()
    if made.whole:
        console.print(f"rebuilt  {made.asked}: the same release, all {len(made.same)} shards byte for byte")
    else:
        console.print(f"rebuilt  {found['rebuilt']} in place of {made.asked}: {len(made.same)} shards the same")
        _lines(console, "differs", made.different)
    if found["path"]:
        console.print(f"         {found['path']}", highlight=False, soft_wrap=True)
    for lost in made.missing:
        console.print(
            f"missing  {lost.source_id}  {lost.url}: {lost.why}", highlight=False, soft_wrap=True, markup=False
        )
        _lines(console, "", lost.clips)
    for name, (then, now) in made.tools.items():
        console.print(f"tool     {name}: {then} then, {now} now", highlight=False)


def _lines(console: Console, name: str, words: Iterable[str]) -> None:
    words = list(words)
    for word in islice(words, LISTED):
        console.print(f"{name:<9}{word}", highlight=False, soft_wrap=True)
    if len(words) > LISTED:
        console.print(f"{name:<9}... and {len(words) - LISTED} more (--json has all)")
