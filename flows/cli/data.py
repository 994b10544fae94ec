"""The commands of a data folder: build, status, release, validate."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.failures import by_class, print_failures, resting_hosts
from flows.cli.shared import (
    DataOption,
    JsonOption,
    LedgerOption,
    ProfileOption,
    SetOption,
    busy,
    log_to_stderr,
    print_json,
    quieten_prefect,
    reported,
    say,
    terminal,
)
from pipeline import DEFAULT_PROFILE
from pipeline.errors import DvmsetError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.process import Desk
    from pipeline.release import Release
    from pipeline.sources import Source

LISTED = 20  # sources shown one by one


def build(
    lists: Annotated[list[Path], typer.Argument(help="Source lists: CSV, TSV, JSONL, Parquet, or a link a line.")],
    data: DataOption = "data",
    ledger: LedgerOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    overrides: SetOption = [],  # noqa: B006  (typer reads the default, nothing writes to it)
    strict: Annotated[bool, typer.Option("--strict", help="Stop if a list has a bad row.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of Prefect and of every stage.")] = False,
) -> None:
    """Bring the sources of LISTS up to date: download, shots, stems, verdict, clips, features, tokens, release.

    Run it again at any time: what is done is not done twice, and a run that was killed goes on where it was.
    """
    with reported():
        from pipeline.ledger import now
        from pipeline.process.provenance import note_lists

        log_to_stderr(verbose)
        console = terminal()
        sources = _read_lists(lists, strict, console)
        desk = open_desk(data, ledger, profile, overrides)
        with desk.lock():
            changes = desk.ledger.take_list(map(vars, sources), whole=False)
            note_lists(desk.ledger, lists)
            for url in changes.refused:
                say(console, "refused", "yellow", f"{url}: it was taken down")
            pending = desk.pending()
            known = {row.release_id for row in desk.ledger.releases()}
            since = now()
            if pending:
                console.print(
                    f"{len(sources)} sources listed, {changes.new} new, {len(pending)} to work on; data in {desk.store}"
                )
                run_flow(desk, pending, {s.source_id: s.url for s in desk.ledger.sources()}, console, verbose)
            else:
                console.print(
                    f"Nothing to do: {len(sources)} sources are listed, and all are as up to date as they get for now."
                )
            made = desk.release()
            print_build(desk, since, console)
            print_release(made, console, new=made is not None and made.id not in known)


def status(data: DataOption = "data", ledger: LedgerOption = None, as_json: JsonOption = False) -> None:
    """Say where the sources and the seconds of a data folder are, and what went wrong."""
    with reported():
        book = open_ledger(data, ledger)
        funnel, states, errors = book.funnel().as_seconds(), book.states(), book.errors()
        last = next(reversed(book.releases()), None)
        release = f"{data}/releases/{last.release_id}" if last else None
        if as_json:
            failures = by_class(book.failures(), datetime.now(UTC))
            found = {"seconds": funnel, "states": states, "errors": errors, "release": release}
            print_json(found | {"failures": failures, "refetches": book.refetches(), "resting": resting_hosts(book)})
            return
        console = terminal()
        console.print("sources  " + ", ".join(f"{n} {state}" for state, n in states.items()))
        console.print(_funnel_table(funnel))
        if (work := book.separation())["heard"]:
            console.print(f"separated {work['separated']:.0f} s of {work['heard']:.0f} s heard; the rest is no music")
        for source in book.sources()[:LISTED]:
            if source.state == "ready":
                console.print(f"{source.url}  {book.fate(source.source_id)}", highlight=False, soft_wrap=True)
        print_failures(book, console)
        if last:
            console.print(f"release  {last.clips} clips, {last.seconds:.0f} s, made {last.created_at:%Y-%m-%d %H:%M}")
            console.print(f"         {release}", highlight=False, soft_wrap=True)


def release(
    data: DataOption = "data",
    ledger: LedgerOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Make a release of all clips that are ready, without fetching or computing anything."""
    with reported():
        desk = open_desk(data, ledger, profile, overrides, must_exist=True)
        with desk.lock():
            made = desk.release()
            print_release(made, terminal(), new=made is not None and made.changed)


def validate(
    folder: Annotated[str, typer.Argument(help="The folder of a release, or its URL; or releases/latest.")],
    as_json: JsonOption = False,
) -> None:
    """Check a release: digests, schema, every row. Exits with 1 if anything is wrong."""
    with reported():
        from pipeline.shards import validate as check

        report = check(folder)
        if as_json:
            print_json(
                {
                    "ok": report.ok,
                    "shards": report.shards,
                    "rows": report.rows,
                    "seconds": report.seconds,
                    "problems": [str(p) for p in report.problems],
                }
            )
        else:
            for problem in report.problems:
                say(terminal(), "bad", "red", str(problem))
            verdict = f"{len(report.problems)} problems" if report.problems else "all good"
            terminal().print(f"{folder}: {report.shards} shards, {report.rows} rows, {verdict}", soft_wrap=True)
        raise typer.Exit(1 if report.problems else 0)


def open_desk(data: str, ledger: str | None, profile: str, overrides: list[str], *, must_exist: bool = False) -> Desk:
    """A desk at a data folder."""
    from pipeline.config import load_profile
    from pipeline.process import Desk

    if must_exist:
        open_ledger(data, ledger).close()
    return Desk(data, load_profile(profile, overrides), ledger_url=ledger)


def open_ledger(data: str, ledger: str | None) -> Any:
    """The ledger of a data folder that is there, or the one that is named."""
    from pipeline.ledger import Ledger

    if ledger:
        return Ledger(ledger)
    place = Path(data) / "ledger.sqlite"
    if not place.is_file():
        hint = "Give the --data of a build, and its --ledger if it had one."
        raise DvmsetError(f"{data} is not a data folder: it has no ledger.sqlite.", hint=hint)
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
        say(console, "bad row", "yellow", f"{row.file}:{row.line}: {row.reason}")
    if bad and strict:
        raise DvmsetError(f"{len(bad)} bad rows, and --strict was given.", hint="Mend the list or leave --strict out.")
    if not sources:
        raise DvmsetError(f"No usable source in {', '.join(map(str, lists))}.", hint="A list needs a link or id a row.")
    return list(sources.values())


def run_flow(desk: Desk, pending: list[str], names: dict[str, str], console: Console, verbose: bool) -> None:
    """Works on sources through Prefect, and shows how it goes."""
    quieten_prefect(verbose)
    with ExitStack() as server:
        with busy(console, "starting Prefect ..."):
            from flows.build import run
            from flows.progress import Progress
            from flows.server import prefect_at_hand

            server.enter_context(prefect_at_hand())
        with Progress(console, {i: names[i] for i in pending}) as progress:
            run(desk, progress)


def print_build(desk: Desk, since: datetime, console: Console) -> None:
    """What was done since a moment, and where the seconds are."""
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
    print_failures(desk.ledger, console)


def print_release(made: Release | None, console: Console, *, new: bool) -> None:
    """Which release is the newest."""
    if made is None:
        console.print("No clip was kept, so there is no release.")
        return
    state = "new" if new else "unchanged"
    console.print(f"release  {made.id} ({state}): {made.clips} clips, {made.seconds:.1f} s")
    console.print(f"         {made.path}", highlight=False, soft_wrap=True)
    if new and (changed := _changed_settings(made)):
        say(console, "settings", "yellow", f"not those of the release before: {', '.join(changed)}")


def _changed_settings(made: Release) -> list[str]:
    """Names of the settings in which a release differs from its parent, if that is still there."""
    from pipeline.release.between import Place, differences

    new = Place.at(made.path)
    before = f"{str(new.store).rpartition('/')[0]}/{new.manifest['parent']}"
    if not new.manifest["parent"] or not new.store.fs.exists(f"{before}/manifest.json"):
        return []
    return list(differences(Place.at(before), new)["settings"])


def _funnel_table(seconds: dict[str, Any]) -> Any:
    """Fetched = kept + dropped, in seconds and as bars."""
    from rich.table import Table
    from rich.text import Text

    from pipeline.reasons import KEPT, colour

    table = Table(
        "seconds", "", "", box=None, padding=(0, 2, 0, 0), title="where the seconds went", title_justify="left"
    )
    whole = seconds["fetched"] or 1.0
    rows = [("fetched", seconds["fetched"], "blue"), ("kept", seconds["kept"], colour(KEPT))]
    rows += [(f"dropped: {reason}", s, colour(reason)) for reason, s in seconds["dropped"].items()]
    for name, s, style in rows:
        share = s / whole
        table.add_row(f"{s:.3f}", Text("█" * max(round(30 * share), s > 0), style), f"{name} ({share:.1%})")
    return table
