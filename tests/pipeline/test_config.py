"""Profiles: found by name or path, overridden, refused with a reason, and keyed by what changes the output only."""

from pathlib import Path

import pytest

from pipeline.config import PROFILES, load_profile, names_in
from pipeline.errors import SettingsError


@pytest.mark.parametrize("name", names_in(PROFILES))
def test_bundled_profiles_load(name: str) -> None:
    assert load_profile(name).name == name


def test_an_override_changes_the_digest_and_an_operational_one_does_not() -> None:
    plain = load_profile("nano")
    assert load_profile("nano", ["verdict.music_min=0.4"]).digest() != plain.digest()
    assert load_profile("nano", ["fetch.threads=7"]).digest() == plain.digest()
    assert load_profile("nano", ["fetch.threads=7"]).fetch.threads == 7


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("verdict.no_such=1", "no_such"),
        ("nowhere.x=1", "nowhere"),
        ("clips.max_s=-3", "max_s"),
        ("clips.max_s", "clips.max_s"),
        ("max_s=3", "max_s"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(override: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load_profile("nano", [override])


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["clips.maxs=3"], "Did you mean clips.max_s?"),
        (["clip.max_s=3", "verdict.music=1"], "Did you mean verdict.music_min or clips?"),
        (["lufs=-20"], "Did you mean codec.lufs?"),
        (["zebra=1"], ""),
        (["clips.max_s=-3"], ""),
    ],
)
def test_a_misspelt_setting_is_answered_with_those_that_are_like_it(overrides: list[str], hint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_profile("nano", overrides)
    assert caught.value.hint == hint


def test_a_profile_can_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("clips: {max_s: 30}\n")
    mine = load_profile(str(path))
    assert (mine.name, mine.clips.max_s) == ("mine", 30)
    path.write_text("clips: [1")
    with pytest.raises(SettingsError, match="not YAML"):
        load_profile(str(path))
    with pytest.raises(SettingsError, match="nano"):
        load_profile("no-such-profile")
