"""Seconds that were not separated: gaps in what people see, and no part of what is averaged for them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from flows.cli.look import sparkline
from pipeline import inspect, report
from pipeline.clips import drop_all
from pipeline.config import load_profile
from pipeline.inspect import Inspection
from pipeline.lineage import _series
from pipeline.media import MediaInfo
from pipeline.music import Curves
from pipeline.music.curves import FLOOR_DB
from pipeline.music.shown import numbers, shown, shown_share, shown_stems
from pipeline.process import Desk
from pipeline.review.view import why
from pipeline.review.windows import Window


def curves(separated: list[int]) -> Curves:
    """Music with a fifth of voice in it wherever it was separated."""
    known = np.array(separated, bool)
    flat = np.full(len(known), 0.5, np.float32)
    loud = np.full(len(known), -20, np.float32)
    shares = (("vocals", 0.2), ("other", 0.8))
    stems = {n: np.where(known, -20 + 10 * np.log10(share), FLOOR_DB).astype(np.float32) for n, share in shares}
    voice = np.where(known, np.float32(0.2), np.float32(0))
    envelope = np.zeros(1, np.float32)
    return Curves(
        0, 1000 * len(known), loud, stems, voice, flat * 0, flat, flat, flat, voice, voice, envelope, separated=known
    )


def test_what_is_said_of_stems_is_a_gap_where_nothing_was_separated() -> None:
    heard = curves([1, 0, 1])
    assert numbers(shown(heard, "voice_ratio")) == [0.2, None, 0.2]
    assert numbers(shown(heard, "music")) == [0.5, 0.5, 0.5]
    assert numbers(shown_stems(heard)["other"], 1) == [-21.0, None, -21.0]
    assert numbers(shown(curves([]), "voice_ratio")) == []


def test_the_voices_share_is_that_of_the_separated_seconds() -> None:
    heard = curves([0, 0, 1, 0])
    assert shown_share(heard, slice(0, 4)) == pytest.approx(0.2, abs=1e-3)
    assert shown_share(heard, slice(1, 3)) == pytest.approx(0.2, abs=1e-3)
    assert shown_share(heard, slice(0, 2)) is None


def test_a_person_is_told_where_the_voices_share_is_not_known(tmp_path: Path) -> None:
    desk, window = Desk(tmp_path, load_profile("nano")), Window("w", "s", 0, 2000, "no_music", 0.0)
    assert why(curves([0, 0]), desk, window).startswith("Nothing was separated, so how much is voice isn't known, and ")
    assert why(curves([0, 1]), desk, window).startswith("Voice is 20% of the energy (at most ")
    desk.ledger.close()


def test_pictures_and_bars_have_gaps(tmp_path: Path) -> None:
    heard, info = curves([0, 1, 1]), MediaInfo("mp4", 3000, 1, None, None)
    found = Inspection("film", info, (), heard, drop_all(3000, "no_music"), [])
    assert found.as_json()["curves"]["voice_ratio"] == [None, 0.2, 0.2]
    assert found.as_json()["curves"]["vocals_db"][0] is None
    inspect.plot(found, tmp_path / "film", tmp_path / "film.svg")
    assert (tmp_path / "film.svg").stat().st_size > 1000
    bars = report._steps([None, 0.2, 0.2], 0.0, lambda t: 100 * (1 + t), 0, "#000000", (0, 1))
    assert [re.findall(r'x="([\d.]+)"', bar) for bar in bars] == [["200.0"], ["300.0"]]
    assert sparkline([None, 0.5, 1.0]) == "·▄█"
    series = _series(np.array([np.nan, 0.5, 1.0]))
    assert series == {"least": 0.5, "mean": 0.75, "most": 1.0, "shape": [None, 0.5, 1.0]}
    assert _series(np.array([np.nan])) is None
