"""The shard schema, its writer, reader and validator."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.shards import COLUMNS, Row, Shard, Spec, read_rows, shuffled_rows, validate, write_shard
from pipeline.shards.schema import BLOBS
from pipeline.storage import digest, file_digest
from tests.benchmarks import readers
from tests.rows import SPEC, assert_same_row, make_row

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    start_ms = draw(st.integers(0, 10**7))
    length_ms = draw(st.integers(1, 12_000))
    row = make_row(
        draw(words),
        start_ms,
        start_ms + length_ms,
        **{name: draw(words) for name in ("group_id", "category", "url", "title", "channel", "license", "verdict")},
        **{name: draw(numbers) for name in ("tempo_bpm", "lufs", "voice_ratio", "music_score", "av_offset_ms")},
        split=draw(st.sampled_from(["train", "validation", "test"])),
        reviewed=draw(st.booleans()),
        text=draw(st.none() | words),
        beat_times_s=sorted(draw(st.lists(st.floats(0, length_ms / 1000, width=32), max_size=5)))
        if length_ms % 1000 == 0
        else [],
    )
    bits = draw(st.integers(0, 2**16 - 1))  # any finite pattern, negative zero and subnormals among them
    value = np.array(bits, np.uint16).view(np.float16)
    if np.isfinite(value):
        row.cls_distance[:] = value
    return row


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Two row groups of 32 rows and one of 6, ten clips to a source."""
    made = [make_row(f"source {i // 10}", i % 10 * 10_000, i % 10 * 10_000 + 9_960) for i in range(70)]
    write_shard(tmp_path / "shard.parquet", by_id(made), SPEC)
    return tmp_path / "shard.parquet"


def by_id(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.clip_id)


def flip(path: Path, offset: int, mask: int = 0x01) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def page_of(path: Path, group: int, column: str) -> range:
    """Offsets of a column's bytes within a row group, page headers included."""
    chunk = pq.read_metadata(path).row_group(group).column(list(COLUMNS).index(column))
    assert chunk.path_in_schema.split(".")[0] == column
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    return range(first, first + chunk.total_compressed_size)


# round trip


@settings(max_examples=40, deadline=None)
@given(st.lists(rows(), max_size=40, unique_by=lambda row: row.clip_id))
def test_any_rows_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, made: list[Row]) -> None:
    path = tmp_path_factory.mktemp("shard") / "s.parquet"
    made = by_id(made)
    write_shard(path, made, SPEC)
    shard = Shard(path)
    assert (shard.rows, shard.spec) == (len(made), SPEC)
    for got, expected in zip(shard, made, strict=True):
        assert_same_row(got, expected)
        again = Row(**got)
        assert again.codes is got["codes"]


def test_same_rows_give_same_bytes(tmp_path: Path) -> None:
    made = by_id([make_row(f"source {i}") for i in range(40)])
    write_shard(tmp_path / "a", made, SPEC)
    write_shard(tmp_path / "b", iter(made), SPEC)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_row_groups_hold_32_rows_and_are_read_alone(shard: Path) -> None:
    opened = Shard(shard)
    assert (len(opened), opened.row_groups) == (70, 3)
    assert [opened.group_rows(g) for g in range(3)] == [32, 32, 6]
    every = list(opened)
    assert [r["clip_id"] for r in opened.read(2)] == [r["clip_id"] for r in every[64:]]


def test_row_groups_read_together_come_as_those_read_alone(shard: Path) -> None:
    opened = Shard(shard)
    for got, alone in zip(opened.read_several([2, 0, 1]), map(opened.read, (2, 0, 1)), strict=True):
        for row, expected in zip(got, alone, strict=True):
            assert_same_row(row, Row(**expected))
    for column in ("title", "codes"):
        flip(shard, page_of(shard, 1, column)[-3])
        with pytest.raises(ShardError, match=r"row group 1 \(rows 32 to 63\), column .*" + column):
            Shard(shard).read_several([0, 1, 2])


def test_only_the_columns_asked_for_are_read(shard: Path) -> None:
    flip(shard, page_of(shard, 0, "clip_global")[500])
    row = Shard(shard).read(0, ["codes", "clip_id"])[3]
    assert list(row) == ["codes", "clip_id"]
    assert row["codes"].shape == (4, 498)
    with pytest.raises(ShardError, match="no column loudness"):
        Shard(shard).read(0, ["loudness"])
    with pytest.raises(ShardError, match="no group 3"):
        Shard(shard).read(3)


def test_arrays_are_views_of_what_was_read(shard: Path) -> None:
    rows = Shard(shard).read(0)
    memory = [np.lib.array_utils.byte_bounds(row["clip_global"]) for row in rows]
    assert all(b[0] - a[1] == 4 for a, b in pairwise(memory)), "more than the length of a value lies between two"
    arrays = [array for row in rows for array in row.values() if isinstance(array, np.ndarray)]
    assert all(array.base is not None and array.flags.aligned for array in arrays)
    assert not any(row[name].flags.writeable for row in rows for name in BLOBS)


@pytest.mark.parametrize("layout", [{"compression": "zstd"}, {"use_dictionary": True}, {"data_page_size": 200}])
def test_rows_are_the_same_however_another_program_lays_out_the_pages(
    shard: Path, tmp_path: Path, layout: dict[str, Any]
) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(shard), other, row_group_size=32, **layout)
    for got, expected in zip(Shard(other), Shard(shard), strict=True):
        assert_same_row(got, Row(**expected))


def test_sequential_reading_keeps_the_order_and_shuffled_reading_the_rows(shard: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    write_shard(other, by_id([make_row("another", i * 10_000, i * 10_000 + 10_000) for i in range(40)]), SPEC)
    order = [row["clip_id"] for path in (shard, other) for row in Shard(path)]
    assert [row["clip_id"] for row in read_rows([shard, other], ["clip_id"])] == order
    shuffled = [[r["clip_id"] for r in shuffled_rows([shard, other], seed, ["clip_id"], block=2)] for seed in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2] != order
    assert sorted(shuffled[0]) == sorted(shuffled[2]) == sorted(order)


def test_pandas_reads_a_shard_and_its_metadata_says_how(shard: Path) -> None:
    table = pd.read_parquet(shard)
    columns = json.loads(pq.read_schema(shard).metadata[b"dvmset.columns"])
    assert columns["clip_global"] == {"dtype": "<f2", "shape": ["T1", 16], "rate_hz": 1}
    assert columns["codes"] == {"dtype": "<i2", "shape": [4, "T50"], "rate_hz": 50, "cardinality": 64}
    expected = Shard(shard).read(0)[5]
    cell = table.iloc[5]
    assert np.array_equal(np.frombuffer(cell.codes, "<i2").reshape(4, -1), expected["codes"])
    assert np.array_equal(np.frombuffer(cell.clip_global, "<f2").reshape(-1, 16), expected["clip_global"])


def test_blobs_lie_raw_and_only_ids_have_dictionaries_and_statistics(shard: Path) -> None:
    group = pq.read_metadata(shard).row_group(0)
    chunks = {group.column(i).path_in_schema.split(".")[0]: group.column(i) for i in range(group.num_columns)}
    for name in ("clip_global", "codes", "patch_distance"):
        assert chunks[name].compression == "UNCOMPRESSED"
        assert not chunks[name].has_dictionary_page
        assert not chunks[name].is_stats_set
    assert chunks["source_id"].has_dictionary_page
    assert chunks["clip_id"].statistics.min < chunks["clip_id"].statistics.max
    assert Shard(shard).read(0)[0]["codes"].tobytes() in shard.read_bytes()


def test_the_benchmark_prints_its_rates_as_one_json_object() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.shards", "--json", "--rows", "70"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    rates = json.loads(done.stdout.splitlines()[-1])["rows_per_s"]
    assert rates.keys() == {"sequential", "shuffled"}
    assert min(rates.values()) > 0


def test_the_readers_that_are_compared_give_the_same_rows(tmp_path: Path) -> None:
    rates = readers.figures(tmp_path, 8, 1)
    assert min(min(by_name.values()) for by_name in rates["rows_per_s"].values()) > 0
    assert rates["ratio_datasets"] == min(rates["ratio_datasets_sequential"], rates["ratio_datasets_shuffled"])
    for ways in readers.readers(tmp_path, 8).values():
        assert readers.same_rows(ways)


def test_a_clip_is_found_without_reading_the_others(shard: Path) -> None:
    rows = list(Shard(shard))
    flip(shard, page_of(shard, 1, "codes")[100])
    found = Shard(shard).find(rows[3]["clip_id"])
    assert found is not None
    assert_same_row(found, Row(**rows[3]))
    assert Shard(shard).find(rows[-1]["clip_id"], ("split", "lufs")) == {n: rows[-1][n] for n in ("split", "lufs")}
    for absent in ("", "0" * 34, rows[3]["clip_id"] + "0", "z"):
        assert Shard(shard).find(absent) is None


# what must not get in


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"codes": np.zeros((4, 499), np.int16)}, r"codes has shape \[4, 499\].*has \[4, 500\]"),
        ({"codes": np.full((4, 500), 64, np.int16)}, r"codes holds codes outside 0..63: from 64 to 64"),
        ({"codes": np.full((4, 500), -1, np.int16)}, "codes outside"),
        ({"codes": np.zeros((4, 500), np.int64)}, "codes is int64, not int16"),
        ({"clip_global": np.full((10, 16), np.inf, np.float16)}, "clip_global holds 160 values that are not finite"),
        ({"cls_distance": np.full(250, np.nan, np.float16)}, "cls_distance holds 250 values"),
        ({"lufs": float("-inf")}, "lufs is -inf, not a finite number"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": 11.0}, "seconds is 11.0, but the clip runs from 0.0 to 10.0 s"),
        ({"split": "held out"}, "split is 'held out'"),
        ({"title": None}, "title holds None, which is not string"),
        ({"clip_id": "clip-1"}, "clip_id is 'clip-1'; source and times make it"),
        ({"beat_times_s": [1.0, 0.5]}, "beat_times_s is not in ascending order"),
        ({"beat_times_s": [10.5]}, "beat_times_s holds a time outside the clip"),
        ({"shot_times_s": [float("nan")]}, "shot_times_s holds a time outside"),
    ],
)
def test_a_bad_row_is_refused_with_clip_column_and_reason(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(ShardError, match=said):
        write_shard(tmp_path / "s.parquet", [make_row("a", **columns)], SPEC)


def test_rows_that_repeat_or_do_not_ascend_are_refused(tmp_path: Path) -> None:
    made = by_id([make_row("a"), make_row("b")])
    for wrong in (made[::-1], [made[0], made[0]]):
        with pytest.raises(ShardError, match="ascending order"):
            write_shard(tmp_path / "s.parquet", wrong, SPEC)


# damage


def test_a_flipped_byte_names_file_rows_and_column(shard: Path) -> None:
    flip(shard, page_of(shard, 1, "codes")[100])
    assert len(Shard(shard).read(0)) == 32
    with pytest.raises(ShardError, match=r"shard\.parquet is damaged in row group 1 \(rows 32 to 63\), column codes"):
        Shard(shard).read(1)
    assert [column for column, _ in Shard(shard).damage(1)] == ["codes"]


def test_a_flipped_byte_anywhere_in_the_pages_is_noticed(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("flip") / "s.parquet"
    made = by_id([make_row(f"source {i % 3}", i * 1000, i * 1000 + 1000, text="words") for i in range(33)])
    write_shard(path, made, SPEC)
    whole = path.read_bytes()
    last = page_of(path, 1, "text")

    @settings(max_examples=300, deadline=None)
    @given(st.integers(4, last.stop - 1), st.integers(0, 7))
    def check(offset: int, bit: int) -> None:
        path.write_bytes(whole)
        flip(path, offset, 1 << bit)
        try:
            got = list(Shard(path))
        except ShardError as error:
            assert "s.parquet" in str(error)
            return
        # a page's header is under no checksum: what passes there must not have changed a value
        for row, expected in zip(got, made, strict=True):
            assert_same_row(row, expected)

    check()


@pytest.mark.parametrize("keep", [0, 3, 1000, -1, -100])
def test_a_file_that_is_cut_short_is_named(shard: Path, keep: int) -> None:
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ShardError, match=r"shard\.parquet can't be opened: it is cut short, damaged or no Parquet"):
        Shard(shard)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"There is no shard .*gone\.parquet"):
        Shard(tmp_path / "gone.parquet")


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    pq.write_table(change(pq.read_table(path)), path)
    return path


def test_foreign_and_other_versions_are_refused_with_what_to_do(shard: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"clip_id": ["a"]}), foreign)
    with pytest.raises(ShardError, match="Parquet file, but not a shard of dvmset"):
        Shard(foreign)

    def newer(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata(table.schema.metadata | {b"dvmset.schema_version": b"2"})

    with pytest.raises(ShardError, match=r"schema version 2; this dvmset reads version 1\. Use the dvmset that wrote"):
        Shard(rewritten(shard, newer))


def test_a_missing_or_altered_column_is_named(shard: Path, tmp_path: Path) -> None:
    other = shutil.copy(shard, tmp_path / "other.parquet")
    with pytest.raises(ShardError, match="lacks the column lufs"):
        Shard(rewritten(shard, lambda table: table.drop_columns("lufs")))

    def doubled(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("lufs")
        return table.set_column(at, pa.field("lufs", pa.float64(), nullable=False), table["lufs"].cast(pa.float64()))

    with pytest.raises(ShardError, match="lufs is double not null, not float not null"):
        Shard(rewritten(Path(other), doubled))


def test_metadata_that_is_damaged_is_named(shard: Path) -> None:
    def spoiled(table: pa.Table) -> pa.Table:
        return table.replace_schema_metadata(table.schema.metadata | {b"dvmset.columns": b"{}"})

    with pytest.raises(ShardError, match=r"The metadata of .* can't be read"):
        Shard(rewritten(shard, spoiled))


def test_spec_survives_the_way_through_metadata() -> None:
    spec = dataclasses.replace(SPEC, vision_dim=768, codebooks=8, code_hz=75)
    metadata = {key.encode(): value.encode() for key, value in spec.to_metadata().items()}
    assert Spec.from_metadata(metadata) == spec


# validate


def make_folder(folder: Path, shards: dict[str, list[Row]], spec: Spec = SPEC) -> Path:
    """A release with the parts of a manifest that `validate` looks at."""
    entries = []
    for name, members in shards.items():
        write_shard(folder / name, members, spec)
        entries.append(entry_of(folder / name))
    write_manifest(folder, entries)
    return folder


def entry_of(path: Path) -> dict[str, Any]:
    table = pq.read_table(path, columns=["source_id", "group_id", "seconds"])
    return {
        "name": path.name,
        "split": path.name.split("-")[0],
        "rows": len(table),
        "seconds": round(sum(table["seconds"].to_pylist()), 3),
        "sources": len(set(table["source_id"].to_pylist())),
        "groups": len(set(table["group_id"].to_pylist())),
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "key": "",
    }


def write_manifest(folder: Path, entries: list[dict[str, Any]]) -> None:
    settings = "0" * 64
    name = "r-" + digest([[entry["sha256"] for entry in entries], settings])[:12]
    manifest = {"id": name, "schema_version": 1, "shards": entries, "splits": {}, "settings": {"digest": settings}}
    manifest["digest"] = digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train = by_id([make_row(f"source {i}", i, i + 5007) for i in range(40)])
    test = by_id([make_row(f"held out {i}", split="test") for i in range(3)])
    return make_folder(tmp_path, {TRAIN: train, TEST: test})


def replace_shard(folder: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrites a shard as no writer of ours would, and the manifest to fit."""
    rewritten(folder / name, change)
    write_manifest(folder, [entry_of(path) for path in sorted(folder.glob("*.parquet"), reverse=True)])


def with_cell(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        cells = table[column].to_pylist()
        cells[row] = value
        at = table.schema.get_field_index(column)
        return table.set_column(at, table.schema.field(at), pa.array(cells, table.schema.field(at).type))

    return change


def test_a_good_release_has_no_problems(folder: Path) -> None:
    report = validate(folder)
    assert report.problems == ()
    assert (report.ok, report.shards, report.rows) == (True, 2, 43)
    assert report.seconds == 230.28


def test_a_flipped_byte_is_named_by_file_rows_and_column(folder: Path) -> None:
    flip(folder / TRAIN, page_of(folder / TRAIN, 1, "clip_global")[200])
    report = validate(folder)
    assert [(p.file, p.row, p.column) for p in report.problems] == [(TRAIN, None, ""), (TRAIN, 32, "clip_global")]
    assert "SHA-256" in report.problems[0].why
    assert "is damaged in rows 32 to 39" in str(report.first_bad_row)


def test_a_byte_outside_the_pages_is_caught_by_the_digest(folder: Path) -> None:
    path = folder / TRAIN
    flip(path, path.read_bytes().index(b"random:nano"))
    report = validate(folder)
    assert "SHA-256" in report.problems[0].why
    assert any("other models" in p.why for p in report.problems)


def test_missing_unlisted_and_truncated_shards_are_named(folder: Path) -> None:
    (folder / TEST).rename(folder / "extra.parquet")
    (folder / TRAIN).write_bytes((folder / TRAIN).read_bytes()[:-9])
    said = [str(p) for p in validate(folder).problems]
    assert said[0] == f"{TEST}: is in the manifest, but not in the folder"
    assert said[1] == "extra.parquet: is in the folder, but not in the manifest"
    assert "bytes; the manifest says" in said[2]
    assert "can't be opened: it is cut short" in said[3]


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("codes", np.zeros((4, 251), "<i2").tobytes(), "has shape [4, 251]; a clip of that length has [4, 250]"),
        ("codes", np.full((4, 250), 77, "<i2").tobytes(), "holds codes outside 0..63"),
        ("lufs", float("nan"), "is nan, not a finite number"),
        ("split", "test", "is 'test' in a shard of train"),
        ("seconds", 99.0, "is 99.0, but the clip runs"),
    ],
)
def test_the_first_bad_row_is_named_with_the_reason(folder: Path, column: str, value: Any, why: str) -> None:
    expected = Shard(folder / TRAIN).read(0, ["clip_id"])[5]["clip_id"]
    replace_shard(folder, TRAIN, with_cell(column, 5, value))
    bad = validate(folder).first_bad_row
    assert bad is not None
    assert (bad.file, bad.row, bad.clip_id, bad.column) == (TRAIN, 5, expected, column)
    assert why in bad.why
    assert str(bad).startswith(f"{TRAIN}, row 5 ({expected}): {column} ")


def test_a_blob_of_odd_length_is_named(folder: Path) -> None:
    replace_shard(folder, TRAIN, with_cell("clip_global", 5, b"123"))
    bad = validate(folder).first_bad_row
    assert bad is not None
    assert (bad.column, bad.row) == ("clip_global", 0)
    assert "3 bytes are no whole number of steps of 32" in bad.why


def test_ids_in_two_shards_and_groups_in_two_splits_are_found(tmp_path: Path) -> None:
    clip = make_row("twice")
    leak = make_row("leak", 0, 4000)
    shards = {TRAIN: by_id([clip, leak]), TEST: by_id([dataclasses.replace(clip, split="test")])}
    shards[TEST].append(dataclasses.replace(make_row("leaked", 0, 4000, split="test"), group_id=leak.group_id))
    shards[TEST] = by_id(shards[TEST])
    said = [str(p) for p in validate(make_folder(tmp_path, shards)).problems]
    # files are taken in the order of their names, so it is the later one that repeats
    assert any(s.startswith(TRAIN) and f"({clip.clip_id}): clip_id is in this release twice" in s for s in said)
    assert any(f"group_id {leak.group_id} is in train, and in {TEST} it is in test" in s for s in said)


def test_a_manifest_changed_by_hand_or_missing_is_named(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["rows"] += 1
    manifest["shards"][0]["sources"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    said = [str(p) for p in validate(folder).problems]
    assert "manifest.json: has been changed by hand: its digest isn't that of its content" in said
    assert f"{TRAIN}: has 40 rows; the manifest says 41" in said
    (folder / "manifest.json").write_text("{")
    assert validate(folder).problems[0].why.startswith("can't be read as a manifest")
    (folder / "manifest.json").unlink()
    assert "is missing, so this is no release" in validate(folder).problems[0].why
    with pytest.raises(ShardError, match="There is no folder"):
        validate(tmp_path / "nowhere")
