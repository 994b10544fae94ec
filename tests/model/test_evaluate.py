"""Metrics: matching, the published beat scores, intervals; onsets in sounds whose onsets are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from model import evaluate
from model.evaluate import Heard, agreement, d2mgan_scores, follows, hear, hit_rate, interval, loris_scores, matches
from pipeline.nano.songs import RATE, song

times = st.lists(st.integers(0, 300).map(lambda frame: frame / 25), max_size=12, unique=True).map(sorted)


def clicks(at_s: list[float], seconds: int = 8, rate: int = 32_000) -> np.ndarray:
    """Bursts of noise that die away, over a soft tone."""
    rng = np.random.default_rng(0)
    audio = 0.05 * np.sin(2 * np.pi * 220 * np.arange(seconds * rate) / rate)
    burst = rng.normal(0, 0.3, rate // 4) * np.exp(-np.arange(rate // 4) / (0.05 * rate))
    for t in at_s:
        audio[round(t * rate) : round(t * rate) + len(burst)] += burst
    return audio.astype(np.float32)


@given(times, times, st.sampled_from([0.07, 0.15, 0.4]))
def test_matching_is_the_largest_there_is(a: list[float], b: list[float], tolerance: float) -> None:
    if not a or not b:
        assert matches(a, b, tolerance) == 0
        return
    close = np.abs(np.subtract.outer(a, b)) <= tolerance + 1e-9
    assert matches(a, b, tolerance) == (maximum_bipartite_matching(csr_matrix(close)) >= 0).sum()


def test_an_onset_counts_for_one_cut_only() -> None:
    assert agreement([1.0], [0.95, 1.05], 0.07) == pytest.approx((2 / 3, 1.0, 0.5))
    assert agreement([0.5, 1.0, 3.0], [1.06], 0.07) == pytest.approx((0.5, 1 / 3, 1.0))
    assert agreement([], [1.0], 0.07) == (0.0, 0.0, 0.0)


def test_the_tolerance_itself_still_matches() -> None:
    assert matches([1.0], [1.15], 0.15) == 1
    assert matches([1.0], [1.151], 0.15) == 0


def test_hit_rate_counts_cuts_with_a_beat_nearby() -> None:
    assert hit_rate([1.0, 2.0, 3.0], [0.9, 2.2, 3.0], 0.15) == pytest.approx(2 / 3)
    assert hit_rate([1.0], [], 0.15) == 0.0


def test_the_two_beat_scores_differ_as_published() -> None:
    generated, reference = [True, True, True, False], [True, False, False, True]
    assert d2mgan_scores(generated, reference) == (1.5, 0.5)  # coverage passes 1
    assert loris_scores(generated, reference) == pytest.approx((1 / 3, 0.5))  # there it is a precision
    assert all(map(math.isnan, d2mgan_scores(generated, [False] * 4)))
    assert loris_scores([False] * 4, reference) == (0.0, 0.0)
    with pytest.raises(ValueError, match="3 s"):
        loris_scores([True] * 3, reference)


def test_strong_onsets_are_heard_where_they_are() -> None:
    at = [0.8, 2.1, 3.7, 5.02, 6.6]
    heard = hear(clicks(at), 32_000)
    assert heard.onsets_s == pytest.approx(at, abs=0.03)
    assert [i for i, held in enumerate(heard.d2mgan) if held] == [0, 2, 3, 5, 6]


def test_the_strength_asked_for_finds_accents_of_training_songs_best(monkeypatch: pytest.MonkeyPatch) -> None:
    at = (1.3, 2.9, 5.2, 6.1, 8.4)
    songs = [song(np.random.default_rng([7, n]), "train", 10, accents_s=at, hushed=n % 2 == 0) for n in range(12)]

    chosen = evaluate.STRENGTH

    def f1(strength: float) -> float:
        monkeypatch.setattr(evaluate, "STRENGTH", strength)
        return float(np.mean([agreement(hear(s.audio, RATE).onsets_s, s.accents_s, 0.07).f1 for s in songs]))

    assert f1(0.25) < f1(chosen) > f1(0.65)


def test_silence_has_neither_onsets_nor_beats() -> None:
    assert hear(np.zeros(64_000, np.float32), 32_000) == Heard((), (), (False, False), (False, False))


def test_music_that_follows_scores_high_and_music_that_does_not_low() -> None:
    cuts = [0.8, 2.12, 3.68, 5.0, 6.6]
    following, other = hear(clicks(cuts), 32_000), hear(clicks([1.4, 2.8, 4.4, 5.8, 7.2]), 32_000)
    good, bad = follows(following, cuts, following), follows(other, cuts, following)
    assert good.keys() == evaluate.DEFINITIONS.keys()
    assert (good["onset_f1_70ms"], good["bhs_d2mgan"], good["bcs_loris"]) == (1.0, 1.0, 1.0)
    assert bad["onset_f1_150ms"] == 0.0
    with pytest.raises(ValueError, match="without cuts"):
        follows(following, [], following)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [interval(rng.normal(0.5, 0.2, (1, 40)), seed=i) for i in range(200)]
    assert 0.89 < np.mean([f.low <= 0.5 <= f.high for f in found]) < 0.99
    assert found[0].n == 40


def test_interval_leaves_out_videos_a_metric_is_not_defined_on() -> None:
    found = interval(np.array([[1.0, math.nan, 3.0], [1.0, 2.0, 3.0]]))
    assert (found.mean, found.n) == (2.0, 4)
    with pytest.raises(ValueError, match="no values"):
        interval(np.full((1, 2), math.nan))


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = interval(np.tile(np.linspace(0, 1, 30), (3, 1)))
    apart = interval(np.linspace(0, 1, 30) + np.array([[-0.5], [0.0], [0.5]]))
    assert apart.high - apart.low > 1.5 * (alike.high - alike.low)
