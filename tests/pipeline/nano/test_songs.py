"""Songs: what is known of them holds in their sound."""

import itertools

import librosa
import numpy as np
import pytest

from pipeline.nano import songs
from pipeline.nano.songs import RATE, Song, song


@pytest.fixture(scope="module")
def accented() -> list[Song]:
    at = (0.5, 1.3, 3.777, 4.2, 6.9)
    return [song(np.random.default_rng(seed), "test", 8, accents_s=at) for seed in range(6)]


def test_a_song_depends_on_its_seed_and_split_alone():
    first, again = (song(np.random.default_rng(3), "test", 4) for _ in range(2))
    assert np.array_equal(first.audio, again.audio)
    assert (first.caption, first.tempo_bpm, first.accents_s) == (again.caption, again.tempo_bpm, again.accents_s)
    other = song(np.random.default_rng(4), "test", 4)
    assert not np.array_equal(first.audio, other.audio)


def test_songs_have_the_length_asked_for_and_sound_to_the_end(accented: list[Song]):
    for each in accented:
        assert each.audio.shape == (8 * RATE,) and each.audio.dtype == np.float32
        assert np.abs(each.audio).max() == pytest.approx(0.9, abs=1e-3)
        assert np.abs(each.audio[-2 * RATE :]).max() > 0.005


def test_a_short_score_is_played_again_from_a_whole_bar():
    notes = np.array([[0, 1, 60, 0], [5, 2, 62, 0]], float)
    repeated = songs._repeated(notes, 20)
    assert repeated[:, 0].tolist() == [0, 5, 8, 13, 16, 21]
    assert repeated[:, 1:].tolist() == notes[:, 1:].tolist() * 3


def test_accents_stand_out_of_the_music_where_they_were_asked_for(accented: list[Song]):
    """The onset strength at every accent is above the 99th percentile of what lies away from accents."""
    for each in accented:
        strength = librosa.onset.onset_strength(y=each.audio, sr=RATE, hop_length=320)
        distance = np.abs(np.arange(len(strength))[:, None] * 0.01 - np.array(each.accents_s)).min(axis=1)
        elsewhere = np.quantile(strength[distance > 0.1], 0.99)
        for at in each.accents_s:
            centre = round(at * 100)
            assert strength[centre - 5 : centre + 6].max() > elsewhere


def test_only_a_hushed_song_dips_before_its_accents(accented: list[Song]):
    """Energy of the 40 ms before an accent against that of the 300 ms before the dip."""

    def dips(each: Song) -> list[float]:
        at = [round(a * RATE) for a in each.accents_s]
        level = [np.sqrt(np.mean(each.audio[b - 11_200 : b - 1_920] ** 2)) for b in at]
        return [float(np.sqrt(np.mean(each.audio[b - 1_280 : b] ** 2))) / n for b, n in zip(at, level, strict=True)]

    plain = [
        song(np.random.default_rng(seed), "test", 8, accents_s=each.accents_s, hushed=False)
        for seed, each in enumerate(accented)
    ]
    assert np.median(np.concatenate([dips(each) for each in accented])) < 0.2
    assert np.median(np.concatenate([dips(each) for each in plain])) > 0.5


def test_random_accents_come_in_half_of_the_songs_and_are_irregular():
    drawn = [songs._random_accents(np.random.default_rng(seed), 30) for seed in range(400)]
    present = [d for d in drawn if d]
    assert 0.4 < len(present) / len(drawn) < 0.6
    gaps = [b - a for d in present for a, b in itertools.pairwise(d)]
    assert min(gaps) >= songs.GAP_S
    assert np.std(gaps) > 0.5 * np.mean(gaps)
    assert 0.15 < np.mean([len(d) / 30 for d in present]) < 1


def test_no_accents_can_be_asked_for_and_captions_tell_of_them(accented: list[Song]):
    without = song(np.random.default_rng(0), "test", 4, accents_s=())
    assert without.accents_s == () and "accents" not in without.caption
    assert all("accents" in each.caption for each in accented)


def test_captions_tell_tempo_kind_instruments_key_and_mood(accented: list[Song]):
    for each in accented:
        words = each.caption.split()
        limits = {"slow": (60, 84), "moderate": (84, 112), "lively": (112, 144), "fast": (144, 180)}
        low, high = limits[words[0]]
        assert low <= each.tempo_bpm <= high
        assert any(name in each.caption for name in songs._LEADS.values())
        key, mood = each.caption.split(", ")[1:]
        assert key.endswith(("major", "minor"))
        assert (mood in ("sad", "tense")) == key.endswith("minor")
