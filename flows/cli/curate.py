"""The commands by which a person has a say in what is kept: review, recurate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.data import open_ledger, print_build, print_release, run_flow
from flows.cli.shared import (
    DataOption,
    JsonOption,
    LedgerOption,
    busy,
    log_to_stderr,
    print_json,
    reported,
    say,
    terminal,
)
from pipeline.errors import DvmsetError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.process import Desk
    from pipeline.recurate import Outlook
    from pipeline.review.agreement import Agreement
    from pipeline.review.learn import Proposal

LISTED = 40  # changes shown one by one


def review(
    data: DataOption = "data",
    ledger: LedgerOption = None,
    reviewer: Annotated[str, typer.Option("--reviewer", help="Your name; it stands beside each decision.")] = "",
    port: Annotated[int, typer.Option("--port", help="Of the page, on this machine alone; 0 takes a free one.")] = 8765,
    sources: Annotated[int, typer.Option("--sources", help="Draw the windows from at most so many sources.")] = 500,
    dropped: Annotated[int, typer.Option("--dropped", help="Show at most so many dropped windows.")] = 40,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print who decided what, and who agrees with whom.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a local page on which a person judges clips and dropped stretches, the doubtful ones first.

    Keys: K keep, D drop, U unsure, S split here, Z undo. Decisions are written down at once and outrank the rules:
    the next build, refresh or `recurate` applies them. Media is played if the build kept it (fetch.keep_media).
    """
    with reported():
        desk = _desk(data, ledger)
        if summary:
            _print_summary(desk, as_json)
            return
        if not reviewer.strip():
            raise DvmsetError("Whose decisions are these?", hint="Give your name: --reviewer NAME.")
        console = terminal()
        with busy(console, "looking for doubtful windows ..."):
            from flows.review.serve import serve

            prepared = serve(desk, reviewer.strip(), port=port, sources=sources, dropped=dropped)
        console.print(
            f"{prepared.windows} windows; open {prepared.url} (Ctrl-C ends it)", highlight=False, soft_wrap=True
        )
        prepared.run()


def recurate(
    data: DataOption = "data",
    ledger: LedgerOption = None,
    overrides: Annotated[
        list[str], typer.Option("--set", help="A threshold of verdict or clips: voice_ratio_max=0.1. May be repeated.")
    ] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")] = False,
    learn: Annotated[bool, typer.Option("--learn", help="Propose thresholds from people's decisions.")] = False,
    as_json: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the log of Prefect and of every stage.")] = False,
) -> None:
    """Decide anew on the newest release: under other thresholds, and with what people have decided in `review`.

    The settings are those of the release, with --set on top. Verdicts come from stored curves; no model is run but for
    the features and tokens of clips that are new, whose media is fetched again if it wasn't kept.
    """
    with reported():
        log_to_stderr(verbose)
        if learn:
            proposal = _learn(_desk(data, ledger, overrides))
            overrides = [*overrides, *proposal.overrides]
        else:
            proposal = None
        desk = _desk(data, ledger, overrides)
        from pipeline.recurate import foretell

        outlook = foretell(desk)
        if as_json:
            found = outlook.as_json() | {"settings": overrides}
            print_json(found | ({"learnt": vars(proposal)} if proposal else {}))
        else:
            console = terminal()
            if proposal:
                _print_proposal(proposal, console)
            _print_outlook(outlook, console)
        if not dry_run and not learn:
            _apply(desk, overrides, terminal(stderr=as_json), verbose)
        elif not as_json:
            again = " ".join(f"--set {override}" for override in overrides)
            console.print(
                f"Nothing was changed. To apply it: dvmset recurate --data {data} {again}".rstrip(), soft_wrap=True
            )


def _desk(data: str, ledger: str | None, overrides: Sequence[str] = ()) -> Desk:
    """A desk under the settings of the newest release."""
    from pipeline.process import Desk
    from pipeline.recurate import release_profile
    from pipeline.storage import Store

    open_ledger(data, ledger).close()
    return Desk(data, release_profile(Store(data), overrides), ledger_url=ledger)


def _learn(desk: Desk) -> Proposal:
    from pipeline.review.learn import learn

    return learn(desk)


def _apply(desk: Desk, overrides: Sequence[str], console: Console, verbose: bool) -> None:
    """What a build under these settings does to the sources that are here already."""
    from pipeline.ledger import now

    since = now()
    known = {row.release_id for row in desk.ledger.releases()}
    with desk.lock():
        if pending := desk.pending():
            run_flow(desk, pending, desk.ledger.addresses(pending), console, verbose)
        made = desk.release()
    print_build(desk, since, console)
    print_release(made, console, new=made is not None and made.id not in known)
    if overrides:
        from pipeline.recurate import full_name

        again = " ".join(f"--set {full_name(override)}" for override in overrides)
        console.print(f"Give later builds and refreshes the same settings: {again}", highlight=False, soft_wrap=True)


def _print_outlook(outlook: Outlook, console: Console) -> None:
    """Clips and seconds now and then, by reason, and the clips that change."""
    from rich.table import Table

    now, then = outlook.now.as_seconds(), outlook.then.as_seconds()
    table = Table(f"release {outlook.release_id}", "now, s", "then, s", "change, s", box=None, padding=(0, 2, 0, 0))
    rows = [("kept", now["kept"], then["kept"])]
    reasons = {**now["dropped"], **then["dropped"]}
    rows += [(f"dropped: {r}", now["dropped"].get(r, 0.0), then["dropped"].get(r, 0.0)) for r in reasons]
    for name, before, after in rows:
        moved = f"{after - before:+.1f}" if round(after - before, 1) else ""
        table.add_row(name, f"{before:.1f}", f"{after:.1f}", moved)
    table.add_row(
        "clips", str(outlook.clips_now), str(outlook.clips_then), _signed(outlook.clips_then - outlook.clips_now)
    )
    console.print(table)
    lacking = {change.source_id for change in outlook.changes if change.lacks}
    for change in outlook.changes[:LISTED]:
        mark = ("-", "red") if change.kind == "removed" else ("+", "green")
        needs = ", features still to be computed" if change.lacks else ""
        say(console, *mark, f"{change.clip_id}  {change.seconds:6.1f} s  {change.why}{needs}  {change.url}")
    if len(outlook.changes) > LISTED:
        console.print(f"  and {len(outlook.changes) - LISTED} more; --json lists all")
    if not outlook.changes:
        console.print("No clip would come or go.")
    if lacking:
        console.print(f"{len(lacking)} sources have new clips: their media is needed, and fetched if it wasn't kept.")
    if outlook.unread:
        left = f"{outlook.unread} sources have no stored curves of this version and were left as they are."
        console.print(left, style="yellow")


def _signed(count: int) -> str:
    return f"{count:+d}" if count else ""


def _print_proposal(proposal: Proposal, console: Console) -> None:
    n = proposal.windows
    console.print(f"{n} windows decided; the rules agree with {proposal.agreed_now} of them now.", highlight=False)
    if not proposal.overrides:
        console.print("No thresholds on the grid agree with more: nothing to propose.")
        return
    console.print("proposed  " + " ".join(f"--set {override}" for override in proposal.overrides), highlight=False)
    console.print(
        f"          agrees with {proposal.agreed_then} of {n}; learnt without each window's own source: "
        f"{proposal.agreed_held_out} of {n}",
        highlight=False,
    )


def _print_summary(desk: Desk, as_json: bool) -> None:
    from pipeline.review.agreement import agreements, counts

    reviews = desk.ledger.reviews()
    found = agreements(reviews)
    if as_json:
        print_json({"reviewers": counts(reviews), "agreement": [vars(a) for a in found]})
        return
    console = terminal()
    for name, decided in counts(reviews).items():
        console.print(f"{name}  " + ", ".join(f"{n} {decision}" for decision, n in decided.items()), highlight=False)
    for agreement in found:
        console.print(_in_words(agreement), highlight=False)
    if waiting := len(desk.ledger.reviewed_since()):
        console.print(f"{waiting} sources have decisions that no release knows of: run `dvmset recurate`.")
    if not reviews:
        console.print("Nobody has decided anything yet.")


def _in_words(found: Agreement) -> str:
    kappa = "Cohen's kappa not defined" if found.kappa is None else f"Cohen's kappa {found.kappa:.2f}"
    return f"{found.first} and {found.second}: {found.agreed} of {found.windows} windows the same, {kappa}"
