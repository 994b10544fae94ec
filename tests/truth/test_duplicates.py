"""Re-uploads are found again and unrelated videos left apart: the card's measurement, at a size for every run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.truth import duplicates, reencodes

pytestmark = pytest.mark.slow


def test_re_uploads_are_joined_unrelated_videos_are_not_and_splits_leak_nothing(tmp_path: Path):
    kinds = ["bit rate", "cropped by 14 %", "a logo", "pitch -2 %", "speed +2 %", "mirrored", "trimmed to 12 s"]
    sources, copies = duplicates.make_set(tmp_path, (96.0,), (1,), kinds)
    others = dict(reencodes.unrelated(50))
    found = duplicates.find(sources | others, tmp_path / "data")
    missed = [copy for copy, (original, _) in copies.items() if not found.joined(copy, original)]
    assert missed == []
    family = {name: copies[name][0] if name in copies else name for name in [*sources, *others]}
    joined = [pair for pair in found.pairs.values() if pair.joins(duplicates.SETTINGS.shared_s)]
    assert [pair for pair in joined if family[pair.first] != family[pair.second]] == []
    by_group, by_id = duplicates.leaks(found, [*sources, *others])
    assert by_group.apart == 0
    assert by_id.apart > 0, "else this shows nothing"


def test_one_track_under_another_picture_is_told_from_one_picture_with_another_sound(tmp_path: Path):
    sources, copies = duplicates.make_set(tmp_path, (), (2,), ["other sound", "other picture"])
    found = duplicates.find(sources, tmp_path / "data")
    kinds = {kind: found.pairs[frozenset((copy, original))].kind for copy, (original, kind) in copies.items()}
    assert kinds == {"other sound": "same_picture", "other picture": "same_sound"}
