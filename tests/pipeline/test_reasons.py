"""Reasons as people see them: words, and one colour each in every picture."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline import inspect, report
from pipeline.clips import Span
from pipeline.inspect import Inspection
from pipeline.media import MediaInfo
from pipeline.music import REASONS
from pipeline.reasons import COLOURS, CURVES, colour, words
from pipeline.review.windows import UNHEARD

PAGE = Path(__file__).parents[2] / "flows/review/page/review.js"


def test_every_reason_has_words_and_a_colour_of_its_own() -> None:
    assert {*REASONS, *UNHEARD} <= set(COLOURS)
    assert len({*COLOURS.values(), colour("another")}) == len(COLOURS) + 1
    assert words("speech") == "speech without music, or louder than it"
    assert words("some_new_reason") == "some new reason"
    assert set(CURVES.values()) <= set(COLOURS)


def test_dark_letters_can_be_read_on_every_colour() -> None:
    for tint in COLOURS.values():
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(tint))
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert (light + 0.05) / 0.05 >= 4.5, tint  # against black; WCAG's least


@pytest.mark.parametrize("reasons", [["", "voice"], ["voice", "silence", "", "off_beat"]])
def test_the_plot_of_a_file_draws_each_reason_in_its_colour(reasons: list[str], tmp_path: Path) -> None:
    spans = [Span(1000 * i, 1000 * (i + 1), reason) for i, reason in enumerate(reasons)]
    info = MediaInfo("mp4", 1000 * len(reasons), 1, None, None)
    inspect.plot(Inspection("film", info, (), None, spans, []), tmp_path / "film", tmp_path / "film.svg")
    filled = re.findall(r"fill: (#\w+)", (tmp_path / "film.svg").read_text())
    assert {tint for tint in filled if tint in COLOURS.values()} == {colour(reason) for reason in reasons}


def test_the_report_draws_each_reason_in_its_colour() -> None:
    flat = [0.5, 0.5]
    view = {
        "start_s": 0.0, "end_s": 2.0, "waves": {}, "beats_s": [], "cuts_s": [],
        "curves": {"first_s": 0.0, "music": flat, "voice_ratio": flat},
        "thresholds": {"music_min": 0.5, "voice_ratio_max": 0.1},
    }  # fmt: skip
    for reason in ("", "speech"):
        stretch = {"start_s": 0.0, "end_s": 2.0, "reason": reason, "view": view}
        drawn = re.findall(r'<rect [^>]*fill="(#\w+)"', str(report._timeline(stretch)))
        assert drawn == [colour(reason), *[colour("")] * 2, *[colour("voice")] * 2]


def test_the_review_page_has_no_colours_of_reasons_of_its_own() -> None:
    page = PAGE.read_text()
    assert not re.search(r"(silence|no_music|speech|too_short): ?\"#", page)
    assert "colours = state.colours" in page


def rgb(tint: str) -> np.ndarray:
    return np.array([int(tint[i : i + 2], 16) for i in (1, 3, 5)]) / 255
