"""The commands around downloads: discover, plan, retry."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.data import open_ledger
from flows.cli.failures import by_class
from flows.cli.shared import (
    DataOption,
    JsonOption,
    LedgerOption,
    ProfileOption,
    SetOption,
    log_to_stderr,
    print_json,
    reported,
    say,
    terminal,
)
from pipeline import DEFAULT_PROFILE
from pipeline.errors import ERROR_CLASSES, DvmsetError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.plan import Plan

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def retry(
    data: DataOption = "data",
    ledger: LedgerOption = None,
    error_classes: Annotated[
        list[str], typer.Option("--class", help=f"Sources of this error class: {', '.join(ERROR_CLASSES)}.")
    ] = [],  # noqa: B006  (typer reads the default, nothing writes to it)
    sources: Annotated[
        list[str], typer.Option("--source", help="This source, by id or address. May be repeated.")
    ] = [],  # noqa: B006
    older_than: Annotated[
        str, typer.Option("--older-than", help="Only sources that failed longer ago: 90s, 30m, 12h, 1d, 2w.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Let failed sources be tried again by the next build, whatever their policy says.

    A host that rests is still left to rest.
    """
    with reported():
        wrong = sorted(set(error_classes) - set(ERROR_CLASSES))
        if wrong:
            raise DvmsetError(f"There is no error class {wrong[0]!r}.", hint=f"Use {', '.join(ERROR_CLASSES)}.")
        if not error_classes and not sources:
            raise DvmsetError("Which sources?", hint="Give --class or --source; `dvmset status` lists what failed.")
        book = open_ledger(data, ledger)
        at = datetime.now(UTC)
        age_s = min(_seconds(older_than), at.timestamp()) if older_than else 0.0  # nothing failed before 1970
        limit = at - timedelta(seconds=age_s)
        ids = _source_ids(sources)
        chosen = [
            failure
            for failure in book.failures()
            if (not error_classes or failure.error_class in error_classes)
            and (not ids or failure.source_id in ids)
            and failure.at <= limit
        ]
        book.reopen([failure.source_id for failure in chosen])
        counts = {name: group["sources"] for name, group in by_class(chosen, at).items()}
        if as_json:
            print_json({"reopened": len(chosen), "classes": counts})
            return
        console = terminal()
        if chosen:
            parts = ", ".join(f"{n} {name}" for name, n in counts.items())
            console.print(f"To be tried again by the next `dvmset build` or `refresh`: {parts}.")
        else:
            console.print("No failed source is like that; `dvmset status` lists what failed.")


def plan(
    lists: Annotated[list[Path], typer.Argument(help="Source lists: CSV, TSV, JSONL, Parquet, or a link a line.")],
    data: DataOption = "data",
    ledger: LedgerOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    overrides: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Say what a build of LISTS would cost, before anything is asked for: requests, hours, GB and time by stage."""
    with reported():
        from pipeline.config import load_profile
        from pipeline.plan import make_plan

        made = make_plan(lists, data, load_profile(profile, overrides), ledger_url=ledger)
        if as_json:
            print_json(made.as_json())
        else:
            _print_plan(made, terminal())


def discover(
    queries: Annotated[list[str], typer.Option("--query", help="Words to search for. May be repeated.")] = [],  # noqa: B006
    site: Annotated[str, typer.Option("--site", help="Where to search: youtube or bilibili.")] = "youtube",
    urls: Annotated[
        list[str], typer.Option("--url", help="A playlist, a channel or a page with videos. May be repeated.")
    ] = [],  # noqa: B006
    keywords: Annotated[
        str, typer.Option("--keywords", help="A file of queries (CSV: query, site, category), or dvmset: the paper's.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most videos of each query or page.")] = 200,
    category: Annotated[
        str, typer.Option("--category", help="Written into the list, by default the query; chooses among --keywords.")
    ] = "",
    least_s: Annotated[float, typer.Option("--min-seconds", help="Leave out shorter videos.")] = 0.0,
    most_s: Annotated[float, typer.Option("--max-seconds", help="Leave out longer ones; 0: none.")] = 0.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV list; new videos are added to it.")] = Path(
        "list.csv"
    ),
    profile: ProfileOption = DEFAULT_PROFILE,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Find videos by search, playlist or channel, and add them to a source list.

    Nothing is downloaded. Videos that the list has already are not added again. Where a site doesn't tell how long a
    video is, it is taken.
    """
    with reported():
        from pipeline.config import load_profile
        from pipeline.discover import Filter, discover, read_queries, search

        log_to_stderr(False)
        settings = load_profile(profile, overrides).fetch
        wanted = [search(query, site, category) for query in queries]
        wanted += read_queries(keywords, category) if keywords else []
        wanted += [search(url, "", category) for url in urls]
        if not wanted:
            raise DvmsetError("What is to be found?", hint="Give --query, --url or --keywords dvmset.")
        console = terminal()
        failed = 0
        for found in discover(wanted, output, limit, Filter(least_s, most_s), settings):
            if found.error is not None:
                failed += 1
                say(console, "failed", "yellow", f"{found.query.text}: {found.error}")
                continue
            console.print(
                f"{found.query.text}: {found.added} added, {found.known} known, {found.left_out} left out",
                highlight=False,
                soft_wrap=True,
            )
        console.print(f"list     {output}", highlight=False, soft_wrap=True)
        raise typer.Exit(1 if failed == len(wanted) else 0)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise DvmsetError(f"Can't read {text!r} as a time.", hint="Write 90s, 30m, 12h, 1d or 2w.")
    return float(match[1]) * UNITS[match[2]]


def _source_ids(sources: list[str]) -> set[str]:
    """Ids, given as such or as the address of a whole video."""
    from pipeline.sources import canonical_key, source_id

    return {s if re.fullmatch(r"[0-9a-f]{16}", s) else source_id(canonical_key(s)) for s in sources}


def _print_plan(plan: Plan, console: Console) -> None:
    from rich.table import Table

    found: dict[str, Any] = plan.as_json()
    console.print(f"{found['listed']} sources listed, {found['to_fetch']} to fetch")
    for reason, number in found["skipped"].items():
        console.print(f"  skipped {number}: {reason}", highlight=False)
    table = Table("host", "sources", "requests", "hours of video", "GB", "wall time", box=None, padding=(0, 2, 0, 0))
    for host in found["hosts"]:
        table.add_row(
            host["host"], str(host["sources"]), str(host["requests"]), f"{host['hours']:.1f}", f"{host['gb']:.2f}",
            _duration(host["wall_s"]),
        )  # fmt: skip
    console.print(table)
    table = Table("stage", "wall time", "rate", "known from", box=None, padding=(0, 2, 0, 0))
    for stage in found["stages"]:
        table.add_row(stage["stage"], _duration(stage["wall_s"]), stage["rate"], stage["source"])
    console.print(table)
    console.print(f"in all   {_duration(found['wall_s'])}: downloads and model work go side by side")
    for name, text in found["assumed"].items():
        console.print(f"  {name}: {text}", style="dim", highlight=False, soft_wrap=True)
    for warning in found["warnings"]:
        say(console, "note", "yellow", warning)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"
