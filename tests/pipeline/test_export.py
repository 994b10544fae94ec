"""Exports: other loaders get the same rows, and only those that were chosen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DvmsetError
from pipeline.export import Choice, export, read_opt_outs
from pipeline.release import Release
from pipeline.shards import Row, Shard
from pipeline.shards.schema import BLOBS
from pipeline.storage import Store
from tests.pipeline.test_release import TWENTY, release_of, rows_of

FREE = "CC BY 4.0"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [dataclasses.replace(row, license=FREE if i % 3 else "") for i, row in enumerate(rows_of(*TWENTY))]


@pytest.fixture(scope="module")
def release(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release_of(Store(tmp_path_factory.mktemp("data")), rows)


def test_datasets_loads_the_part_under_a_licence(release: Release, rows: list[Row], tmp_path: Path) -> None:
    import datasets

    counts = export(release.path, tmp_path / "part", "hf", Choice(licences=("CC BY*",)))
    wanted = {row.clip_id for row in rows if row.license == FREE}
    assert sum(counts.values()) == len(wanted)
    loaded = datasets.load_dataset(str(tmp_path / "part"), cache_dir=str(tmp_path / "cache"))
    assert {clip for split in loaded.values() for clip in split["clip_id"]} == wanted
    streamed = datasets.load_dataset(str(tmp_path / "part"), streaming=True)
    assert {row["clip_id"] for split in streamed.values() for row in split} == wanted


def test_webdataset_reads_the_rows_with_their_arrays(release: Release, rows: list[Row], tmp_path: Path) -> None:
    import webdataset

    export(release.path, tmp_path / "tars", "webdataset", Choice())
    tars = sorted(map(str, (tmp_path / "tars").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode())
    by_clip = {row.clip_id: row for row in rows}
    assert sorted(s["__key__"] for s in samples) == sorted(by_clip)
    for sample in samples[:5]:
        for name in BLOBS:
            np.testing.assert_array_equal(sample[f"{name}.npy"], getattr(by_clip[sample["__key__"]], name))


def test_fiftyone_json_names_the_links(release: Release, rows: list[Row], tmp_path: Path) -> None:
    export(release.path, tmp_path / "fiftyone", "fiftyone", Choice())
    found = [
        sample
        for path in (tmp_path / "fiftyone").glob("*/samples.json")
        for sample in json.loads(path.read_text())["samples"]
    ]
    assert sorted(s["clip_id"] for s in found) == sorted(row.clip_id for row in rows)
    assert {s["filepath"] for s in found} == {row.url for row in rows}


def test_pandas_polars_and_duckdb_read_a_release_by_path(release: Release) -> None:
    import duckdb
    import pandas
    import polars

    pattern, clips = f"{release.path}/train-*.parquet", release.counts["train"]["clips"]
    assert len(pandas.concat(map(pandas.read_parquet, sorted(Path(release.path).glob("train-*.parquet"))))) == clips
    assert polars.scan_parquet(pattern).select(polars.len()).collect().item() == clips
    counted = duckdb.sql(f"select count(*), sum(seconds) from read_parquet('{pattern}')").fetchall()[0]
    assert counted == (clips, release.counts["train"]["seconds"])


def test_who_opted_out_is_in_no_export(release: Release, rows: list[Row], tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text(f"# asked by letter\n\n{rows[0].source_id}\n{rows[-1].url}\n")
    choice = Choice(opted_out=read_opt_outs(tmp_path / "out.txt"))
    export(release.path, tmp_path / "part", "hf", choice)
    found = {row["source_id"] for path in (tmp_path / "part").glob("*.parquet") for row in Shard(path)}
    gone = {row.source_id for row in rows if row.source_id == rows[0].source_id or row.url == rows[-1].url}
    assert gone and found == {row.source_id for row in rows} - gone


def test_nothing_is_overwritten_and_an_empty_choice_is_an_error(release: Release, tmp_path: Path) -> None:
    with pytest.raises(DvmsetError, match="No clip"):
        export(release.path, tmp_path / "none", "hf", Choice(licences=("no such",)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(DvmsetError, match="isn't empty"):
        export(release.path, tmp_path / "full", "hf", Choice())
    with pytest.raises(DvmsetError, match="opt-out list"):
        read_opt_outs(tmp_path / "missing.txt")
