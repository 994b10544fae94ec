"""Codes of sound and picture, the index, and the groups made of what is shared."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ReleaseSettings
from pipeline.fingerprint import (
    Catalogue,
    Codes,
    GroupIds,
    Groups,
    Pair,
    PictureCodes,
    SoundCodes,
    forget,
    leakage,
)
from pipeline.fingerprint.codes import CROPS, PICTURE_HZ, SOUND_HZ, distance, mirrored, picture_code
from pipeline.fingerprint.index import Hits
from pipeline.fingerprint.match import LEAST_S, match
from pipeline.release import split_of
from pipeline.storage import Store
from tests.truth.reencodes import made_pictures

RATE = 22_050


def melody(seed: int, seconds: float, *, speed: float = 1.0) -> np.ndarray:
    """[n] float32: random notes, three a second; `speed` shifts pitch and time alike."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE * speed
    hz = rng.choice(220 * 2 ** (np.arange(36) / 12), 3 * 200)
    at = (t * 3).astype(int)
    tone = sum(np.sin(2 * np.pi * k * hz[at] * t) / k for k in (1, 2, 3))
    return (0.2 * tone * np.exp(-(t * 3 % 1) * 2)).astype(np.float32)


def sound(seed: int, seconds: float = 20.0, **kwargs: float) -> Codes:
    codes = SoundCodes(RATE)
    codes.feed(melody(seed, seconds, **kwargs))
    return codes.finish()


def pictures(seed: int, seconds: float = 20.0, start_s: float = 0.0) -> Codes:
    codes = PictureCodes()
    for time, picture in made_pictures(np.random.default_rng(seed), start_s + seconds, 8):
        if time >= Fraction(start_s):
            codes.feed(time - Fraction(start_s), picture)
    return codes.finish()


def named(store: Store, kind: str, sources: dict[str, Codes]) -> list[str]:
    """Stores fingerprints under ids made of their names."""
    names = []
    for name, codes in sources.items():
        names.append(f"fingerprints/{name:0<16}-{kind}.npz")
        with store.write(names[-1]) as path:
            codes.to_file(path)
    return names


def shared(store: Store, kind: str, names: list[str]) -> dict[tuple[str, str], list]:
    found: dict[tuple[str, str], list] = {}
    for _, stretches in Catalogue(store, kind).take(names):
        for s in stretches:
            found.setdefault((s.source_id.rstrip("0"), s.other_id.rstrip("0")), []).append(s.match)
    return found


def test_blocks_of_any_length_give_the_same_codes():
    audio = melody(1, 8)
    whole, parts = SoundCodes(RATE), SoundCodes(RATE)
    whole.feed(audio)
    for piece in np.split(audio, [1, 700, 701, 40_000, 90_001]):
        parts.feed(piece)
    assert np.array_equal(whole.finish().bits, parts.finish().bits)
    assert len(whole.finish().bits) == pytest.approx(8 * SOUND_HZ - 16, abs=2)


def test_silence_steady_tones_and_plain_pictures_have_no_codes():
    for audio in (np.zeros(5 * RATE), 0.3 * np.sin(2 * np.pi * 440 * np.arange(5 * RATE) / RATE)):
        codes = SoundCodes(RATE)
        codes.feed(audio.astype(np.float32))
        assert not codes.finish().bits[1:-1].any()  # a tone begins and ends
    assert not picture_code(np.full((72, 128, 3), 90, np.uint8)).any()


def test_codes_stand_on_their_grid_at_any_rate_of_pictures():
    scenes = [picture for _, picture in made_pictures(np.random.default_rng(3), 4, 1)]
    codes = PictureCodes()
    for i, scene in enumerate(scenes):  # shown from 0, 1.1, 2.2, 3.3 s
        codes.feed(Fraction(11 * i, 10), scene)
    bits = codes.finish().bits
    shown = [int(k / PICTURE_HZ / 1.1 + 1e-9) for k in range(len(bits))]
    assert bits.shape == (14, len(CROPS))
    assert all(np.array_equal(row, picture_code(scenes[k])) for row, k in zip(bits, shown, strict=True))


def test_a_mirror_images_code_is_known_without_it():
    for _, picture in made_pictures(np.random.default_rng(5), 3, 2):
        code, turned = picture_code(picture), picture_code(np.ascontiguousarray(picture[:, ::-1]))
        assert distance(mirrored(code), turned).max() <= 2
        assert distance(code, turned).min() > 8


def test_what_was_uploaded_again_is_found_at_its_times(tmp_path: Path):
    store = Store(tmp_path)
    others = {f"c{i}": sound(100 + i) for i in range(20)}
    names = named(store, "sound", {"a": sound(1, 30), **others, "b": sound(1, 20, speed=1.02)})
    found = shared(store, "sound", names)
    assert list(found) == [("b", "a")]
    (match,) = found["b", "a"]
    assert match.speed == pytest.approx(1.02, abs=0.004)
    assert match.first == pytest.approx((1000, 19_000), abs=700)
    assert match.second == pytest.approx((1020, 19_380), abs=800)


@pytest.mark.parametrize("count", [1, 9, 12, 40])
def test_sources_shorter_than_what_is_averaged_over_are_compared_too(count: int):
    bits = np.random.default_rng(3).integers(1, 2**63, (count, 1), dtype=np.uint64)
    rows, straight = np.arange(count), np.zeros(count, bool)
    found = match(Codes(4, 0, bits), Codes(4, 0, bits), Hits(np.zeros(count, np.int64), rows, rows, straight))
    assert len(found) == (count / 4 >= LEAST_S)


def test_a_part_of_a_mirrored_picture_is_found(tmp_path: Path):
    store = Store(tmp_path)
    part = pictures(2, 10, start_s=6.0)
    turned = Codes(part.hz, 0, np.stack([mirrored(part.bits[:, v]) for v in range(len(CROPS))], axis=1))
    others = {f"c{i}": pictures(100 + i) for i in range(10)}
    found = shared(store, "picture", named(store, "picture", {"a": pictures(2), **others, "b": turned}))
    assert list(found) == [("b", "a")]
    match = max(found["b", "a"], key=lambda m: m.seconds)
    assert match.mirror
    assert match.seconds > 8
    assert match.second[0] - match.first[0] == pytest.approx(6000, abs=500)


def test_a_card_that_many_videos_show_joins_none_of_them(tmp_path: Path):
    card = next(made_pictures(np.random.default_rng(9), 1, 1))[1]
    sources = {}
    for i in range(6):
        codes = PictureCodes()
        for k in range(40):
            codes.feed(Fraction(k, 4), card)
        sources[f"a{i}"] = codes.finish()
    store = Store(tmp_path)
    assert shared(store, "picture", named(store, "picture", sources)) == {}


def test_the_index_finds_the_same_however_it_grew(tmp_path: Path):
    sources = {chr(ord("a") + i): sound(i % 5, 12) for i in range(15)}
    at_once, one_by_one = Store(tmp_path / "a"), Store(tmp_path / "b")
    whole = shared(at_once, "sound", named(at_once, "sound", sources))
    grown: dict[tuple[str, str], list] = {}
    for name in named(one_by_one, "sound", sources):
        grown |= shared(one_by_one, "sound", [name])
    assert grown == whole
    assert len(whole) == 15  # three copies of each of five melodies make three pairs
    segments = [name for name in one_by_one.names("fingerprint_index") if name.endswith(".npz")]
    assert len(segments) <= 4, "they are joined as they come"
    assert shared(one_by_one, "sound", []) == {}


def test_what_is_forgotten_is_found_no_more(tmp_path: Path):
    store = Store(tmp_path)
    first, second = named(store, "sound", {"a": sound(1), "b": sound(2)})
    shared(store, "sound", [first, second])
    forget(store, ["a".ljust(16, "0")])
    assert Catalogue(store, "sound").names == {second}
    assert len(store.names("fingerprint_index")) == 2, "the list, and one segment"
    (again,) = named(store, "sound", {"c": sound(1)})
    assert shared(store, "sound", [again]) == {}


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=15))
def test_groups_are_the_connected_parts_named_by_their_first(links: list[tuple[int, int]]):
    groups = Groups()
    for k in range(12):
        groups.add(f"v{k}")
    part = list(range(12))
    for a, b in links:
        groups.join(f"v{a}", f"v{b}")
        part = [min(part[a], part[b]) if p in (part[a], part[b]) else p for p in part]
    assert [groups.first(f"v{k}") for k in range(12)] == [f"v{p}" for p in part]


def test_a_video_that_no_other_is_joined_with_is_a_group_without_being_added():
    groups, empty = Groups(), Groups()
    groups.add("v1")
    assert empty.id("v1") == groups.id("v1") != groups.id("v2")


def test_ids_of_groups_are_those_of_a_dict():
    made = {f"{7 * k % 100:016x}": f"{k % 10:016x}" for k in range(100)}
    ids = GroupIds(made.items())
    assert (dict(ids), len(ids)) == (made, 100)
    assert list(ids) == sorted(made)
    for unknown in ("f" * 16, "0" * 15 + "z", ""):
        assert unknown not in ids
    assert dict(GroupIds([])) == {}


def test_splits_by_group_leak_nothing_and_splits_by_id_do():
    settings = ReleaseSettings(validation_share=0.3, test_share=0.3)
    pairs = [Pair(f"v{2 * k}", f"v{2 * k + 1}", 10.0, 0.0) for k in range(40)]
    groups = Groups()
    for k in range(80):
        groups.add(f"v{k}")
    for pair in pairs:
        groups.join(pair.first, pair.second)
    assert leakage(pairs, lambda name: split_of(groups.id(name), settings)).apart == 0
    torn = leakage(pairs, lambda name: split_of(name, settings))
    assert torn.apart > 10
    assert torn.apart_s == 10 * torn.apart


def test_pairs_say_what_they_share():
    assert Pair("a", "b", 20.0, 0.0).kind == "same_sound"
    assert Pair("a", "b", 0.0, 20.0).kind == "same_picture"
    assert Pair("a", "b", 20.0, 19.0).kind == "both"
    assert Pair("a", "b", 4.0, 5.0).joins(5.0)
    assert not Pair("a", "b", 4.0, 4.9).joins(5.0)
