"""The rhythm study: its videos, its set, its plan, and the whole of it at its quick size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from model.data import open_release
from model.evaluate import DEFINITIONS
from model.nano.rhythm_study import run
from model.nano.study import VARIANTS, Study, full_study, quick_study, table
from model.nano.study.benchmark import parts, read_clips, write_release
from model.nano.study.pieces import Run
from model.nano.study.videos import GAP_S, Footage, apart, composed, draw_cuts
from model.settings import ABLATIONS
from pipeline.shards import read_rows
from pipeline.shards.validator import validate
from pipeline.storage import Store
from pipeline.vision import FPS

FOLDERS = {"follows": Path("follows-0"), "ignores": Path("ignores-0")}


def plain_footage(shots: int, side: int = 9) -> Footage:
    """Shots of one grey each, so that what a frame is cut from can be read off it."""
    greys = np.repeat(np.arange(shots, dtype=np.uint8) * 10, 20)
    frames = np.broadcast_to(greys[:, None, None, None], (len(greys), side, side, 3))
    return Footage(frames, tuple((20 * i, 20 * i + 20) for i in range(shots)))


# videos


def test_cuts_keep_their_distance_and_are_irregular() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_cuts(rng, 10) for _ in range(200)]
    gaps = np.concatenate([np.diff((0, *cuts, 10 * FPS)) for cuts in drawn])
    assert gaps.min() >= GAP_S * FPS
    assert 4 < np.mean([len(cuts) for cuts in drawn]) < 8
    assert np.concatenate([np.diff(cuts) for cuts in drawn]).std() > 0.5 * FPS


def test_a_composed_video_changes_its_shot_at_the_cuts_alone() -> None:
    shots = plain_footage(8)
    for seed in range(20):
        cuts = (30, 41, 90)
        frames = list(composed(np.random.default_rng(seed), shots, cuts, 125, 7))
        assert len(frames) == 125 and frames[0].shape == (7, 7, 3)
        flashed = {i for i, f in enumerate(frames) if f[0, 0, 0] % 10}  # white is mixed in
        shown = [f[0, 0, 0] // 10 for f in frames]
        changes = {i for i in range(1, 125) if shown[i] != shown[i - 1]}
        assert {c for c in changes if not {c, c - 1} & flashed} == set(cuts)


def test_distractions_stay_away_from_cuts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = apart(rng, [2.0, 5.0], 1.0, 10.0)
        assert all(min(abs(t - 2.0), abs(t - 5.0)) >= GAP_S for t in found)
        assert all(GAP_S <= t <= 10 - GAP_S for t in found)


# plan


def test_all_ablations_are_compared_and_the_main_ones_on_three_seeds() -> None:
    seeds = {variant.name: number for variant, number in full_study().variants()}
    assert seeds.keys() >= ABLATIONS.keys() | {"full", "shuffled", "ground_truth"}
    assert {name for name, number in seeds.items() if number >= 3} >= {"full", "no_rhythm", "cls_sim", "shuffled"}


def test_stage_1_is_shared_where_it_trains_the_same() -> None:
    study = full_study()
    runs = {v.name: study.runs(v, 0, FOLDERS) for v in VARIANTS}  # type: ignore[arg-type]
    first = {name: found[0].key for name, found in runs.items() if found}
    alone = {name for name, key in first.items() if key != first["full"]}
    assert alone == {"no_rhythm", "one_stage", "t5_scratch"}
    steps = {name: sum(run.preset.train.steps for run in found) for name, found in runs.items() if found}
    assert set(steps.values()) == {sum(study.steps)}
    assert runs["shuffled"] == runs["full"]
    assert len({found[-1].key for found in runs.values() if found}) == 13
    assert [len(runs[name]) for name in ("full", "no_rhythm", "one_stage", "ground_truth")] == [2, 1, 1, 0]


def test_a_run_is_named_after_all_it_depends_on() -> None:
    study = quick_study()
    full = next(v for v in VARIANTS if v.name == "full")
    keys = {
        runs[-1].key
        for changed in (study, dataclasses.replace(study, steps=(1, 3)), dataclasses.replace(study, steps=(2, 2)))
        for seed in (0, 1)
        for runs in (changed.runs(full, seed, FOLDERS),)  # type: ignore[arg-type]
    }
    assert len(keys) == 6


# the whole


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, list[str]]:
    study, folder, told = quick_study(), tmp_path_factory.mktemp("study"), []
    table.write(folder, study, run(study, folder, 1, told.append), "quick")
    return study, folder, told


@pytest.mark.slow
def test_the_quick_study_fills_the_table(done: tuple[Study, Path, list[str]]) -> None:
    study, folder, told = done
    rows = json.loads((folder / "rhythm_study.json").read_text())
    assert rows.keys() == {variant.name for variant in VARIANTS}
    for name, metrics in rows.items():
        trained = not name.startswith("ground_truth")
        assert metrics.keys() - {"bcs_d2mgan", "bhs_d2mgan"} == (
            DEFINITIONS.keys() | ({"validation_ce"} if trained else set())
        ) - {"bcs_d2mgan", "bhs_d2mgan"}
        for found in metrics.values():
            assert found["low"] <= found["mean"] <= found["high"]
            assert 1 <= found["n"] <= study.size.test
    assert rows["ground_truth"]["bhs_loris"]["mean"] == 1.0
    assert "train full, stage 2, seed 0" in " ".join(told)
    assert (folder / "rhythm_study.png").stat().st_size > 10_000
    assert "`shuffled` - `no_rhythm`" in (folder / "rhythm_study.md").read_text()


@pytest.mark.slow
def test_what_is_there_is_not_made_again(done: tuple[Study, Path, list[str]]) -> None:
    study, folder, _ = done
    for score in folder.glob("scores/full-*.json"):  # of its own music, and with curves swapped
        score.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    told: list[str] = []
    run(dataclasses.replace(study, only=("full",)), folder, 1, told.append)
    assert [line for line in told if "there already" not in line] == ["1/1 score full, seed 0"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.slow
def test_the_set_is_two_releases_that_differ_in_their_music_alone(done: tuple[Study, Path, list[str]]) -> None:
    study, folder, _ = done
    work = Store(folder)
    follows, ignores = (write_release(work, study.size, study.profile, music) for music in ("follows", "ignores"))
    assert validate(follows).ok and validate(ignores).ok
    shard = open_release(follows).shards["test"][0].name
    for a, b in zip(read_rows([follows / shard]), read_rows([ignores / shard]), strict=True):
        assert np.array_equal(a["patch_distance"], b["patch_distance"])
        assert a["shot_times_s"].tolist() == b["shot_times_s"].tolist()
        assert not np.array_equal(a["codes"], b["codes"])


@pytest.mark.slow
def test_accents_of_a_follower_stand_on_cuts(done: tuple[Study, Path, list[str]]) -> None:
    study, folder, _ = done
    for split in ("train", "test"):
        for facts in read_clips(Store(folder), study.size, study.profile, split).facts:  # type: ignore[arg-type]
            on = [t for t in facts["follows"]["accents_s"] if t in facts["cuts_s"]]
            off = [t for t in facts["follows"]["accents_s"] if t not in facts["cuts_s"]]
            assert len(on) + len(off) == len(facts["follows"]["accents_s"])
            assert all(abs(t - cut) >= GAP_S for t in off for cut in facts["cuts_s"])


@pytest.mark.slow
def test_a_part_does_not_depend_on_when_it_is_made(done: tuple[Study, Path, list[str]], tmp_path: Path) -> None:
    study, folder, _ = done
    again = Store(tmp_path)
    part = next(p for p in parts(study.size, study.profile) if p.split == "validation")
    part.make(again)
    before, after = (np.load(Path(store.path(part.file))) for store in (Store(folder), again))
    assert all(np.array_equal(before[name], after[name]) for name in before.files)


def test_an_unfinished_run_is_not_done(tmp_path: Path) -> None:
    study = quick_study()
    piece: Run = study.runs(VARIANTS[0], 0, FOLDERS)[0]  # type: ignore[arg-type]
    assert not piece.done(Store(tmp_path))
