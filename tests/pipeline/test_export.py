"""Exports: other loaders get the same rows, and only those that were chosen."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DvmsetError, ShardError
from pipeline.export import Choice, OptOuts, export, read_opt_outs
from pipeline.release import Release
from pipeline.shards import Row, Shard
from pipeline.shards.schema import BLOBS
from pipeline.storage import Store
from tests.pipeline.test_release import TWENTY, release_of, rows_of

FREE = "CC BY 4.0"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    made = [dataclasses.replace(row, license=FREE if i % 3 else "") for i, row in enumerate(rows_of(*TWENTY))]
    return [
        dataclasses.replace(row, channel="Some Label") if row.source_id == made[5].source_id else row for row in made
    ]


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


def test_fiftyone_gets_each_clip_as_a_temporal_detection_on_its_source(
    release: Release, rows: list[Row], tmp_path: Path
) -> None:
    counts = export(release.path, tmp_path / "fiftyone", "fiftyone", Choice())
    found = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "fiftyone").glob("*/labels.json")}
    assert {split: sum(map(len, said["labels"].values())) for split, said in found.items()} == counts
    by_clip = {row.clip_id: row for row in rows}
    for said in found.values():
        assert said.keys() == {"labels"}, "without classes a label is a word, not a number"
        for source_id, clips in said["labels"].items():
            for clip in clips:
                row = by_clip.pop(clip["attributes"]["clip_id"])
                assert clip.keys() == {"label", "timestamps", "attributes"}
                assert (source_id, clip["label"]) == (row.source_id, row.category)
                assert clip["timestamps"] == [row.start_s, row.end_s]
                assert (clip["attributes"]["url"], clip["attributes"]["tempo_bpm"]) == (row.url, row.tempo_bpm)
                assert not clip["attributes"].keys() & {"id", "label", "support", "confidence", "tags"}
    assert by_clip == {}


def test_the_readme_of_fiftyone_names_the_importer_and_is_python(release: Release, tmp_path: Path) -> None:
    export(release.path, tmp_path / "fiftyone", "fiftyone", Choice())
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "fiftyone/README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")
        assert '"train/labels.json"' in block
    assert "fo.types.FiftyOneTemporalDetectionDataset" in blocks[0]


def test_pandas_polars_and_duckdb_read_a_release_by_path(release: Release) -> None:
    import duckdb
    import pandas
    import polars

    pattern, clips = f"{release.path}/train-*.parquet", release.counts["train"]["clips"]
    assert len(pandas.concat(map(pandas.read_parquet, sorted(Path(release.path).glob("train-*.parquet"))))) == clips
    assert polars.scan_parquet(pattern).select(polars.len()).collect().item() == clips
    counted = duckdb.sql(f"select count(*), sum(seconds) from read_parquet('{pattern}')").fetchall()[0]
    assert counted == (clips, release.counts["train"]["seconds"])


def test_who_opted_out_is_in_no_export_however_the_entry_is_spelt(
    release: Release, rows: list[Row], tmp_path: Path
) -> None:
    address = (
        rows[-1].url.replace("https://example.org", "HTTPS://Example.ORG:443").replace(" ", "%20") + "?utm_source=x#t=3"
    )
    assert address != rows[-1].url
    (tmp_path / "out.txt").write_text(
        f"\ufeff# asked by letter\n\n{rows[0].source_id}\n  {address}\nsome   LABEL\nwww.example.com/typo\nLable\n"
    )
    opted_out = read_opt_outs(tmp_path / "out.txt")
    export(release.path, tmp_path / "part", "hf", Choice(opted_out=opted_out))
    found = {row["source_id"] for path in (tmp_path / "part").glob("*.parquet") for row in Shard(path)}
    gone = {rows[0].source_id, rows[-1].source_id, rows[5].source_id}
    assert len(gone) == 3 and found == {row.source_id for row in rows} - gone
    assert opted_out.met == [rows[0].source_id, address, "some   LABEL"]
    assert opted_out.unmet == ["www.example.com/typo", "Lable"]
    assert "5 entries of an opt-out list were honoured, 3 of which" in (tmp_path / "part/README.md").read_text()


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("https://youtu.be/abcdefghijk?si=1", "https://www.youtube.com/watch?v=abcdefghijk"),
        ("abcdefghijk", "https://www.youtube.com/watch?v=abcdefghijk"),
        ("bilibili.com/video/av170001/", "https://www.bilibili.com/video/BV17x411w7KC"),
        ("https://a.example/f%6Flder?b=2&a=1", "https://a.example/folder?a=1&b=2"),
    ],
)
def test_an_opt_out_is_compared_by_the_key_of_its_address(entry: str, address: str) -> None:
    assert OptOuts([entry]).name("0" * 16, address, "")
    assert not OptOuts([entry]).name("0" * 16, address.replace("1", "2").replace("k", "j").replace("C", "D"), "")


def test_nothing_is_overwritten_and_what_fails_leaves_nothing(release: Release, tmp_path: Path) -> None:
    with pytest.raises(DvmsetError, match=r"No clip.*Licences as stated in it: '', 'CC BY 4\.0'"):
        export(release.path, tmp_path / "none", "hf", Choice(licences=("no such",)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(DvmsetError, match="is not empty"):
        export(release.path, tmp_path / "full", "hf", Choice())
    with pytest.raises(DvmsetError, match="is a file"):
        export(release.path, tmp_path / "full/file", "hf", Choice())
    with pytest.raises(DvmsetError, match="can't be made"):
        export(release.path, tmp_path / "full/file/deeper", "hf", Choice())
    damaged = Path(shutil.copytree(release.path, tmp_path / "damaged"))
    (damaged / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    for form in ("hf", "webdataset", "fiftyone"):
        with pytest.raises(ShardError, match="test-00000-of-00001"):
            export(damaged, tmp_path / "half", form, Choice())  # type: ignore[arg-type]
    for manifest in ("{}", "[]", "{"):
        (damaged / "manifest.json").write_text(manifest)
        with pytest.raises(ShardError, match="can't be read"):
            export(damaged, tmp_path / "half", "hf", Choice())
    with pytest.raises(ShardError, match="there is no manifest"):
        export(tmp_path, tmp_path / "half", "hf", Choice())
    for text in (None, b"\xff\xfe\xff"):
        if text:
            (tmp_path / "list.txt").write_bytes(text)
        with pytest.raises(DvmsetError, match="opt-out list"):
            read_opt_outs(tmp_path / "list.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "full", "list.txt"]
    (tmp_path / "empty").mkdir()
    assert export(release.path, tmp_path / "empty", "hf", Choice()) == {
        s: n["clips"] for s, n in release.counts.items()
    }
