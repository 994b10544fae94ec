"""Clips: an exact partition of a source, on shot boundaries, of allowed lengths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.clips import Span, clip_id, cut_spans, drop_all, file_verdict, samples
from pipeline.config import ClipSettings, Profile, VerdictSettings
from pipeline.music import REASONS, Curves, Verdict

STANDARD = Profile(name="test")


def curves(end_ms: int, start_ms: int = 0, voice: list[float] | None = None) -> Curves:
    n = -((start_ms - end_ms) // 1000)
    share = np.array(voice if voice is not None else [0.0] * n, np.float32)
    flat = np.zeros(n, np.float32)
    stems = {"other": 10 * np.log10(np.maximum(1 - share, 1e-10)), "vocals": 10 * np.log10(np.maximum(share, 1e-10))}
    return Curves(start_ms, end_ms, flat, stems, share, flat, flat + 1, flat, flat, flat, flat, np.zeros(1, np.float32))


def verdict(reasons: list[str], music: list[bool] | None = None) -> Verdict:
    keep = np.array([r == "" for r in reasons], bool)
    return Verdict(keep, tuple(reasons), keep if music is None else np.array(music, bool))


def cut(pattern: str, cuts_s: list[float] | None = None, profile: Profile = STANDARD, **kwargs):
    """Spans of a pattern with a letter per second: `m` kept, `s` silence, `n` no music, `v` voice, `b` bridged."""
    words = {"m": "", "b": "", "s": "silence", "n": "no_music", "v": "voice"}
    reasons = [words[c] for c in pattern]
    duration = kwargs.pop("duration_ms", len(pattern) * 1000)
    start = kwargs.pop("start_ms", 0)
    measured = curves(start + len(pattern) * 1000, start, **kwargs)
    judged = verdict(reasons, [c == "m" for c in pattern])
    spans = cut_spans(judged, measured, cuts_s or [], duration_ms=max(duration, start), profile=profile)
    return [(s.start_ms / 1000, s.end_ms / 1000, s.reason) for s in spans]


def lengths(**kwargs: float) -> Profile:
    return STANDARD.model_copy(update={"clips": ClipSettings(**kwargs)})


def test_a_clip_ends_at_the_last_shot_boundary_inside_the_music():
    spans = cut("n" * 4 + "m" * 30 + "s" * 6, [2.0, 6.5, 20.0, 31.24, 36.0])

    assert spans == [
        (0, 4, "no_music"),
        (4, 6.5, "partial_shot"),
        (6.5, 31.24, ""),
        (31.24, 34, "partial_shot"),
        (34, 40, "silence"),
    ]


def test_the_edge_of_the_music_serves_where_no_boundary_is_within_reach():
    spans = cut("n" * 4 + "m" * 30 + "s" * 6, [3.9, 15.0, 28.9])

    assert spans == [(0, 4, "no_music"), (4, 34, ""), (34, 40, "silence")]


def test_a_stretch_that_boundaries_would_make_too_short_keeps_its_own_edges():
    spans = cut("s" * 5 + "m" * 11 + "s" * 5, [7.0])

    assert spans == [(0, 5, "silence"), (5, 16, ""), (16, 21, "silence")]


def test_a_long_stretch_is_split_at_shot_boundaries_and_keeps_every_second():
    spans = cut("m" * 130, [10, 30, 44, 62, 85, 90, 128.0])

    assert spans == [(0, 44, ""), (44, 85, ""), (85, 130, "")]


def test_seventy_seconds_become_two_even_clips():
    assert cut("m" * 70) == [(0, 35, ""), (35, 70, "")]
    assert cut("m" * 70, [12.0, 33.0, 60.0]) == [(0, 33, ""), (33, 70, "")]


def test_a_stretch_of_one_clip_stays_whole():
    assert cut("m" * 60, [20.0, 31.0]) == [(0, 60, "")]


def test_keeping_seconds_comes_before_even_lengths():
    shots = [58.0, 63.0]  # 58 s, 5 s, 57 s: the short one fits to neither side

    assert cut("m" * 120, shots) == [(0, 58, ""), (58, 63, "too_short"), (63, 120, "")]
    assert cut("m" * 120, [54.0, 63.0]) == [(0, 54, ""), (54, 63, "too_short"), (63, 120, "")]
    assert cut("m" * 120, [52.0, 62.0]) == [(0, 52, ""), (52, 62, ""), (62, 120, "")]


def test_a_shot_longer_than_a_clip_is_split_into_equal_parts():
    assert cut("n" + "m" * 150, [1.0, 11.0]) == [
        (0, 1, "no_music"), (1, 57.666, ""), (57.666, 104.333, ""), (104.333, 151, ""),
    ]  # fmt: skip


def test_music_shorter_than_a_clip_is_too_short():
    assert cut("s" * 3 + "m" * 9 + "n" * 4) == [(0, 3, "silence"), (3, 12, "too_short"), (12, 16, "no_music")]


def test_seconds_outside_of_the_section_say_so_and_its_ends_count_as_boundaries():
    spans = cut("m" * 20, [2.0, 6.0, 19.5, 24.0], start_ms=3500, duration_ms=60_250)

    assert spans == [(0, 3.5, "outside_section"), (3.5, 23.5, ""), (23.5, 60.25, "outside_section")]


def test_a_section_without_length_has_no_clip():
    assert cut("", start_ms=5000, duration_ms=5000) == [(0, 5, "outside_section")]


def test_a_section_that_is_not_in_the_source_is_an_error():
    with pytest.raises(ValueError, match="from 0 to 20000 ms is not within a source of 19999 ms"):
        cut("m" * 20, duration_ms=19_999)


def test_a_window_with_too_many_bridged_gaps_is_refused():
    pattern = "mmb" * 10  # a third of it is no music

    assert cut(pattern) == [(0, 30, "no_music")]


def test_a_window_with_too_much_voice_energy_is_refused_and_the_rest_is_kept():
    voice = [0.0] * 40 + [0.9] * 20 + [0.0] * 40

    spans = cut("m" * 100, [40.0, 60.0], voice=voice)

    assert spans == [(0, 40, ""), (40, 60, "voice"), (60, 100, "")]


def test_lengths_follow_the_settings():
    assert cut("m" * 40, [10.0, 20.0, 30.0], lengths(min_s=10, max_s=10)) == [
        (0, 10, ""), (10, 20, ""), (20, 30, ""), (30, 40, ""),
    ]  # fmt: skip


def test_settings_that_no_clip_can_meet_are_refused():
    with pytest.raises(ValidationError, match="max_s is less than min_s"):
        ClipSettings(min_s=30, max_s=20)


def test_a_source_without_sound_is_dropped_whole():
    assert drop_all(1234, "no_audio") == [Span(0, 1234, "no_audio")]
    assert drop_all(0, "no_audio") == []


def test_the_verdict_of_a_file_names_the_reason_of_most_time():
    assert file_verdict([Span(0, 5000, "silence"), Span(5000, 15_000, "")]) == ("keep", "")
    assert file_verdict([Span(0, 5, "silence"), Span(5, 9, "speech"), Span(9, 13, "silence")]) == ("drop", "silence")
    assert file_verdict(drop_all(9, "no_audio")) == ("drop", "no_audio")


def test_names_and_sample_counts():
    assert clip_id("0123456789abcdef", 61_500, 121_500) == "0123456789abcdef-00061500-00121500"
    assert samples(0, 10_010, 25) == 250
    assert samples(0, 10_020, 25) == 251  # 250.5, halves up
    assert samples(500, 1500, 32_000) == 32_000


@st.composite
def sources(draw: st.DrawFn) -> tuple[Verdict, Curves, list[float], int, Profile]:
    runs = draw(st.lists(st.tuples(st.sampled_from(["", "", *REASONS]), st.integers(1, 90)), max_size=12))
    reasons = [r for reason, n in runs for r in [reason] * n]
    start = draw(st.integers(0, 5000))
    end = start + max(0, len(reasons) * 1000 - draw(st.integers(0, 999)))
    music = [r == "" and draw(st.integers(0, 9)) > 0 for r in reasons]
    voice = [draw(st.sampled_from([0.0, 0.05, 0.4])) for _ in runs]
    measured = curves(end, start, [v for v, (_, n) in zip(voice, runs, strict=True) for _ in range(n)])
    cuts = draw(st.lists(st.integers(1, end + 1000), max_size=40, unique=True))
    least = draw(st.sampled_from([1.0, 5.5, 10.0]))
    most = least + draw(st.sampled_from([0.0, 7.25, 50.0]))
    chosen = ClipSettings(min_s=least, max_s=most, snap_s=draw(st.sampled_from([0.0, 2.0, 5.0])))
    profile = STANDARD.model_copy(update={"clips": chosen})
    duration = end + draw(st.integers(0, 5000))
    return verdict(reasons, music), measured, [c / 1000 for c in sorted(cuts)], duration, profile


@settings(max_examples=300, deadline=None)
@given(sources())
def test_every_millisecond_is_kept_or_dropped_once(source):
    judged, measured, cuts, duration, profile = source

    spans = cut_spans(judged, measured, cuts, duration_ms=duration, profile=profile)

    assert sum(s.end_ms - s.start_ms for s in spans) == duration
    assert [s.start_ms for s in spans] == [0, *(s.end_ms for s in spans)][: len(spans)]
    assert all(s.start_ms < s.end_ms for s in spans)
    assert all(a.reason != b.reason for a, b in pairwise(spans) if a.reason)
    assert spans == cut_spans(judged, measured, cuts, duration_ms=duration, profile=profile)


@settings(max_examples=300, deadline=None)
@given(sources())
def test_clips_have_allowed_lengths_and_hold_only_kept_seconds(source):
    judged, measured, cuts, duration, profile = source
    limits: VerdictSettings = profile.verdict

    clips = [s for s in cut_spans(judged, measured, cuts, duration_ms=duration, profile=profile) if not s.reason]

    most = profile.clips.max_s * 1000
    boundaries = {round(c * 1000) for c in cuts} | set(edges_of(judged, measured))
    for clip in clips:
        seconds = measured.window(clip.start_ms, clip.end_ms)
        assert profile.clips.min_s * 1000 <= clip.end_ms - clip.start_ms <= profile.clips.max_s * 1000
        assert judged.keep[seconds].all()
        assert judged.music[seconds].mean() >= limits.music_share_min
        assert measured.voice_share(seconds) <= limits.voice_ratio_max
        for edge in {clip.start_ms, clip.end_ms} - boundaries:  # only a shot that is too long is cut in two
            shot = max(b for b in boundaries if b < edge), min(b for b in boundaries if b > edge)
            assert shot[1] - shot[0] > most


def edges_of(judged: Verdict, measured: Curves) -> list[int]:
    """Where the stretches of music begin and end, and the section."""
    changes = np.flatnonzero(np.diff(judged.keep.astype(int))) + 1
    return [measured.start_ms, measured.end_ms, *(measured.start_ms + 1000 * int(i) for i in changes)]


@settings(max_examples=100, deadline=None)
@given(st.integers(10, 400), st.lists(st.integers(1, 399), max_size=30))
def test_unbroken_music_loses_only_what_no_clip_can_hold(seconds, cuts):
    spans = cut("m" * seconds, [float(c) for c in sorted({*cuts}) if c < seconds])

    shots = np.diff([0, *sorted({c for c in cuts if c < seconds}), seconds])
    dropped = [s for s in spans if s[2]]
    assert all(reason == "too_short" and end - start < 10 for start, end, reason in dropped)
    if (shots >= 10).all():
        assert dropped == []
