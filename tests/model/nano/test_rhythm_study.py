"""The rhythm study: its videos, its set, its plan, and the whole of it at its quick size."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.data import open_release
from model.evaluate import DEFINITIONS
from model.nano.rhythm_study import run
from model.nano.study import VARIANTS, Study, Values, full_study, quick_study, table
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
    assert alone == {"no_rhythm", "no_rhythm_fast", "one_stage", "one_stage_fast", "t5_scratch"}
    steps = {name: sum(run.preset.train.steps for run in found) for name, found in runs.items() if found}
    assert set(steps.values()) == {sum(study.steps)}
    assert runs["shuffled"] == runs["full"]
    assert len({found[-1].key for found in runs.values() if found}) == 15
    assert [len(runs[name]) for name in ("full", "no_rhythm", "one_stage", "ground_truth")] == [2, 1, 1, 0]


def test_what_is_trained_in_one_stage_has_a_row_at_either_rate() -> None:
    study = full_study()
    rates = {v.name: [run.preset.train.lr for run in study.runs(v, 0, FOLDERS)] for v in VARIANTS}  # type: ignore[arg-type]
    assert rates["full"] == rates["cls_sim"] == [1e-3, 1e-2]
    for name in ("no_rhythm", "one_stage"):
        assert rates[name] == [1e-3] and rates[f"{name}_fast"] == [1e-2]


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


# the table


def made_up(*names: str, seed: int = 0) -> Values:
    rng = np.random.default_rng(seed)
    return {name: {metric: rng.random((3, 8)) for metric in table.SHOWN} for name in names}


def test_rows_that_are_measured_anew_take_their_place_among_the_others(tmp_path: Path) -> None:
    study, first = (
        full_study(),
        made_up("full", "no_rhythm", "shuffled", "ground_truth_codec", "ground_truth_unrelated"),
    )
    table.write(tmp_path, study, first, "all")
    before = json.loads((tmp_path / "rhythm_study.json").read_text())
    page = (tmp_path / "rhythm_study.md").read_text()
    new = made_up("shuffled", "no_rhythm_fast", seed=1)
    table.write(tmp_path, study, new, "some")
    rows = json.loads((tmp_path / "rhythm_study.json").read_text())
    assert [*rows] == [
        "full", "no_rhythm", "no_rhythm_fast", "shuffled", "ground_truth_codec", "ground_truth_unrelated",
    ]  # fmt: skip
    assert all(rows[name] == before[name] for name in ("full", "no_rhythm", "ground_truth_codec"))
    assert rows["shuffled"]["onset_f1_150ms"]["mean"] == pytest.approx(
        new["shuffled"]["onset_f1_150ms"].mean(), abs=1e-4
    )
    lines = (tmp_path / "rhythm_study.md").read_text().splitlines()
    made = [
        line for line in lines if line.startswith(("Made by `all`", "Rows `shuffled`, `no_rhythm_fast`: by `some`"))
    ]
    assert len(made) == 2
    (known,) = (line for line in page.splitlines() if line.startswith("- `full` - `no_rhythm`: "))
    assert known in lines  # while those of the old `full` and the new `shuffled` can't be told
    assert not any(line.startswith(("- `full` - `shuffled`", "- `full` - `no_rhythm_fast`")) for line in lines)


def test_page_and_plot_are_made_anew_of_the_table_alone(tmp_path: Path) -> None:
    study = full_study()
    table.write(tmp_path, study, made_up("full", "no_rhythm", "ground_truth_codec", "ground_truth_unrelated"), "all")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "rhythm_study.png").unlink()
    table.write(tmp_path, study, {}, "draw")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# the whole


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, str]:
    """The command, as CI runs it; without `--out` the table of a quick study is in its work folder."""
    folder = tmp_path_factory.mktemp("study")
    words = [sys.executable, "-m", "model.nano.rhythm_study", "--quick", "--work", str(folder), "--jobs", "1"]
    told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "300"})
    return quick_study(), folder, told.stdout


@pytest.mark.slow
def test_the_quick_study_fills_the_table(done: tuple[Study, Path, str]) -> None:
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
    assert "train full, stage 2, seed 0" in told
    assert told.splitlines()[-1].endswith(f"{folder / 'rhythm_study.md'}")
    assert (folder / "rhythm_study.png").stat().st_size > 10_000
    page = (folder / "rhythm_study.md").read_text()
    assert "`shuffled` - `no_rhythm`" in page and "Made by `python -m model.nano.rhythm_study --quick" in page


@pytest.mark.slow
def test_what_is_there_is_not_made_again(done: tuple[Study, Path, str]) -> None:
    study, folder, _ = done
    for score in folder.glob("scores/full-*.json"):  # of its own music, and with curves swapped
        score.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    told: list[str] = []
    run(dataclasses.replace(study, only=("full",)), folder, 1, told.append)
    assert [line for line in told if "there already" not in line] == ["1/1 score full, seed 0"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.slow
def test_the_set_is_two_releases_that_differ_in_their_music_alone(done: tuple[Study, Path, str]) -> None:
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
def test_accents_of_a_follower_stand_on_cuts(done: tuple[Study, Path, str]) -> None:
    study, folder, _ = done
    for split in ("train", "test"):
        for facts in read_clips(Store(folder), study.size, study.profile, split).facts:  # type: ignore[arg-type]
            on = [t for t in facts["follows"]["accents_s"] if t in facts["cuts_s"]]
            off = [t for t in facts["follows"]["accents_s"] if t not in facts["cuts_s"]]
            assert len(on) + len(off) == len(facts["follows"]["accents_s"])
            assert all(abs(t - cut) >= GAP_S for t in off for cut in facts["cuts_s"])


@pytest.mark.slow
def test_a_part_does_not_depend_on_when_it_is_made(done: tuple[Study, Path, str], tmp_path: Path) -> None:
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
