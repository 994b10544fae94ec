"""The measured tables of `data_cards/nano.md`: written by the scripts that measure, never by hand."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.errors import DvmsetError
from pipeline.storage import Store

CARD = Path(__file__).parents[2] / "data_cards" / "nano.md"


def show(console: Console, script: Path, out: Path, *tables: Table, card: Path = CARD) -> None:
    """Prints the tables of weights; those of the bundled weights take the place of what stands in the card.

    A script's section of the card holds them between `<!-- STEM: measured -->` and `<!-- STEM: end -->`.

    Args:
        console: to print them on.
        script: that trains and measures; the bundled weights lie beside it.
        out: the weights measured.

    Raises:
        DvmsetError: the card has no such place.
    """
    for table in tables:
        console.print(table)
    if out.absolute() != script.with_suffix(".safetensors"):
        return
    module = ".".join([*script.parent.parts[-2:], script.stem])
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    write(card, script.stem, command, *map(markdown, tables))
    console.print(f"the tables are in {card}", highlight=False, soft_wrap=True)


def write(card: Path, section: str, command: str, *parts: str) -> None:
    """Puts Markdown, and the command, day and machine it is from, between the marks of a section of a card.

    Raises:
        DvmsetError: the card has no such place.
    """
    begin, end = f"<!-- {section}: measured -->\n", f"<!-- {section}: end -->"
    text = card.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise DvmsetError(f"{card} has no place for tables of {section}.", hint=f"It is between {begin} and {end}.")
    said = f"`{command}` on {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} {platform.machine()} cores.\n"
    Store(card.parent).write_text(card.name, before + begin + "\n" + "\n".join([*parts, said]) + "\n" + end + after)


def markdown(table: Table) -> str:
    """A table of plain cells in Markdown, under its title if it has one."""
    columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    header, *rows = (f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    title = [f"*{table.title}*", ""] if table.title else []
    return "\n".join([*title, header, "| --- " * len(columns) + "|", *rows, ""])
