"""What people's words come to, how agreement is counted, which windows are near the threshold, what is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clips import Span, cut_spans
from pipeline.config import Profile, VerdictSettings
from pipeline.ledger import ReviewRow
from pipeline.music import Curves, judge
from pipeline.review import NOBODY, ruling_of
from pipeline.review.agreement import RULES, agreements, cohens_kappa, counts
from pipeline.review.rules import FAR, Closeness, moved, thresholds

PROFILE = Profile(name="test")


@dataclass
class Said:
    """What somebody said."""

    reviewer: str
    start_ms: int
    end_ms: int
    decision: str
    split_ms: int | None = None


def ada(start_ms: int, end_ms: int, decision: str, split_ms: int | None = None) -> Said:
    return Said("Ada", start_ms, end_ms, decision, split_ms)


def bob(start_ms: int, end_ms: int, decision: str, split_ms: int | None = None) -> Said:
    return Said("Bob", start_ms, end_ms, decision, split_ms)


def curves(voice: list[float]) -> Curves:
    share = np.array(voice, np.float32)
    flat = np.zeros(len(voice), np.float32)
    stems = {"other": 10 * np.log10(np.maximum(1 - share, 1e-9)), "vocals": 10 * np.log10(np.maximum(share, 1e-9))}
    one = np.zeros(1, np.float32)
    return Curves(0, 1000 * len(voice), flat, stems, share, flat, flat + 1, flat, flat, flat, flat, one)


def spans(voice: list[float], *words: Said, cuts_s: tuple[float, ...] = ()) -> list[tuple[float, float, str]]:
    heard = curves(voice)
    verdict = judge(heard, PROFILE.verdict)
    cut = cut_spans(verdict, heard, cuts_s, duration_ms=heard.end_ms, profile=PROFILE, ruling=ruling_of(words))
    return [(s.start_ms / 1000, s.end_ms / 1000, s.reason) for s in cut]


def test_the_later_word_of_one_person_counts_where_two_overlap():
    ruling = ruling_of([ada(0, 30_000, "keep"), ada(20_000, 40_000, "drop")])

    assert ruling.kept == ((0, 20_000),) and ruling.dropped == ((20_000, 40_000),)
    assert ruling_of([ada(0, 30_000, "drop"), ada(0, 30_000, "unsure")]) == NOBODY


def test_where_people_disagree_the_rules_decide():
    ruling = ruling_of([ada(0, 30_000, "keep"), bob(10_000, 30_000, "drop")])

    assert ruling.kept == ((0, 10_000),) and ruling.dropped == ()
    assert spans([0.0] * 30, ada(0, 30_000, "keep"), bob(0, 30_000, "drop")) == spans([0.0] * 30)


def test_a_kept_window_is_a_clip_as_it_stands():
    assert spans([0.0] * 70, cuts_s=(35.0,)) == [(0, 35, ""), (35, 70, "")]
    assert spans([0.0] * 70, ada(12_345, 40_000, "keep"), cuts_s=(35.0,)) == [
        (0, 12.345, ""),
        (12.345, 40, ""),
        (40, 70, ""),
    ]


def test_a_kept_gap_that_is_too_short_for_a_clip_joins_its_neighbours():
    voice = [0.0] * 20 + [0.9] * 8 + [0.0] * 20
    assert [reason for *_, reason in spans(voice)] == ["", "voice", ""]

    assert spans(voice, ada(20_000, 28_000, "keep")) == [(0, 48, "")]


def test_a_split_holds_until_the_same_person_judges_across_it():
    split = ada(0, 40_000, "split", 15_000)
    assert spans([0.0] * 40, split) == [(0, 15, ""), (15, 40, "")]
    assert spans([0.0] * 40, split, ada(0, 15_000, "drop")) == [(0, 15, "review"), (15, 40, "")]
    assert spans([0.0] * 40, split, ada(0, 40_000, "keep")) == [(0, 40, "")]
    assert spans([0.0] * 40, split, bob(0, 40_000, "keep")) == [(0, 15, ""), (15, 40, "")]


words = st.builds(
    lambda who, a, length, decision, part: Said(
        who, a, a + length, decision, a + length * part // 10 if decision == "split" else None
    ),
    st.sampled_from(["Ada", "Bob"]),
    st.integers(0, 50_000),
    st.integers(2_000, 40_000),
    st.sampled_from(["keep", "drop", "unsure", "split"]),
    st.integers(1, 9),
)


@given(st.lists(words, max_size=6), st.lists(st.sampled_from([0.0, 0.05, 0.5]), min_size=20, max_size=90))
def test_whatever_people_say_the_spans_are_a_partition_that_does_as_they_say(said: list[Said], voice: list[float]):
    heard = curves(voice)
    ruling = ruling_of(said).for_clips(10_000, 60_000)
    verdict = judge(heard, PROFILE.verdict)
    found = cut_spans(verdict, heard, [], duration_ms=heard.end_ms, profile=PROFILE, ruling=ruling)

    assert found[0].start_ms == 0 and found[-1].end_ms == heard.end_ms
    assert all(a.end_ms == b.start_ms for a, b in pairwise(found))
    clips = [s for s in found if not s.reason]
    assert all(10_000 <= s.end_ms - s.start_ms <= 60_000 for s in clips)
    assert not any(s.start_ms < t < s.end_ms for s in clips for t in ruling.walls)
    assert not any(overlap(s, window) for s in clips for window in ruling.dropped)
    for start, end in ruling.whole:
        if end <= heard.end_ms:
            assert Span(start, end, "") in clips


def overlap(span: Span, window: tuple[int, int]) -> bool:
    return max(span.start_ms, window[0]) < min(span.end_ms, window[1])


def test_kappa_is_cohens():
    # By hand: p_o = 35 / 50, p_e = (25 * 30 + 25 * 20) / 50^2.
    pairs = [("keep", "keep")] * 20 + [("keep", "drop")] * 5 + [("drop", "keep")] * 10 + [("drop", "drop")] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([("keep", "keep"), ("drop", "drop")]) == 1
    assert cohens_kappa([("keep", "drop"), ("drop", "keep")]) == -1
    assert cohens_kappa([("keep", "keep")]) is None and cohens_kappa([]) is None


def review(by: str, window: int, decision: str, rules: str = "") -> ReviewRow:
    return ReviewRow(
        source_id="0" * 16, start_ms=window, end_ms=window + 10_000, decision=decision, rules=rules, reviewer=by
    )


def test_agreement_is_counted_over_what_both_judged_and_against_what_the_rules_said():
    reviews = [
        review("Ada", 0, "drop"),
        review("Ada", 0, "keep"),  # she thought again
        review("Ada", 1, "drop", "voice"),
        review("Ada", 2, "unsure"),
        review("Ada", 3, "keep"),
        review("Bob", 0, "keep"),
        review("Bob", 1, "keep", "voice"),
        review("Bob", 2, "drop"),
    ]

    found = {(a.first, a.second): (a.windows, a.agreed) for a in agreements(reviews)}

    assert found == {("Ada", "Bob"): (3, 1), ("Ada", RULES): (3, 3), ("Bob", RULES): (3, 1)}
    assert counts(reviews) == {"Ada": {"keep": 2, "drop": 1, "unsure": 1}, "Bob": {"keep": 2, "drop": 1}}


def test_moving_all_thresholds_far_enough_lets_everything_or_nothing_pass():
    settings = VerdictSettings()
    loosest, strictest = moved(settings, 1.0), moved(settings, -1.0)

    assert moved(settings, 0.0) == settings
    assert loosest.voice_ratio_max == 1 and loosest.music_min == 0
    assert strictest.voice_ratio_max == 0 and strictest.music_min == 1
    assert {"voice_ratio_max", "music_min", "music_share_min"} <= thresholds().keys()


def test_a_window_near_the_limit_is_closer_than_one_far_from_it():
    limit = PROFILE.verdict.voice_ratio_max
    voice = [limit * 0.95] * 20 + [limit / 3] * 20 + [limit * 1.1] * 20 + [0.97] * 20
    close = Closeness(curves(voice), PROFILE.verdict)

    kept_near, kept_far, dropped_near, dropped_far = (close.of(a, a + 20_000) for a in (0, 20_000, 40_000, 60_000))

    assert kept_near < kept_far <= FAR and dropped_near < dropped_far
    assert [close.reason(a, a + 20_000) for a in (0, 20_000, 40_000, 60_000)] == ["", "", "voice", "voice"]
