"""Releases: splits and buckets, what is rewritten and what is shared, what a crash leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.card import FACES
from pipeline.config import Profile, ReleaseSettings
from pipeline.errors import ShardError
from pipeline.release import (
    Change,
    Release,
    bucket_of,
    draft,
    latest_release,
    make_release,
    manifest,
    split_of,
)
from pipeline.shards import Row, Shard, validate
from pipeline.storage import Store
from tests.rows import SPEC, Made, assert_same_row, make_row

PROFILE = Profile(
    name="test",
    release=ReleaseSettings(validation_share=0.2, test_share=0.2, buckets={"train": 4, "validation": 1, "test": 1}),
)
FUNNEL = {"fetched": 700.0, "kept": 600.0, "dropped": {"speech": 60.5, "silence": 39.5}}


def release_of(store: Store, rows: list[Row], profile: Profile = PROFILE, **changes: Any) -> Release:
    arguments: dict[str, Any] = {
        "spec": dataclasses.replace(SPEC, settings=profile.digest()),
        "profile": profile,
        "funnel": FUNNEL,
        "provenance": {"command": "dvmset build list.csv --data data --profile test"},
    }
    return make_release(store, Made(rows), **(arguments | changes))


def rows_of(*names: str) -> list[Row]:
    """Two clips of each source."""
    return [make_row(name, i * 20_000, i * 20_000 + 15_000) for name in names for i in (1, 0)]


def digests(release: Release) -> dict[str, str]:
    return {entry["name"]: entry["sha256"] for entry in release.manifest["shards"]}


def files(release: Release) -> dict[str, Path]:
    return {path.name: path for path in Path(release.path).iterdir()}


def id_of_latest(store: Store) -> str:
    latest = latest_release(store)
    assert latest is not None
    return latest.id


TWENTY = [f"source {i}" for i in range(20)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def test_entries_that_can_be_gone_through_only_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone through twice"):
        make_release(
            Store(tmp_path), iter(()), spec=SPEC, profile=PROFILE, funnel=dict(FUNNEL), provenance={}
        )  # fmt: skip


def test_a_release_holds_every_clip_once_sorted_and_validates(store: Store) -> None:
    rows = rows_of(*TWENTY)
    release = release_of(store, rows)
    assert release.changed
    assert release.path == store.path(f"releases/{release.id}")
    assert release.id == "r-" + release.digest[:12]
    names = [entry["name"] for entry in release.manifest["shards"]]
    assert names == [f"train-0000{i}-of-00004.parquet" for i in range(4)] + [
        "validation-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    ]
    assert set(files(release)) == {*names, "manifest.json", *FACES, "preview", "sources.jsonl"}
    found = [row for name in names for row in Shard(files(release)[name])]
    assert sorted(r["clip_id"] for r in found) == sorted(r.clip_id for r in rows)
    by_id = {row.clip_id: row for row in rows}
    for row in found:
        assert row["split"] == split_of(row["group_id"], PROFILE.release)
        assert_same_row(row, dataclasses.replace(by_id[row["clip_id"]], split=row["split"]))
    report = validate(release.path)
    assert report.problems == ()
    assert (report.rows, report.seconds) == (40, 600.0)


def test_the_manifest_counts_and_describes(store: Store) -> None:
    rows = rows_of(*TWENTY)
    rows[0] = dataclasses.replace(rows[0], category="commercial", license="")
    found = release_of(store, rows).manifest
    assert sum(n["clips"] for n in found["splits"].values()) == 40
    assert sum(n["seconds"] for n in found["splits"].values()) == 600.0
    assert sum(n["sources"] for n in found["splits"].values()) == 20
    where = split_of(rows[0].group_id, PROFILE.release)
    assert found["splits"][where]["categories"]["commercial"] == {"clips": 1, "seconds": 15.0}
    assert found["splits"][where]["licenses"][""] == {"clips": 1, "seconds": 15.0}
    assert found["parent"] is None
    assert found["funnel"] == FUNNEL
    assert found["settings"]["values"]["release"]["buckets"]["train"] == 4
    assert found["settings"]["digest"] == PROFILE.digest()
    assert found["models"]["codec"] == {
        "id": "random:nano (seed 0)",
        "digest": "b" * 64,
        "licence": "Apache-2.0",
        "weights": "random",
    }
    assert found["models"]["separator"]["weights"] == "toy"
    assert found["columns"]["codes"]["shape"] == [4, "T50"]
    assert found["tools"]["pyarrow"]
    head = found["git"]
    assert head is None or len(head["commit"]) == 40


def test_the_same_content_makes_no_new_release(store: Store, tmp_path: Path) -> None:
    first = release_of(store, rows_of(*TWENTY))
    before = {name: path.stat().st_mtime_ns for name, path in files(first).items()}

    unloadable = Made(list(reversed(rows_of(*TWENTY))))
    unloadable.rows = lambda _: pytest.fail("a row of an unchanged bucket was loaded")  # type: ignore[method-assign]
    again = make_release(
        store,
        unloadable,
        spec=dataclasses.replace(SPEC, settings=PROFILE.digest()),
        profile=PROFILE,
        funnel={"fetched": 1.0, "kept": 1.0, "dropped": {}},
        provenance={},
    )
    assert (again.id, again.changed) == (first.id, False)
    assert {name: path.stat().st_mtime_ns for name, path in files(again).items()} == before
    assert store.names("releases") == ["latest", first.id]
    elsewhere = release_of(Store(tmp_path / "elsewhere"), rows_of(*TWENTY))
    assert digests(elsewhere) == digests(first)
    assert elsewhere.id == first.id


def test_neither_the_time_nor_the_funnel_changes_shards_or_id(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = release_of(store, rows_of("a", "b"))

    class Later(manifest.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 5, 4, tzinfo=tz)

    monkeypatch.setattr(manifest, "datetime", Later)
    other = {"fetched": 9.0, "kept": 9.0, "dropped": {}}
    second = release_of(Store(tmp_path / "later"), rows_of("a", "b"), funnel=other)
    assert second.manifest["created_at"] == "2031-05-04T00:00:00+00:00" != first.manifest["created_at"]
    assert (second.id, digests(second)) == (first.id, digests(first))


def test_a_new_source_rewrites_one_bucket_and_shares_the_others(store: Store) -> None:
    first = release_of(store, rows_of(*TWENTY))
    second = release_of(store, rows_of(*TWENTY, "newcomer"))
    assert second.changed
    assert second.manifest["parent"] == first.id
    changed = {name for name, sha256 in digests(second).items() if sha256 != digests(first)[name]}
    assert len(changed) == 1
    for name in digests(first).keys() - changed:
        assert files(first)[name].samefile(files(second)[name])
    assert validate(first.path).ok
    assert validate(second.path).ok
    removed = release_of(store, rows_of(*TWENTY))
    assert (removed.id, removed.changed) == (first.id, True)
    assert id_of_latest(store) == first.id


def test_a_changed_row_or_setting_makes_a_new_release(store: Store) -> None:
    rows = rows_of(*TWENTY)
    first = release_of(store, rows)
    rows[3] = dataclasses.replace(rows[3], category="commercial")
    second = release_of(store, rows)
    assert sum(a != b for a, b in zip(digests(first).values(), digests(second).values(), strict=True)) == 1
    salted = PROFILE.model_copy(update={"release": PROFILE.release.model_copy(update={"split_salt": "other"})})
    third = release_of(store, rows, salted)
    assert third.manifest["parent"] == second.id
    assert third.counts["train"]["clips"] != second.counts["train"]["clips"]


def test_the_diff_tells_words_from_measurements_and_names_every_clip(store: Store) -> None:
    rows = rows_of(*TWENTY)
    first = release_of(store, rows)
    assert first.diff is None and first.manifest["diff"] is None
    same_id = {"start_ms": 0, "end_ms": 15_000}
    words = dataclasses.replace(rows[1], category="commercial")
    measured = make_row(TWENTY[5], **same_id, tempo_bpm=90.0)
    assert (words.clip_id, measured.clip_id) == (rows[1].clip_id, rows[11].clip_id)
    wanted = [*rows[2:11], measured, *rows[12:], words, *rows_of("newcomer")]

    def explain(changes: Sequence[Change]) -> dict[str, str]:
        return {change.clip_id: f"because it was {change.kind}" for change in changes if change.kind != "added"}

    second = release_of(store, wanted, explain=explain)
    counts = {
        "added": {"clips": 2, "seconds": 30.0, "reasons": {"not stated": 2}},
        "removed": {"clips": 1, "seconds": 15.0, "reasons": {"because it was removed": 1}},
        "relabelled": {"clips": 1, "seconds": 15.0, "reasons": {"because it was relabelled": 1}},
        "recomputed": {"clips": 1, "seconds": 15.0, "reasons": {"because it was recomputed": 1}},
    }
    assert second.diff == second.manifest["diff"] == {"parent": first.id, **counts}
    lines = [json.loads(line) for line in files(second)["changes.jsonl"].read_text().splitlines()]
    assert {line["clip_id"]: line["kind"] for line in lines} == {
        rows[0].clip_id: "removed",
        words.clip_id: "relabelled",
        measured.clip_id: "recomputed",
        **{row.clip_id: "added" for row in rows_of("newcomer")},
    }
    assert validate(second.path).ok
    back = release_of(store, rows)
    assert (back.id, back.diff and back.diff["parent"]) == (first.id, second.id), "against what was the newest"


hexes = st.text("0123456789abcdef", min_size=16, max_size=16)
shares = st.floats(0, 0.5, exclude_max=True)


@settings(max_examples=15, deadline=None)
@given(st.sets(hexes, max_size=6), st.sets(hexes, min_size=1, max_size=3), shares, shares)
def test_groups_that_come_move_no_other(
    tmp_path_factory: pytest.TempPathFactory, groups: set[str], more: set[str], test_share: float, validation: float
) -> None:
    shape = ReleaseSettings(
        test_share=test_share, validation_share=validation, buckets={"train": 2, "validation": 1, "test": 1}
    )
    profile = Profile(name="p", release=shape)

    def placed(names: set[str]) -> tuple[dict[str, str], dict[str, str]]:
        rows = [make_row(name, 0, 1000, group_id=name) for name in names]
        release = release_of(Store(tmp_path_factory.mktemp("data")), rows, profile)
        shards = {path.name: list(Shard(path)) for path in Path(release.path).glob("*.parquet")}
        return {r["group_id"]: name for name, found in shards.items() for r in found}, digests(release)

    before, shards_before = placed(groups)
    after, shards_after = placed(groups | more)
    assert before.items() <= after.items()
    touched = {after[group] for group in more - groups}
    assert {n for n in shards_before if shards_before[n] != shards_after[n]} == touched


def test_shares_are_kept_and_nothing_is_held_out_where_none_is_asked_for() -> None:
    shape = ReleaseSettings(test_share=0.1, validation_share=0.2)
    splits = [split_of(f"{i:016x}", shape) for i in range(4000)]
    assert splits.count("test") == pytest.approx(400, abs=60)
    assert splits.count("validation") == pytest.approx(800, abs=80)
    all_train = ReleaseSettings(test_share=0, validation_share=0)
    assert {split_of(f"{i:016x}", all_train) for i in range(500)} == {"train"}
    buckets = [bucket_of(f"{i:016x}", 8) for i in range(4000) if splits[i] == "train"]
    assert min(buckets.count(b) for b in range(8)) > 280


def test_a_clip_given_twice_or_a_row_of_another_clip_is_refused_and_leaves_nothing(store: Store) -> None:
    rows = rows_of("a")
    with pytest.raises(ShardError, match="ascending order"):
        release_of(store, [*rows, rows[0]])
    swapped = Made(rows)
    swapped.rows = lambda clips: (rows[0] for _ in clips)  # type: ignore[method-assign]
    with pytest.raises(ShardError, match=f"clip {rows[1].clip_id} .* came as {rows[0].clip_id}"):
        make_release(
            store,
            swapped,
            spec=dataclasses.replace(SPEC, settings=PROFILE.digest()),
            profile=PROFILE,
            funnel=FUNNEL,
            provenance={},
        )
    assert latest_release(store) is None
    assert store.names("releases") == []
    release_of(store, rows)
    assert [name for name in os.listdir(store.path("releases")) if name.startswith(".")] == []  # noqa: PTH208


def test_a_funnel_that_loses_a_millisecond_is_refused(store: Store) -> None:
    with pytest.raises(ShardError, match="700001 ms were fetched, but 600000 ms kept and 100000 ms dropped"):
        release_of(store, rows_of("a"), funnel={**FUNNEL, "fetched": 700.001})


def test_a_run_that_dies_leaves_the_last_release_and_the_next_one_cleans_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = release_of(store, rows_of(*TWENTY))
    wanted = rows_of(*TWENTY, "newcomer")
    steps = ("render_faces", "publish", "read_release")
    for step in steps:
        with monkeypatch.context() as patch:

            def die(*_: Any) -> None:
                raise KeyboardInterrupt

            if step == "read_release":  # after the folder has its name, before `latest` points to it
                patch.setattr(store, "remove", die)
            else:
                patch.setattr(draft, step, die)
            with pytest.raises(KeyboardInterrupt):
                release_of(store, wanted)
        assert id_of_latest(store) == first.id
    done = release_of(store, wanted)
    assert done.changed
    assert sorted(os.listdir(store.path("releases"))) == sorted(["latest", first.id, done.id])  # noqa: PTH208
    undisturbed = release_of(Store(store.path("other")), wanted)
    assert digests(undisturbed) == digests(done)


def test_a_shard_that_was_deleted_or_cut_is_written_again(store: Store) -> None:
    rows = rows_of(*TWENTY)
    first = release_of(store, rows)
    shard = files(first)["train-00001-of-00004.parquet"]
    shard.unlink()
    files(first)["train-00002-of-00004.parquet"].write_bytes(b"PAR1")
    assert not validate(first.path).ok
    again = release_of(store, rows)
    assert (again.id, again.changed) == (first.id, False)
    assert validate(again.path).problems == ()
    later = release_of(store, rows_of(*TWENTY, "newcomer"))
    files(later)["train-00003-of-00004.parquet"].unlink()
    mended = release_of(store, rows_of(*TWENTY, "newcomer"))
    assert mended.manifest["parent"] == first.id


def test_a_release_can_lie_in_another_file_system() -> None:
    store = Store("memory://releases-test")
    first = release_of(store, rows_of(*TWENTY))
    second = release_of(store, rows_of(*TWENTY, "newcomer"))
    assert store.names("releases") == ["latest", *sorted([first.id, second.id])]
    words = {"manifest.json", "changes.jsonl", "sources.jsonl", "preview", *FACES}
    assert set(store.names(f"releases/{second.id}")) == {*digests(second), *words}
    assert not release_of(store, rows_of(*TWENTY, "newcomer")).changed
    store.remove(f"releases/{second.id}/train-00002-of-00004.parquet")
    assert release_of(store, rows_of(*TWENTY, "newcomer")).id == second.id
    for name, sha256 in digests(second).items():
        assert hashlib.sha256(store.fs.cat_file(store.path(f"releases/{second.id}/{name}"))).hexdigest() == sha256


def test_a_damaged_manifest_is_named_with_what_to_do(store: Store) -> None:
    first = release_of(store, rows_of("a"))
    files(first)["manifest.json"].write_text("{}")
    with pytest.raises(ShardError, match=f"manifest of .*{first.id} can't be read.*Delete this folder"):
        latest_release(store)


@pytest.mark.slow
def test_the_benchmark_of_large_releases_measures_time_and_memory_of_each_size() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.releases", "--json", "--clips", "10", "30", "--again"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    found = json.loads(done.stdout.splitlines()[-1])
    assert [run["clips"] for run in found["runs"]] == [10, 30]
    assert all(run["peak_mb"] > 0 and run["again"]["cpu_seconds"] > 0 for run in found["runs"])
    assert found["growth"] > 0


# the loaders of others


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize("test_share", [0.2, 0.0])
def test_datasets_and_pandas_load_it_as_it_is(store: Store, tmp_path: Path, test_share: float) -> None:
    import datasets

    shape = PROFILE.release.model_copy(update={"test_share": test_share})
    rows = rows_of(*TWENTY)
    release = release_of(store, rows, PROFILE.model_copy(update={"release": shape}))
    clips = {split: n["clips"] for split, n in release.counts.items() if n["clips"]}
    assert set(clips) == ({"train", "validation", "test"} if test_share else {"train", "validation"})
    loaded = datasets.load_dataset(release.path, cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == clips
    streamed = datasets.load_dataset(release.path, split="train", streaming=True)
    by_id = {row.clip_id: row for row in rows}
    for row in (loaded["train"][0], next(iter(streamed))):
        original = by_id[row["clip_id"]]
        assert row["codes"] == original.codes.tobytes()
        assert row["clip_global"] == original.clip_global.tobytes()
        assert row["beat_times_s"] == list(original.beat_times_s)
        assert (row["text"], row["reviewed"], row["end_s"]) == (None, False, original.end_s)
    tables = [pd.read_parquet(path) for name, path in files(release).items() if name.endswith(".parquet")]
    assert sum(map(len, tables)) == 40
    assert all(list(table.columns) == list(vars(rows[0])) for table in tables), "an empty shard has its columns too"
