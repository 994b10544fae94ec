"""Changes of track, gaps, the gate before separation, and clip ends on beats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from pipeline.clips import OFF_BEAT, Span, cut_spans
from pipeline.config import ClipSettings, MusicSettings, Profile, VerdictSettings
from pipeline.music import Curves, Verdict, beats, changes_ms, judge, measure, novelty, window_reason
from pipeline.music.meters import Onsets
from pipeline.review import Ruling

RATE = 22_050
STANDARD = Profile(name="test")


def curves(seconds: int, change_s: float | None = None, gaps_ms: list[tuple[int, int]] | None = None) -> Curves:
    """Music without voices, of another colour from `change_s` on."""
    rng = np.random.default_rng(0)
    rows = 2 * seconds
    timbre, chroma = rng.normal(0, 2, (rows, 13)), rng.uniform(0.5, 1.5, (rows, 12))
    chroma[:, [0, 4, 7]] += 4
    if change_s is not None:
        timbre[round(2 * change_s) :] += 40 * np.cos(np.arange(13))
        chroma[round(2 * change_s) :] = np.roll(chroma[round(2 * change_s) :], 1, axis=1)
    chroma /= chroma.sum(axis=1, keepdims=True)
    flat, nothing = np.ones(seconds, np.float32), np.zeros(seconds, np.float32)
    levels = {"other": flat - 20, "vocals": flat - 100}
    measured = Curves(
        0, 1000 * seconds, flat - 20, levels, nothing, nothing, flat, nothing, nothing, nothing, nothing, nothing
    )
    gaps = np.array(gaps_ms or [], np.int32).reshape(-1, 2)
    return replace(measured, timbre=timbre, chroma=chroma, gaps_ms=gaps)


def clips(measured: Curves, profile: Profile = STANDARD, ruling: Ruling = Ruling()) -> list[Span]:  # noqa: B008
    verdict = judge(measured, profile.verdict)
    spans = cut_spans(verdict, measured, [], duration_ms=measured.end_ms, profile=profile, ruling=ruling)
    assert [spans[0].start_ms, spans[-1].end_ms] == [0, measured.end_ms]
    assert all(a.end_ms == b.start_ms for a, b in pairwise(spans))
    return spans


def kept(spans: list[Span]) -> list[tuple[int, int]]:
    return [(s.start_ms, s.end_ms) for s in spans if not s.reason]


def test_no_clip_runs_across_a_change_of_track():
    measured = curves(50, change_s=22.5)

    assert changes_ms(measured, STANDARD.clips) == [22_500]
    assert kept(clips(measured)) == [(0, 22_500), (22_500, 50_000)]
    assert kept(clips(curves(50))) == [(0, 50_000)]


def test_no_clip_runs_over_a_gap():
    assert kept(clips(curves(50, gaps_ms=[(20_100, 20_700)]))) == [(0, 20_100), (20_700, 50_000)]


def test_a_window_that_a_person_keeps_may_run_across_a_change():
    ruling = Ruling(kept=((10_000, 40_000),), whole=((10_000, 40_000),))

    assert (10_000, 40_000) in kept(clips(curves(50, change_s=22.5), ruling=ruling))


def test_the_start_and_the_end_are_no_changes():
    assert np.isneginf(novelty(curves(30, change_s=2.0))[[0, 7, -7]]).all()
    assert changes_ms(curves(30, change_s=2.0), ClipSettings()) == []
    assert len(novelty(replace(curves(0), timbre=np.zeros((0, 13)), chroma=np.zeros((0, 12))))) == 0


@pytest.mark.parametrize("cuts", [[], [777, 30_001, 200_000]])
def test_colours_do_not_depend_on_the_blocks(cuts):
    notes = np.repeat([261.63, 440.0], 6 * RATE)
    audio = (0.2 * np.sin(2 * np.pi * np.cumsum(notes) / RATE)).astype(np.float32)
    meter = Onsets(RATE, MusicSettings())
    for block in np.split(audio, cuts):
        meter.feed(block)
    meter.finish()

    timbre, chroma = meter.colours(12)

    assert (timbre.shape, chroma.shape) == ((24, 13), (24, 12))
    assert set(chroma[1:11].argmax(axis=1)) == {0}  # C
    assert set(chroma[13:23].argmax(axis=1)) == {9}  # A
    whole = Onsets(RATE, MusicSettings())
    whole.feed(audio)
    whole.finish()
    np.testing.assert_allclose(timbre, whole.colours(12)[0], atol=1e-3)


class Asked:
    """A separator that notes how much it is asked, and calls half of it voice."""

    sources, rate, channels, id = ("other", "vocals"), RATE, 1, "half"

    def __init__(self) -> None:
        self.samples = 0

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self.samples += block.shape[1]
            yield np.stack([block / 2, block / 2])


def test_what_is_no_music_is_not_separated(tmp_path):
    noise = np.random.default_rng(0).standard_normal(12 * RATE) * 0.02
    soundfile.write(tmp_path / "a.wav", noise, RATE)

    def measured(gate: float) -> tuple[Curves, int]:
        asked = Asked()
        settings = MusicSettings(gate_music=gate)
        stem = tmp_path / "stem.flac"
        return measure(tmp_path / "a.wav", 0, 11_400, asked, settings, stem_path=stem, stem_rate=32_000), asked.samples

    (shut, none), (opened, everything) = measured(0.9), measured(0.0)

    assert (none, everything) == (0, round(11.4 * RATE))
    assert (shut.separated_ms, opened.separated_ms) == (0, 11_400)
    assert soundfile.info(tmp_path / "stem.flac").frames == round(11.4 * 32_000)
    assert judge(shut, VerdictSettings()).reasons == judge(opened, VerdictSettings()).reasons
    assert not judge(shut, VerdictSettings(music_min=0.0)).keep.any()


def test_the_policy_holds_whatever_the_settings_say():
    def reason(music: int, voice: float, settings: VerdictSettings) -> str:
        flat = np.zeros(10, np.float32)
        levels = {"other": flat + 10 * np.log10(1 - voice), "vocals": flat + 10 * np.log10(max(voice, 1e-9))}
        measured = Curves(0, 10_000, flat, levels, flat + voice, *[flat] * 7)
        seconds = np.arange(10) < music
        return window_reason(measured, Verdict(seconds, ("",) * 10, seconds), 0, 10_000, settings)

    strict = VerdictSettings(voice_ratio_max=0.0, music_share_min=1.0)
    loose = VerdictSettings(voice_ratio_max=1.0, music_share_min=0.0)
    assert [reason(8, 0.04, s) for s in (strict, loose)] == ["", ""]
    assert [reason(8, 0.2, s) for s in (strict, loose)] == ["no_music", ""]
    assert [reason(10, 0.31, s) for s in (strict, loose)] == ["voice", "voice"]
    assert [reason(4, 0.0, s) for s in (strict, loose)] == ["no_music", "no_music"]


def test_clip_ends_snap_to_beats_and_bars():
    frame_s = 512 / RATE
    envelope = np.zeros(round(30 / frame_s), np.float32)
    hits = np.round((0.3 + 0.5 * np.arange(59)) / frame_s).astype(int)
    envelope[hits] = np.where(np.arange(59) % 4 == 1, 3.0, 1.0)
    measured = replace(curves(30), onset_envelope=envelope)

    for way in ("beat", "bar"):
        profile = STANDARD.model_copy(update={"clips": ClipSettings(snap_to=way)})
        spans = clips(measured, profile)
        ((start, end),) = kept(spans)
        found = beats(measured, 0, 30_000, profile.music)
        ticks = found.times_s if way == "beat" else found.bars_s
        assert (start, end) == (round(ticks[0] * 1000), round(ticks[-1] * 1000))
        assert {s.reason for s in spans} <= {"", OFF_BEAT}
    assert np.allclose(np.diff(found.bars_s), 2.0, atol=0.05)
    assert abs((found.bars_s[1] - 0.8) % 2.0) < 0.1 or abs((found.bars_s[1] - 0.8) % 2.0 - 2.0) < 0.1
