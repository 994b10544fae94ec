"""Measured tables go from the scripts into the card."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from pipeline.errors import DvmsetError
from pipeline.nano.card import CARD, show

SECTIONS = ("separator", "vision", "codec", "backbone")


def table(value: str) -> Table:
    made = Table("case", "dB", title="held out")
    made.add_row("music", value)
    return made


def test_tables_of_bundled_weights_take_the_place_of_the_old_ones(tmp_path: Path) -> None:
    card, log, script = tmp_path / "card.md", io.StringIO(), tmp_path / "nano" / "a.py"
    card.write_text("# A\n<!-- a: measured -->\nold\n<!-- a: end -->\nsaid\n<!-- b: measured -->\n<!-- b: end -->\n")
    for value in ("1.0", "2.0"):
        show(Console(file=log), script, script.with_suffix(".safetensors"), table(value), card=card)
    text = card.read_text()
    assert "| case | dB |\n| --- | --- |\n| music | 2.0 |\n" in text and "*held out*" in text
    assert "old" not in text and "1.0" not in text
    assert ".nano.a" in text and "cores." in text
    assert text.startswith("# A\n") and text.endswith("said\n<!-- b: measured -->\n<!-- b: end -->\n")
    assert "music" in log.getvalue()


def test_tables_of_other_weights_are_printed_alone(tmp_path: Path) -> None:
    log = io.StringIO()
    show(Console(file=log), tmp_path / "a.py", tmp_path / "mine.safetensors", table("1.0"), card=tmp_path / "none")
    assert "1.0" in log.getvalue()


def test_a_card_without_the_section_is_left_alone(tmp_path: Path) -> None:
    card, script = tmp_path / "card.md", tmp_path / "c.py"
    card.write_text("# A\n")
    with pytest.raises(DvmsetError, match="no place for tables of c"):
        show(Console(file=io.StringIO()), script, script.with_suffix(".safetensors"), table("1"), card=card)
    assert card.read_text() == "# A\n"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_card_has_measured_tables_of_each_model(section: str) -> None:
    measured = CARD.read_text().partition(f"<!-- {section}: measured -->")[2].partition(f"<!-- {section}: end -->")[0]
    assert "| --- |" in measured and f".nano.{section}" in measured and "cores." in measured
