"""The tables of `data_cards/curation.md`: written by the commands that measure, never by hand."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.nano.card import markdown, write

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
    said = [markdown(part) if isinstance(part, Table) else part + "\n" for part in parts]
    write(card, section, f"python -m tests.truth.{section}", *said)
    console.print(f"the tables are in {card}", highlight=False, soft_wrap=True)


def table(title: str, *columns: str) -> Table:
    """An empty table."""
    made = Table(title=title)
    for column in columns:
        made.add_column(column)
    return made
