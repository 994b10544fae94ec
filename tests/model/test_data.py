"""The loader: what an epoch holds, who reads which part of it, how crops lie, and what damage does."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import data
from model.data import Batch, Clips, Loader, in_order, joined, open_release
from model.rhythm import Rhythm
from model.settings import RhythmSettings
from pipeline.errors import SettingsError, ShardError
from pipeline.shards import Row, Shard, write_shard
from tests.model.releases import release_of, toy_release
from tests.rows import SPEC, make_row

ROWS = 150


def numbered(name: str, number: int, seconds: float) -> Row:
    """A clip whose samples say which clip and which second they are of; seconds may end in .5."""
    row = make_row(name, 0, round(1000 * seconds))
    t1, t25, t50 = len(row.clip_global), len(row.patch_distance), row.codes.shape[1]
    columns = {
        "clip_global": np.broadcast_to(np.arange(t1)[:, None], (t1, SPEC.vision_dim)),
        "patch_distance": np.arange(t25) // 25,
        "codes": np.stack([np.arange(t50) // 50, np.full(t50, number % 64), np.full(t50, number // 64), np.zeros(t50)]),
    }
    return dataclasses.replace(row, **{n: v.astype(getattr(row, n).dtype) for n, v in columns.items()})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shards of 80, 40 and 30 clips; clip n lasts 1 + n % 4 s and says its number."""
    folder, found, number = tmp_path_factory.mktemp("shards"), [], 0
    for i, size in enumerate((80, 40, 30)):
        rows = [numbered(f"source {n}", n, 1 + n % 4) for n in range(number, number + size)]
        found.append(folder / f"train-{i:05d}-of-00003.parquet")
        write_shard(found[-1], sorted(rows, key=lambda row: row.clip_id), SPEC)
        number += size
    return found


@pytest.fixture
def clips(paths: list[Path]) -> Clips:
    return Clips(paths, crop_s=2, reduction="patch_distance")


def numbers(batch: Batch) -> list[int]:
    """The clips in a batch."""
    return (batch.codes[:, 1, 0] + 64 * batch.codes[:, 2, 0]).tolist()


def read(clips: Clips, size: int, batches: int, start: int = 0, **kwargs: int) -> list[Batch]:
    loader = Loader(clips, size, seed=3, **kwargs)
    loader.position = start
    stream = iter(loader)
    found = [next(stream) for _ in range(batches)]
    stream.close()
    return found


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        for field in dataclasses.fields(Batch):
            assert torch.equal(getattr(a, field.name), getattr(b, field.name))


def test_the_longest_clip_is_looked_for_as_far_as_need_be(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clips.longest_s(5) == 4
    monkeypatch.setattr(clips, "groups", clips.groups[:1])
    assert clips.longest_s(3) >= 3


def test_every_epoch_has_every_clip_once_in_an_order_of_its_own(clips: Clips) -> None:
    seen = [n for batch in read(clips, 10, 3 * ROWS // 10) for n in numbers(batch)]
    epochs = [seen[i * ROWS : (i + 1) * ROWS] for i in range(3)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_run_on_across_the_end_of_an_epoch(clips: Clips) -> None:
    seen = [n for batch in read(clips, 7, 43) for n in numbers(batch)]
    assert sorted(seen[:ROWS]) == list(range(ROWS))
    assert Counter(seen[ROWS : 2 * ROWS]) == Counter(range(ROWS))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_what_one_would_read_in_larger_batches(clips: Clips, world: int) -> None:
    ranks = [read(clips, 4, 60, rank=r, world=world) for r in range(world)]
    assert_same([joined(list(parts)) for parts in zip(*ranks, strict=True)], read(clips, 4 * world, 60))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_batches(clips: Clips, paths: list[Path], workers: int) -> None:
    fresh = Clips(paths, crop_s=2, reduction="patch_distance")
    assert_same(read(fresh, 8, 40, workers=workers), read(clips, 8, 40, workers=3))


def test_a_position_is_gone_on_from_exactly(clips: Clips, paths: list[Path]) -> None:
    whole = read(clips, 8, 40)
    loader = Loader(clips, 8, seed=3)
    stream = iter(loader)
    for _ in range(13):
        next(stream)
    stream.close()
    assert loader.position == 13
    fresh = Clips(paths, crop_s=2, reduction="patch_distance")
    assert_same(read(fresh, 8, 27, start=13, workers=3), whole[13:])


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 10_000), buffer=st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_an_epoch_goes_through_the_shards_in_buffers_of_row_groups(
    paths: list[Path], seed: int, epoch: int, buffer: int
) -> None:
    clips = Clips(paths, crop_s=2, reduction="patch_distance")
    before, data.BUFFER_GROUPS = data.BUFFER_GROUPS, buffer
    try:
        order = clips.order(seed, epoch)
    finally:
        data.BUFFER_GROUPS = before
    assert sorted(order.rows) == list(range(ROWS)) and order.ends[-1] == ROWS
    assert ((order.offsets >= 0) & (order.offsets < 1)).all()
    groups = np.searchsorted(clips.first, order.rows, side="right") - 1
    places = [np.flatnonzero(groups == g) for g in range(len(clips.groups))]
    for begin, end in pairwise([0, *order.ends]):
        inside = [p for p in places if begin <= p[0] < end]
        assert 0 < len(inside) <= buffer and all(p[-1] < end for p in inside)
    if buffer == 1:  # a shard is left only when it is read
        shards = [clips.groups[g][0].path for g in groups]
        assert sum(a != b for a, b in pairwise(shards)) == 2


def test_a_row_group_is_read_once_an_epoch_whatever_the_workers(
    clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[tuple[Path, int]] = Counter()
    original = Shard.read

    def counted(self: Shard, group: int, columns: tuple[str, ...]) -> list:
        reads[self.path, group] += 1
        return original(self, group, columns)

    monkeypatch.setattr(Shard, "read", counted)
    read(clips, 10, 3 * ROWS // 10, workers=4)
    assert len(reads) == len(clips.groups) and set(reads.values()) <= {3, 4}  # one epoch is read ahead


def test_crops_start_at_whole_seconds_and_the_three_rates_agree(clips: Clips) -> None:
    starts: dict[int, set[int]] = {}
    for batch in read(clips, 10, 90):
        for i, number in enumerate(numbers(batch)):
            seconds = min(2, 1 + number % 4)
            start = int(batch.codes[i, 0, 0])
            expected = start + np.arange(seconds)
            assert batch.codes[i, 0, : 50 * seconds].tolist() == np.repeat(expected, 50).tolist()
            assert batch.curve[i, : 25 * seconds].tolist() == np.repeat(expected, 25).tolist()
            assert batch.clip_global[i, :seconds, 7].tolist() == expected.tolist()
            starts.setdefault(1 + number % 4, set()).add(start)
    assert starts == {1: {0}, 2: {0}, 3: {0, 1}, 4: {0, 1, 2}}


def test_short_clips_are_padded_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    row = make_row("short", 0, 1500)
    write_shard(path, [row], SPEC)
    batch = Clips([path], crop_s=3, reduction="cls_distance").crops(np.array([0]), np.array([0.99]))
    assert batch.codes.shape == (1, 4, 150) and batch.codes.dtype == torch.int64
    assert batch.valid[0].tolist() == [True] * 75 + [False] * 75
    assert batch.present[0].tolist() == [True, True, False]  # samples at 0 and 1 s
    assert batch.codes[0, :, :75].numpy().tolist() == row.codes.tolist() and not batch.codes[..., 75:].any()
    assert np.array_equal(batch.clip_global[0, :2].numpy(), row.clip_global.astype(np.float32))
    assert np.array_equal(batch.curve[0, :38].numpy(), row.cls_distance.astype(np.float32))
    assert not batch.clip_global[0, 2:].any()


@pytest.mark.parametrize("end_ms", [1490, 1500, 1505, 1510])
def test_the_curve_of_a_padded_clip_reaches_its_last_code(tmp_path: Path, end_ms: int) -> None:
    """The rates are rounded apart: of 1490 ms there are 75 codes and 37 samples, the last code without one."""
    path = tmp_path / "train-00000-of-00001.parquet"
    row = make_row("short", 0, end_ms)
    write_shard(path, [row], SPEC)
    batch = Clips([path], crop_s=3, reduction="patch_distance").crops(np.array([0]), np.zeros(1))
    frames = row.codes.shape[1]
    rhythm = Rhythm(RhythmSettings(init="default"), 4, 8)
    padded = rhythm(batch.curve, 150, valid=batch.valid)
    alone = rhythm(torch.from_numpy(row.patch_distance.astype(np.float32))[None], frames)
    for layer, rows in padded.items():
        torch.testing.assert_close(rows[:, :frames], alone[layer])


def test_the_preset_chooses_the_curve(paths: list[Path]) -> None:
    flat = Clips(paths, crop_s=1, reduction="patch_distance_flat").crops(np.array([5]), np.zeros(1)).curve
    row = Shard(paths[0]).read(0)[5]
    assert np.array_equal(flat[0].numpy(), row["patch_distance_flat"][:25].astype(np.float32))


def test_validation_goes_through_the_split_once_on_any_number_of_ranks(clips: Clips) -> None:
    everything = [n for batch in in_order(clips, 7, most=1000) for n in numbers(batch)]
    assert sorted(everything) == list(range(ROWS))
    ranks = [[n for b in in_order(clips, 7, most=1000, rank=r, world=4) for n in numbers(b)] for r in range(4)]
    assert sorted(chain.from_iterable(ranks)) == list(range(ROWS))
    some = [len(batch) for batch in in_order(clips, 4, most=9)]
    assert some == [4, 4, 1]
    rows = {n for batch in in_order(clips, 4, most=9) for n in numbers(batch)}
    assert len(rows) == 9 and {n >= 120 for n in rows} == {True, False}  # spread over all shards


@pytest.mark.parametrize("workers", [1, 3])
def test_a_flipped_byte_is_one_clear_error(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    rows = sorted((make_row(f"source {i}", 0, 3000) for i in range(40)), key=lambda row: row.clip_id)
    write_shard(path, rows, SPEC)
    content = bytearray(path.read_bytes())
    content[content.find(rows[20].codes.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    clips = Clips([path], crop_s=2, reduction="patch_distance")
    with pytest.raises(ShardError, match=rf"{path.name} is damaged in row group 0 .* column codes"):
        read(clips, 4, 10, workers=workers)


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    write_shard(path, [], SPEC)
    with pytest.raises(SettingsError, match="no clips to train on"):
        Loader(Clips([path], crop_s=2, reduction="patch_distance"), 4, seed=0)
    with pytest.raises(ShardError, match="no shards to read"):
        Clips([], crop_s=2, reduction="patch_distance")


def test_shards_of_different_making_are_not_mixed(tmp_path: Path) -> None:
    one, two = tmp_path / "train-00000-of-00002.parquet", tmp_path / "train-00001-of-00002.parquet"
    write_shard(one, [make_row("a")], SPEC)
    write_shard(two, [make_row("b")], dataclasses.replace(SPEC, settings="1" * 64))
    with pytest.raises(ShardError, match=f"{two.name} was made with other models or settings"):
        Clips([one, two], crop_s=2, reduction="patch_distance")


def test_shards_of_another_schema_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001.parquet"
    write_shard(path, [make_row("a")], SPEC)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"dvmset.schema_version": b"2"}), path)
    with pytest.raises(ShardError, match="has schema version 2; this dvmset reads version 1"):
        Clips([path], crop_s=2, reduction="patch_distance")


def test_a_release_says_what_it_is(tmp_path: Path) -> None:
    folder = toy_release(tmp_path)
    release = open_release(folder)
    assert release.id == folder.name == f"r-{release.digest[:12]}"
    assert {split: len(paths) for split, paths in release.shards.items()} == {"train": 3, "validation": 1, "test": 1}
    other = open_release(release_of(tmp_path / "other", [make_row("source 1", 0, 3000)], SPEC))
    assert other.digest != release.digest


def test_a_release_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"nowhere is not a release: it has no manifest\.json"):
        open_release(tmp_path / "nowhere")
    folder = toy_release(tmp_path)
    shard = folder / "train-00001-of-00003.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ShardError, match=f"{shard.name} is missing or not of {len(content)} bytes"):
        open_release(folder)
    shard.unlink()
    with pytest.raises(ShardError, match=f"{shard.name} is missing"):
        open_release(folder)
    (folder / "manifest.json").write_text(json.dumps({"id": "r-1"}))
    with pytest.raises(ShardError, match=r"manifest.json can't be read: KeyError\('shards'\)"):
        open_release(folder)
