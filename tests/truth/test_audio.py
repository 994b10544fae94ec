"""The verdict on held-out mixtures, and changes of track on a held-out compilation, at the size of a test."""

from __future__ import annotations

import pytest

from pipeline.config import load_profile
from pipeline.nano.mixtures import compilations
from tests.truth.audio import Heard, clear_accuracy, dropped, gated, hear_compilations, hear_mixtures, joins
from tests.truth.audio_made import CASES, mixture


def test_truth_is_the_same_every_time_and_follows_the_policy():
    case = next(c for c in CASES if c.name == "speech over music +0 dB")
    one, again, other = mixture(case, "test", 0), mixture(case, "test", 0), mixture(case, "test", 1)

    assert (one.mix == again.mix).all() and not (one.mix == other.mix).all()
    assert one.fate == "drop"
    assert (one.vocals**2).sum() / (one.other**2).sum() == pytest.approx(1, rel=0.01)
    assert mixture(CASES[0], "test", 0).fate == "keep"
    (made,) = compilations("test", 1)
    assert len(made.joins) == 5
    assert all(not made.audio[round(a * 22_050) + 1 : round(b * 22_050) - 1].any() for a, b in made.joins)


@pytest.mark.slow
def test_clear_windows_get_the_right_verdict_and_the_gate_changes_none():
    profile = load_profile("nano")
    held_out = hear_mixtures("test", range(1), profile)
    behind = [Heard(h.made, gated(h.curves, profile)) for h in held_out]

    assert clear_accuracy(behind, profile.verdict)[0] >= 8 / 9  # one window of nine, as voices differ from run to run
    assert [dropped(h.curves, profile.verdict) for h in behind] == [
        dropped(h.curves, profile.verdict) for h in held_out
    ]


@pytest.mark.slow
def test_most_changes_of_track_are_found():
    profile = load_profile("nano")
    found = joins(hear_compilations("test", 1, profile), profile.clips)

    assert found.there == 5
    assert found.found >= 3
    assert found.false <= 3
