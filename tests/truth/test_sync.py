"""Beeps stay with their flashes through every container, download, token and written file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import media
from pipeline.config import load_profile
from pipeline.process.decide import OUT_OF_SYNC, decide
from tests.truth import sync

NAMES = list(sync.CASES)


@pytest.mark.parametrize("name", NAMES)
def test_decoded_sound_and_picture_are_as_far_apart_as_they_were_made(tmp_path: Path, name: str):
    path, delay_s = sync.write(sync.CASES[name], tmp_path, "a")
    errors = sync.decoded(path, delay_s)
    assert len(errors) >= 4
    assert sync.worst(errors) <= sync.LIMIT_MS


@pytest.mark.parametrize("name", ["mp4, picture starts 320 ms late", "mkv, AAC", "ts that starts at 10 s"])
def test_new_sound_under_old_pictures_is_in_sync(tmp_path: Path, name: str):
    path, _ = sync.write(sync.CASES[name], tmp_path, "a")
    assert sync.worst(sync.written(path, tmp_path)) <= sync.LIMIT_MS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mp4, beeps 250 ms late", "ts that starts at 10 s"])
def test_rhythm_curves_and_tokens_are_in_sync(tmp_path: Path, name: str):
    path, delay_s = sync.write(sync.CASES[name], tmp_path, "a")
    assert sync.worst(sync.in_tokens(path, delay_s)) <= sync.LIMIT_MS


def test_a_stream_of_segments_is_in_sync_when_it_has_been_fetched(tmp_path: Path):
    assert sync.worst(sync.downloaded("list.m3u8", tmp_path / "a", sync.into_hls)) <= sync.LIMIT_MS


def test_a_source_whose_sound_starts_far_from_its_picture_is_dropped(tmp_path: Path):
    path, _ = sync.write(sync.CASES["mp4, sound starts 400 ms late"], tmp_path, "a")
    info = media.probe(path)
    assert info.av_offset_ms == pytest.approx(377, abs=1)  # a frame of AAC earlier: its priming
    strict = load_profile("nano", ["sync.most_offset_ms=300"])
    curves: object = object()  # not looked at
    made = decide(strict, info.duration_ms, True, (), curves, av_offset_ms=info.av_offset_ms)  # type: ignore[arg-type]
    assert [(span.start_ms, span.end_ms, span.reason) for span in made.spans] == [(0, info.duration_ms, OUT_OF_SYNC)]
