"""Failed sources as `build`, `status` and `retry` show them: by error class, with what follows and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.cli.shared import say
from pipeline.errors import POLICIES, advice

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.ledger import Failure, Ledger

SHOWN = 5  # sources of a class that are shown one by one
THEN = {
    "never": "not tried again",
    "later": "tried again by itself",
    "host": "tried again when the host has rested",
    "person": "waits for a person",
}


def by_class(failures: Iterable[Failure], at: datetime) -> dict[str, dict[str, Any]]:
    """For JSON, by error class, the largest first: numbers, what follows, what to do, and when the next is due."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(failure.error_class, []).append(failure)
    return {name: _summary(name, group, at) for name, group in sorted(groups.items(), key=lambda g: (-len(g[1]), g[0]))}


def resting_hosts(ledger: Ledger) -> dict[str, str]:
    """Hosts whose breaker is open, and until when, in ISO 8601."""
    breakers = ledger.open_breakers()
    return {host: _iso(datetime.fromtimestamp(row.free_at, UTC)) for host, row in breakers.items()}


def print_failures(ledger: Ledger, console: Console) -> None:
    """One paragraph a class, then what is to be fetched again, then the hosts that rest."""
    at = datetime.now(UTC)
    failures = ledger.failures()
    for name, group in by_class(failures, at).items():
        due = [f"{group['due']} due now"] if group["due"] else []
        due += [f"{group['waiting']} later, the next at {group['next']}"] if group["waiting"] else []
        due += [f"{group['keep_clips']} changed upstream and keep their clips"] if group["keep_clips"] else []
        when = f" ({', '.join(due)})" if due else ""
        say(console, f"{name:>11}", "yellow", f"{group['sources']}: {THEN[group['then']]}{when}. {group['advice']}")
        of_class = [f for f in failures if f.error_class == name]
        for failure in of_class[:SHOWN]:
            console.print(f"            {failure.url}  {failure.message}", style="dim", highlight=False, soft_wrap=True)
        if len(of_class) > SHOWN:
            console.print(f"            ... and {len(of_class) - SHOWN} more", style="dim")
    if again := ledger.refetches():
        say(console, "    refetch", "yellow", f"{again} changed upstream: their clips stay until they have come anew")
    for host, until in resting_hosts(ledger).items():
        say(console, "      rests", "yellow", f"{host} until {until}: its sources wait")


def _summary(name: str, group: Sequence[Failure], at: datetime) -> dict[str, Any]:
    policy = POLICIES[name]  # type: ignore[index]
    dues = [failure.due for failure in group]
    later = [due for due in dues if due is not None and due > at]
    waits = sum(due is not None for due in dues)
    return {
        "sources": len(group),
        "then": policy.then if waits or policy.tries == 1 else "person",
        "advice": " ".join(dict.fromkeys(advice(name, f.stage).format(host="the host") for f in group)),
        "due": waits - len(later),
        "waiting": len(later),
        "next": _iso(min(later)) if later else None,
        "for_a_person": len(group) - waits if policy.then != "never" else 0,
        "keep_clips": sum(failure.keeps_clips for failure in group),
    }


def _iso(at: datetime) -> str:
    return at.astimezone().isoformat(timespec="seconds")
