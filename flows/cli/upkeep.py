"""The commands of a data folder that lives for months: refresh, takedown, serve, canary."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.data import open_desk, open_ledger, print_build, print_release
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

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.config import FetchSettings
    from pipeline.refresh import Findings, Held
    from pipeline.sources import BadRow
    from pipeline.takedown import Plan


def refresh(
    lists: Annotated[list[Path], typer.Argument(help="All source lists of the data folder.")],
    data: DataOption = "data",
    ledger: LedgerOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    overrides: SetOption = [],  # noqa: B006  (typer reads the default, nothing writes to it)
    as_json: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of Prefect and of every stage.")] = False,
) -> None:
    """Compare LISTS and the sites with what is here, do the work that follows, and release what changed.

    New, changed and restored sources are worked on, and those that are due for another try; what is in none of the
    lists any more leaves the next release. Some of the known sources are asked for at their sites, without a download
    (refresh.probes). Where nothing changed nothing is done, and Prefect isn't even started.
    """
    with reported():
        from pipeline.ledger import now
        from pipeline.refresh import look_around, summary

        log_to_stderr(verbose)
        console = terminal(stderr=as_json)
        desk = open_desk(data, ledger, profile, overrides)

        def tell(bad: BadRow) -> None:
            say(console, "bad row", "yellow", f"{bad.file}:{bad.line}: {bad.reason}")

        with desk.lock():
            since = now()
            held = _limits(desk.profile.fetch)
            found = look_around(desk, lists, on_bad_row=tell, held=held)
            _print_findings(found, console)
            if found.pending:
                with _prefect(console, verbose):
                    from flows.progress import Progress
                    from flows.refresh import run

                    with Progress(console, desk.ledger.addresses(found.pending)) as progress:
                        made = run(desk, found, progress)
                print_build(desk, since, console)
            else:
                made = desk.release()
            changed = made is not None and made.changed
            print_release(made, console, new=changed)
            diff = made.diff if made and changed else None
            _print_diff(diff, console)
            if made and changed and not found.pending:
                text = summary(desk, found, diff, made.id)
                with _prefect(console, verbose):
                    from flows.refresh import report

                    report(text, str(desk.store))
        if as_json:
            print_json(
                {
                    "lists": {k: v for k, v in vars(found.lists).items() if k != "refused"},
                    "bad_rows": found.bad_rows,
                    "sites": {**vars(found.sites), "resting": sorted(found.sites.resting)},
                    "worked_on": len(found.pending),
                    "release": made.id if made else None,
                    "changed": changed,
                    "diff": diff,
                }
            )


def takedown(
    data: DataOption = "data",
    ledger: LedgerOption = None,
    sources: Annotated[list[str], typer.Option("--source", help="Id of a source. May be repeated.")] = [],  # noqa: B006
    urls: Annotated[list[str], typer.Option("--url", help="Address of a video. May be repeated.")] = [],  # noqa: B006
    channel: Annotated[str, typer.Option("--channel", help="All videos of a channel, by its name.")] = "",
    lists: Annotated[list[Path], typer.Option("--list", help="Every video of a source list. May be repeated.")] = [],  # noqa: B006
    purge: Annotated[
        bool, typer.Option("--purge-releases", help="Delete older releases that hold rows of it or name it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take videos down for good: media, features, rows and, in a new release, shards; they are never fetched again.

    All sections and byte-for-byte copies of a video go with it. A receipt with a digest over its content says what was
    removed; it lies in the data folder, under takedowns/.
    """
    with reported():
        from pipeline.process import locked
        from pipeline.storage import Store
        from pipeline.takedown import Request, nobody_at_work, plan_takedown, take_down

        console = terminal(stderr=as_json)
        book, store = open_ledger(data, ledger), Store(data)
        with locked(store, book, shared=ledger is not None):
            plan = plan_takedown(store, book, Request(tuple(sources), tuple(urls), channel.strip(), tuple(lists)))
            _print_plan(plan, console)
            question = "Take this down for good" + (", and delete the older releases that hold it?" if purge else "?")
            if not (yes or typer.confirm(question, err=as_json)):
                console.print("Nothing was changed.")
                raise typer.Exit(1)
            with nobody_at_work(book, plan):
                receipt = take_down(store, book, plan, purge=purge)
        if as_json:
            print_json(receipt)
            return
        made, older = receipt["release"], receipt["older_releases"]
        console.print(f"removed  {receipt['files']['count']} files, {receipt['files']['bytes'] / 1e6:.1f} MB")
        if made["id"]:
            console.print(f"release  {made['id']}: {made['clips_removed']} clips, {made['seconds_removed']:.1f} s less")
        if made["files_renewed"]:
            console.print(f"         made anew without it: {', '.join(made['files_renewed'])}", highlight=False)
        if older["purged"]:
            console.print(f"purged   {', '.join(older['purged'])}", highlight=False)
        for path, files in older["still_hold"].items():
            say(console, "still in", "yellow", f"{path} ({', '.join(files)})")
        if older["still_hold"]:
            console.print("         --purge-releases deletes these releases")
        console.print(f"receipt  {receipt['path']}", highlight=False, soft_wrap=True)


def serve(
    lists: Annotated[list[Path], typer.Argument(help="All source lists of the data folder.")],
    cron: Annotated[str, typer.Option("--cron", help='When to refresh: minute hour day month weekday, "0 3 * * *".')],
    timezone: Annotated[str, typer.Option("--timezone", help="Of --cron, e.g. Europe/Berlin.")] = "UTC",
    canaries: Annotated[
        Path | None,
        typer.Option("--canaries", help="Source list of the stable videos to ask for every hour."),
    ] = None,
    data: DataOption = "data",
    ledger: LedgerOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Refresh on a schedule until Ctrl-C, with nothing else to set up: Prefect's server runs beside it.

    Every hour a few stable videos are asked for, without a download; an event tells when one fares otherwise.
    Where PREFECT_API_URL is set, that server is used. With workers instead of one process: see flows/prefect.yaml.
    """
    with reported():
        from pipeline.config import load_profile
        from pipeline.process import LEDGER
        from pipeline.sources import iter_list

        load_profile(profile, overrides)
        if ledger:
            os.environ[LEDGER] = ledger  # for the processes that the runs are in: Prefect would store a parameter
        for path in (*lists, *filter(None, [canaries])):
            next(iter(iter_list(path)), None)  # what can't be read is told now, not at night
        quieten_prefect(verbose=True)
        from flows.serve import serve_both

        terminal().print(f"refreshing {data} at {cron!r} ({timezone}); Ctrl-C ends it", highlight=False)
        both: dict[str, Any] = {
            "data": data if "://" in data else str(Path(data).absolute()),
            "profile": profile,
            "overrides": overrides,
        }
        videos = {"videos": str(canaries.absolute())} if canaries else {}
        serve_both({"lists": [str(path.absolute()) for path in lists], **both}, {**videos, **both}, cron, timezone)


@contextmanager
def _prefect(console: Console, verbose: bool) -> Iterator[None]:
    """Flows can be run in the block; Prefect is not imported before."""
    quieten_prefect(verbose)
    with ExitStack() as server:
        with busy(console, "starting Prefect ..."):
            from flows.server import prefect_at_hand

            server.enter_context(prefect_at_hand())
        yield


def _limits(settings: FetchSettings) -> Held:
    """Prefect's global limits, if the settings ask for them; else Prefect isn't even imported."""
    if not settings.global_limits:
        return nullcontext
    from flows.limits import holder

    return holder(settings)


def _print_findings(found: Findings, console: Console) -> None:
    lists, sites = found.lists, found.sites
    console.print(
        f"lists    {lists.listed} sources: {lists.new} new, {lists.relabelled} changed, {lists.removed} removed, "
        f"{lists.restored} restored",
        highlight=False,
    )
    if lists.refused_count:
        shown = "\n         ".join(lists.refused)
        say(console, "refused ", "yellow", f"{lists.refused_count} that were taken down, for example\n         {shown}")
    if sites.asked or sites.resting:
        rest = f"; resting: {', '.join(sorted(sites.resting))}" if sites.resting else ""
        console.print(
            f"sites    asked {sites.asked}: {sites.gone} gone, {sites.returned} back, {sites.changed} changed, "
            f"{sites.silent} gave no answer{rest}",
            highlight=False,
        )
    console.print(f"work     {len(found.pending)} sources" if found.pending else "work     none")


def _print_diff(diff: dict[str, Any] | None, console: Console) -> None:
    for kind in ("added", "removed", "relabelled", "recomputed") if diff else ():
        assert diff is not None
        if diff[kind]["clips"]:
            reasons = ", ".join(f"{n} {reason}" for reason, n in diff[kind]["reasons"].items())
            console.print(f"         {diff[kind]['clips']} clips {kind}: {reasons}", highlight=False, soft_wrap=True)


def _print_plan(plan: Plan, console: Console) -> None:
    for source, media in plan.found:
        seconds = f"{media.duration_ms / 1000:.1f} s" if media else "not fetched"
        console.print(f"{source.source_id}  {seconds:>12}  {source.url}", highlight=False, soft_wrap=True)
    unknown = len(plan.keys) - len({source.key for source, _ in plan.found})
    if unknown:
        console.print(f"{unknown} videos are not in this ledger; they are kept out as well.")
    if plan.channel:
        console.print(f"Whatever else comes of the channel {plan.channel} is kept out, too.")
    if plan.before:
        console.print(f"Taken down before: {', '.join(sorted(plan.before))}.", highlight=False, soft_wrap=True)
    elif not plan.found:
        console.print("Nothing of it is here.")
