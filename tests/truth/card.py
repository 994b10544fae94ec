"""The tables of `data_cards/curation.md`: written by the commands that measure, never by hand."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.errors import DvmsetError
from pipeline.nano.card import markdown
from pipeline.storage import Store

CARD = Path(__file__).parents[2] / "data_cards" / "curation.md"


def show(section: str, *parts: Table | str, card: Path = CARD) -> None:
    """Prints tables and sentences, and puts them in the place of what stands in a section of the card.

    A section lies between `<!-- NAME: measured -->` and `<!-- NAME: end -->`, and NAME is the module's.

    Raises:
        DvmsetError: the card has no such place.
    """
    console = Console()
    for part in parts:
        console.print(part)
    begin, end = f"<!-- {section}: measured -->\n", f"<!-- {section}: end -->"
    text = card.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise DvmsetError(f"{card} has no place for {section}.", hint=f"It is between {begin} and {end}.")
    said = [markdown(part) if isinstance(part, Table) else part + "\n" for part in parts]
    where = f"{os.cpu_count()} {platform.machine()} cores"
    said.append(f"`python -m tests.truth.{section}` on {datetime.now(UTC):%Y-%m-%d}, {where}.\n")
    Store(card.parent).write_text(card.name, before + begin + "\n" + "\n".join(said) + "\n" + end + after)
    console.print(f"the tables are in {card}", highlight=False, soft_wrap=True)


def table(title: str, *columns: str) -> Table:
    """An empty table."""
    made = Table(title=title)
    for column in columns:
        made.add_column(column)
    return made
