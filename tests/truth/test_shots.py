"""Shots on made footage, at a size for every run; the card has the film."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.config import ShotSettings
from tests.truth import shots
from tests.truth.cutting import TRAPS

MADE = tuple(-float(seed) for seed in range(1, 9))
FILM_RATES = (Fraction(24000, 1001), Fraction(25), Fraction(30), None)

pytestmark = pytest.mark.slow


def test_transitions_are_found_and_what_only_looks_like_one_is_not(tmp_path: Path):
    scores, false = shots.score(shots.make(tmp_path, MADE, FILM_RATES, 12.0), ShotSettings())
    assert scores["cuts"].f1 >= 0.98
    assert scores["dissolves"].f1 >= 0.85
    assert scores["fades"].f1 >= 0.85
    assert set(false) == set(TRAPS)
    assert sum(false[name] for name in shots.FLASHES_AND_PANS) <= 1  # in a minute


def test_it_takes_little_more_of_a_core_than_the_simplest_detector(tmp_path: Path):
    _, ours = shots.speed("blend", tmp_path)
    _, content = shots.speed("content", tmp_path)
    assert ours > content / 3  # the card has 59 against 75 times real time
