"""The command that lists near-duplicates: duplicates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.data import open_ledger
from flows.cli.shared import (
    DataOption,
    JsonOption,
    LedgerOption,
    SetOption,
    check_file,
    print_json,
    reported,
    terminal,
)
from pipeline.errors import DvmsetError

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.process.duplicates import Overview

Kind = Literal["all", "both", "same_sound", "same_picture"]


def duplicates(
    data: DataOption = "data",
    ledger: LedgerOption = None,
    profile: Annotated[
        str, typer.Option("--profile", help="Settings to judge by; those of the newest release by default.")
    ] = "",
    overrides: SetOption = [],  # noqa: B006
    source: Annotated[str, typer.Option("--source", help="Only pairs with this source, by its id.")] = "",
    kind: Annotated[
        Kind, typer.Option("--kind", help="same_sound: one track under different pictures; same_picture: the reverse.")
    ] = "all",
    out: Annotated[Path | None, typer.Option("--out", help="Write the pairs into this JSON Lines file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List sources that share sound or picture, with times, as the last release found them."""
    with reported():
        from pipeline.config import load_profile
        from pipeline.process.duplicates import overview
        from pipeline.recurate import release_profile
        from pipeline.storage import Store

        if out is not None:
            check_file(out)
        if overrides and not profile:
            raise DvmsetError("--set needs --profile: settings to change.", hint="Give both, or neither.")
        book = open_ledger(data, ledger)
        settings = load_profile(profile, overrides) if profile else release_profile(Store(data))
        found = overview(book, settings.release, source)
        pairs = [pair for pair in found.pairs if kind in ("all", pair["kind"])]
        if out is not None:
            out.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
        if as_json:
            print_json({"groups": found.groups, "pairs": pairs, "leakage": found.leakage})
            return
        console = terminal()
        for line in _lines(pairs):
            console.print(line, highlight=False, soft_wrap=True)
        _print_sums(found, console)
        if out is not None:
            console.print(f"{len(pairs)} pairs in {out}", highlight=False, soft_wrap=True)


def _lines(pairs: list[dict[str, Any]]) -> Iterator[str]:
    for pair in pairs:
        joined = "one group" if pair["joined"] else "too little for a group"
        yield f"{pair['first']['url']}\n{pair['second']['url']}"
        yield f"  {pair['kind']}: sound {pair['sound_s']:.1f} s, picture {pair['picture_s']:.1f} s; {joined}"
        for stretch in pair["stretches"]:
            mirror = ", mirrored" if stretch["mirror"] else ""
            speed = f", speed {stretch['speed']:.3f}" if abs(stretch["speed"] - 1) > 0.004 else ""
            (a, b), (c, d) = stretch["first_s"], stretch["second_s"]
            yield f"  {stretch['kind']:<8} {a:.1f} to {b:.1f} s = {c:.1f} to {d:.1f} s{speed}{mirror}"


def _print_sums(found: Overview, console: Console) -> None:
    leak = found.leakage
    sums = (
        f"{len(found.pairs)} pairs, {found.groups} groups of more than one source. Of {leak['pairs']} joined pairs "
        f"splits by group tear {leak['by_group']} apart; splits by source id would have torn {leak['by_id']} "
        f"({leak['by_id_s']:.0f} s)."
    )
    console.print(sums, highlight=False, soft_wrap=True)
