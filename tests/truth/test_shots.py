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


def test_a_minute_at_360p_takes_less_than_two_seconds_of_a_core_and_a_half(tmp_path: Path):
    _, by_cpu_time = shots.speed("blend", tmp_path)
    assert by_cpu_time >= 20  # 30 and more where nobody else works; see the card
