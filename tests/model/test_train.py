"""The trainer: learning, exactness, validation, what is recorded, what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import runs
from model.checkpoints import MUSICGEN_LICENCE, load_backbone, save_backbone
from model.data import Clips, Loader, in_order, open_release
from model.decoder import loss
from model.settings import TrainSettings, load_preset
from model.train import Event, Job, Outcome, job, learning_rate, train
from model.vidmusician import VidMusician
from pipeline.errors import MissingWeights, SettingsError, ShardError
from pipeline.shards import Row
from tests.model import ranks
from tests.model.releases import NANO, release_of, toy_job, toy_release
from tests.rows import make_row

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_release(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 1, left as it is by the tests."""
    run = tmp_path_factory.mktemp("runs") / "stage1"
    assert train(toy_job(release, run)) == Outcome(run, 6, True)
    return run


def copied(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Weights, optimiser and position of the newest checkpoints, bit for bit, and all losses on the way."""
    a, b = runs.newest(ours), runs.newest(theirs)
    assert a.position == b.position
    for left, right in ((a.weights(), b.weights()), (a.optimizer(), b.optimizer())):
        assert left.keys() == right.keys() and left
        assert all(torch.equal(left[name], right[name]) for name in left)
    lines = [[(m["step"], m["loss"], m["grad_norm"], m["lr"]) for m in metrics(r, "train")] for r in (ours, theirs)]
    assert lines[0] == lines[1]
    assert [m["loss"] for m in metrics(ours, "validation")] == [m["loss"] for m in metrics(theirs, "validation")]


def in_processes(release: Path, folder: Path, devices: int, *names: str) -> int:
    """Exit code of `tests.model.ranks`, in a process group of its own."""
    command = [sys.executable, "-m", "tests.model.ranks", str(release), str(folder), str(devices), *names]
    done = subprocess.run(command, start_new_session=True, check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


# exactness


def test_a_run_stopped_by_ctrl_c_is_saved_and_goes_on_bit_for_bit(release: Path, tmp_path: Path) -> None:
    settings = (*ranks.EXACT, "train.workers=2")
    train(toy_job(release, tmp_path / "whole", *settings))
    events: list[Event] = []

    def interrupt(event: Event) -> None:
        events.append(event)
        if event.kind == "train" and event.step == 3:
            signal.raise_signal(signal.SIGINT)

    stopped = train(toy_job(release, tmp_path / "stopped", *settings), interrupt)
    assert (stopped.finished, stopped.step) == (False, 4)  # the step that was being made is finished
    assert [e.kind for e in events[-2:]] == ["saved", "stopped"]
    resumed = train(toy_job(release, tmp_path / "stopped", *settings, resume=True))
    assert resumed == Outcome(tmp_path / "stopped", 6, True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_the_second_ctrl_c_interrupts_at_once(release: Path, tmp_path: Path) -> None:
    def interrupt_twice(event: Event) -> None:
        if event.kind == "train":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(toy_job(release, tmp_path), interrupt_twice)
    assert runs.newest(tmp_path).position.step == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(release: Path, tmp_path: Path) -> None:
    assert in_processes(release, tmp_path, 1, "killed") == -signal.SIGKILL
    assert runs.newest(tmp_path / "killed").position.step == 4
    assert len(metrics(tmp_path / "killed", "train")) == 5
    train(ranks.job("whole", release, tmp_path, 1))
    train(ranks.job("resume", release, tmp_path, 1))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_bit_for_bit(release: Path, tmp_path: Path) -> None:
    assert in_processes(release, tmp_path, 2, "one", "fault", "whole", "killed") == -signal.SIGKILL
    assert runs.newest(tmp_path / "killed").position.step == 4
    assert in_processes(release, tmp_path, 2, "resume") == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    sessions = runs.read_run(tmp_path / "killed")["sessions"]
    assert [(s["devices"], s["from_step"]) for s in sessions] == [("2 x cpu", 0), ("2 x cpu", 4)]

    # Gradients: two processes with two clips each, some padded, against one with four.
    train(toy_job(release, tmp_path / "alone", "train.steps=1", "train.clip=1e9"))
    two, one = (runs.newest(tmp_path / name).optimizer() for name in ("one", "alone"))
    length = math.sqrt(sum(float(g.square().sum()) for n, g in one.items() if n.endswith("exp_avg")))
    assert length > 0
    for name in (n for n in one if n.endswith("exp_avg")):  # 0.1 of the gradient, after one step
        assert (two[name] - one[name]).norm() < 1e-5 * length, name
    ours, theirs = metrics(tmp_path / "one", "train")[0], metrics(tmp_path / "alone", "train")[0]
    assert ours["cross_entropy"] == pytest.approx(theirs["cross_entropy"], rel=1e-6)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
    assert runs.newest(tmp_path / "one").position == runs.newest(tmp_path / "alone").position
    validations = [metrics(tmp_path / name, "validation")[0] for name in ("one", "alone")]
    assert validations[0]["cross_entropy"] == pytest.approx(validations[1]["cross_entropy"], rel=1e-6)

    # A batch that is damaged for one process only is skipped by both.
    assert runs.newest(tmp_path / "fault").position.skipped == 1
    assert [m["loss"] is None for m in metrics(tmp_path / "fault", "train")] == [False, False, True, False]


def test_a_run_goes_on_with_more_steps_than_it_was_begun_with(
    trained: Path, release: Path, tmp_path: Path
) -> None:
    run = copied(trained, tmp_path)
    assert train(toy_job(release, run, resume=True)) == Outcome(run, 6, True)  # nothing left to do
    assert train(toy_job(release, run, "train.steps=7", resume=True)) == Outcome(run, 7, True)
    described = runs.read_run(run)
    assert [s["from_step"] for s in described["sessions"]] == [0, 6, 6]
    assert runs.preset_of_run(described).train.steps == 7
    assert [m["step"] for m in metrics(run, "train")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loader, "__iter__", ranks.with_fault)
    events: list[Event] = []
    train(toy_job(release, tmp_path, "train.save_every=1", "train.steps=3"), events.append)
    before, after = (path / runs.WEIGHTS for path in runs.checkpoints(tmp_path))
    assert (before.parent.name, after.parent.name) == ("00000002", "00000003")
    assert before.read_bytes() == after.read_bytes()
    position = runs.newest(tmp_path).position
    assert (position.step, position.skipped) == (3, 1)
    assert [(e.step, e.values) for e in events if e.kind == "skipped"] == [(3, {"skipped": 1})]
    lines = metrics(tmp_path, "train")
    assert [m["skipped"] for m in lines] == [0, 0, 1] and lines[2]["loss"] is None
    assert math.isfinite(metrics(tmp_path, "validation")[-1]["loss"])


# learning


def sharp_backbone(path: Path) -> str:
    """A nano decoder that can be sure of a code: as random heads stand, no hidden state suits all codebooks."""
    decoder = load_backbone("random:0", "nano").decoder
    with torch.no_grad():
        decoder.heads.weight.mul_(8)
    projection = {"weight": torch.randn(128, 64) / 8, "bias": torch.zeros(128)}
    save_backbone(path, decoder, projection, licence=MUSICGEN_LICENCE)
    return f"decoder.weights={path}"


def with_codes(row: Row, codes: np.ndarray) -> Row:
    return dataclasses.replace(row, codes=np.ascontiguousarray(np.broadcast_to(codes, row.codes.shape), np.int16))


@pytest.mark.slow
def test_each_stage_brings_one_batch_to_almost_no_loss(tmp_path: Path) -> None:
    """Stage 1: two clips that only their global tokens tell apart. Stage 2: codes that only the curve announces."""
    rows = [make_row(f"source {i}", 0, 2000, spec=NANO) for i in (2, 5)]
    constant = [with_codes(row, np.full((4, 1), code)) for row, code in zip(rows, (700, 1300), strict=True)]
    curve = np.repeat([0, 1], 25).astype(np.float16)
    switching = [
        dataclasses.replace(with_codes(row, 900 + 99 * np.repeat([0, 1], 50)), patch_distance=curve) for row in rows
    ]
    settings = (
        sharp_backbone(tmp_path / "sharp.safetensors"), "semantic.projector=trained", "train.batch=2",
        "train.min_lr=1", "train.warmup=0", "train.save_every=1000", "train.eval_every=1000", "train.log_every=20",
        "drop.semantic=0", "drop.rhythm=0", "train.weight_decay=0",
    )  # fmt: skip
    first, second = tmp_path / "stage1", tmp_path / "stage2"
    train(toy_job(release_of(tmp_path / "a", constant), first, *settings, "train.steps=60", "train.lr=0.03"))
    losses = [m["loss"] for m in metrics(first, "train")]
    assert losses[0] > 1 and losses[-1] < 0.02
    release = release_of(tmp_path / "b", switching)
    train(toy_job(release, second, *settings, "train.steps=100", "train.lr=0.003", stage=2, init_from=first))
    losses = [m["loss"] for m in metrics(second, "train")]
    assert losses[0] > 2 and losses[-1] < 0.2  # late codebooks learn of the change k frames after it
    licence = runs.read_run(second)["licence"]
    assert "CC-BY-NC-4.0 (MusicGen's weights, Meta)" in licence


def test_stage_2_starts_where_stage_1_ended(trained: Path, release: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    train(toy_job(release, tmp_path, "train.steps=2", stage=2, init_from=trained), events.append)
    end, start = metrics(trained, "validation")[-1], metrics(tmp_path, "validation")[0]
    assert (end["step"], start["step"]) == (6, 0)
    assert start["cross_entropy"] == end["cross_entropy"]  # bit for bit
    assert start["identity_distance"] == start["injected"] == [0.0] * 6
    last = metrics(tmp_path, "validation")[-1]
    assert all(d > 0 for d in last["identity_distance"]) and all(d > 0 for d in last["injected"])
    before, after = runs.newest(trained).weights(), runs.newest(tmp_path).weights()
    assert all(torch.equal(after[name], before[name]) for name in before)  # stage 2 trains the rhythm part only
    assert {n.split(".")[0] for n in after.keys() - before.keys()} == {"rhythm"}
    counts = load_model_counts()
    assert (events[0].kind, events[0].values["trainable"]) == ("begin", counts["stage_2"])
    begun_with = runs.read_run(tmp_path)["init_from"]
    assert begun_with == events[0].values["init_from"] == {
        "run": str(trained), "preset": "nano", "ablation": "", "preset_digest": load_preset("nano").digest(),
        "stage": 1, "step": 6, "weights_sha256": runs.newest(trained).digests[runs.WEIGHTS],
    }  # fmt: skip


def load_model_counts() -> dict[str, int]:
    return VidMusician(load_preset("nano"), load_backbone("random:0", "nano").decoder).count()


def test_one_stage_trains_both_parts_and_has_no_second(release: Path, tmp_path: Path) -> None:
    train(toy_job(release, tmp_path, "train.steps=2", ablation="one_stage"))
    assert {n.split(".")[0] for n in runs.newest(tmp_path).weights()} == {"semantic", "rhythm"}
    with pytest.raises(SettingsError, match="Preset nano one_stage has no stage 2"):
        train(toy_job(release, tmp_path / "2", ablation="one_stage", stage=2))


def test_bf16_is_the_decoders_precision_only(release: Path, tmp_path: Path) -> None:
    train(toy_job(release, tmp_path / "half", "train.precision=bf16", "train.steps=2"))
    train(toy_job(release, tmp_path / "full", "train.steps=2"))
    found = runs.newest(tmp_path / "half")
    assert {t.dtype for t in (*found.weights().values(), *found.optimizer().values())} == {torch.float32}
    half, full = (metrics(tmp_path / name, "train") for name in ("half", "full"))
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=2e-3) and half[0]["loss"] != full[0]["loss"]


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    settings = TrainSettings(steps=110, warmup=10, lr=2.0, min_lr=0.1)
    rates = [learning_rate(settings, step) for step in range(110)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) * 0.2)
    assert rates[10] == 2.0 and rates[60] == pytest.approx(1.1) and rates[109] == pytest.approx(0.2, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(TrainSettings(steps=1, warmup=0), 0) == 3e-4


def test_a_run_is_finished_by_the_steps_that_are_asked_for(trained: Path, release: Path, tmp_path: Path) -> None:
    opened = open_release(release)
    preset, other = (toy_job(release, trained, *more).preset for more in ((), ("train.seed=1",)))
    assert runs.is_finished(trained, preset, 1, opened)
    assert not runs.is_finished(trained, toy_job(release, trained, "train.steps=7").preset, 1, opened)
    assert not runs.is_finished(tmp_path, preset, 1, opened)
    with pytest.raises(SettingsError, match=r"can't go on as another run: train\.seed: 0 -> 1"):
        runs.is_finished(trained, other, 1, opened)


def test_a_run_that_goes_on_from_its_beginning_keeps_the_validation_it_began_with(
    release: Path, tmp_path: Path
) -> None:
    train(toy_job(release, tmp_path, "train.steps=1"))
    whole = metrics(tmp_path, "validation")
    assert [line["step"] for line in whole] == [0, 1]
    (begun, done) = runs.checkpoints(tmp_path)
    assert begun.name == "00000000"
    shutil.rmtree(done)
    train(toy_job(release, tmp_path, "train.steps=1", resume=True))
    assert metrics(tmp_path, "validation") == whole
    assert [line["step"] for line in metrics(tmp_path, "train")] == [1]


# what is recorded


def test_validation_is_reported_beside_the_untouched_backbone(trained: Path, release: Path) -> None:
    clips = Clips(open_release(release).shards["validation"], crop_s=2, reduction="patch_distance")
    decoder = load_backbone("bundled:backbone", "nano").decoder
    with torch.no_grad():
        outputs = [
            (loss(decoder(b.codes, torch.zeros(1, 2, 128), padding=b.valid), b.codes)[1], b.valid)
            for b in in_order(clips, 1, most=1000)
        ]
    counts = torch.tensor([[int(valid.sum()) - k for k in range(4)] for _, valid in outputs])
    expected = sum(c * n for (c, _), n in zip(outputs, counts, strict=True)) / counts.sum(0)
    found = metrics(trained, "validation")
    assert [m["step"] for m in found] == [0, 3, 6]
    for line in found:
        assert line["backbone"] == pytest.approx(expected.tolist(), rel=1e-5)
        assert line["gain"] == pytest.approx(float(expected.mean()) - line["loss"], abs=1e-4)
        assert line["loss"] == pytest.approx(sum(line["cross_entropy"]) / 4)
    assert json.loads((trained / "backbone.json").read_text())["cross_entropy"] == found[0]["backbone"]


def test_the_backbones_loss_is_computed_once(trained: Path, release: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    known = json.loads((run / "backbone.json").read_text())
    (run / "backbone.json").write_text(json.dumps({**known, "cross_entropy": [1.0, 2.0, 3.0, 4.0]}))
    train(toy_job(release, run, "train.steps=7", resume=True))
    assert metrics(run, "validation")[-1]["backbone"] == [1.0, 2.0, 3.0, 4.0]
    train(toy_job(release, run, "train.steps=8", "train.eval_clips=3", resume=True))  # of other clips: anew
    assert metrics(run, "validation")[-1]["backbone"][3] > 7


def test_without_validation_clips_there_is_no_validation(tmp_path: Path) -> None:
    rows = [make_row("source 2", 4000 * i, 4000 * i + 3000, spec=NANO) for i in range(5)]
    release = release_of(tmp_path / "data", rows)
    held_out = open_release(release).shards["validation"]
    assert not len(Clips(held_out, crop_s=2, reduction="patch_distance"))
    assert train(toy_job(release, tmp_path / "run", "train.steps=3")).finished
    assert metrics(tmp_path / "run", "validation") == []


def test_a_run_describes_itself(trained: Path, release: Path) -> None:
    described = runs.read_run(trained)
    preset = toy_job(release, trained).preset
    assert runs.preset_of_run(described) == preset
    assert described["preset_digest"] == preset.digest()
    assert (described["stage"], described["init_from"]) == (1, None)
    assert described["release"] == {"id": release.name, "digest": open_release(release).digest, "path": str(release)}
    assert described["models"]["decoder"]["id"] == "bundled:backbone"
    assert len(described["models"]["t5"]["digest"]) == 64
    assert "bundled:backbone: Apache-2.0" in described["licence"]
    assert described["data_models"]["codec"]["id"] == "random:nano (seed 0)"
    assert described["parameters"]["trainable"] == load_model_counts()["trainable"]
    session = described["sessions"][0]
    assert session["command"] == "test" and session["versions"]["torch"] == torch.__version__.split("+")[0]
    names = sorted(str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file())
    files = ["optimizer.safetensors", "state.json", "weights.safetensors"]
    saved = [f"checkpoints/{step:08d}/{file}" for step in (4, 6) for file in files]
    assert [n for n in names if "tfevents" not in n] == ["backbone.json", *saved, "metrics.jsonl", "run.json"]


def test_metrics_are_on_tensorboard_as_well(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()
    lines = metrics(trained, "train")
    assert [s.value for s in board.Scalars("train/loss")] == pytest.approx([m["loss"] for m in lines])
    assert [s.step for s in board.Scalars("validation/cross_entropy/3")] == [0, 3, 6]
    assert {"train/tokens_per_s", "train/waiting_share", "train/grad_norm"} <= set(board.Tags()["scalars"])


def test_speed_and_waiting_are_measured(trained: Path) -> None:
    for line in metrics(trained, "train"):
        assert 0 <= line["waiting_share"] <= 1 and line["tokens_per_s"] > 0
        assert line["seconds_left"] >= 0 and line["epoch"] == pytest.approx(line["step"] * 4 / 16)
    assert metrics(trained, "train")[-1]["seconds_left"] == 0


# what is refused


def refused(job: Job, match: str, error: type[Exception] = SettingsError) -> str:
    """The hint of the one error that a job ends with; the run's folder is left as it was, or isn't made."""
    before = sorted(job.out.rglob("*")) if job.out.exists() else None
    with pytest.raises(error, match=match) as caught:
        train(job)
    assert (sorted(job.out.rglob("*")) if job.out.exists() else None) == before
    return str(getattr(caught.value, "hint", ""))


def test_resume_and_init_from_do_not_mix(trained: Path, release: Path, tmp_path: Path) -> None:
    job = toy_job(release, copied(trained, tmp_path), init_from=trained, resume=True)
    refused(job, "--resume and --init-from don't mix")


def test_stage_2_wants_a_stage_1(release: Path, tmp_path: Path) -> None:
    assert "--init-from" in refused(toy_job(release, tmp_path, stage=2), "Stage 2 goes on from a stage 1")


def test_a_run_is_not_written_over(trained: Path, release: Path) -> None:
    assert f"--resume {trained}" in refused(toy_job(release, trained), "holds a run already")


@pytest.mark.parametrize(
    ("settings", "arguments", "match"),
    [
        (("train.batch=8",), {}, "can't go on as another run: train.batch: 4 -> 8"),
        (("train.lr=0.1", "train.crop_s=1"), {}, "train.crop_s: 2 -> 1; train.lr: 0.003 -> 0.1"),
        ((), {"stage": 2}, "stage: 1 -> 2"),
        (("semantic.lora_scale=2",), {}, "semantic.lora_scale: 1.0 -> 2.0"),
        ((), {"ablation": "cls_sim"}, "rhythm.reduction: patch_distance -> cls_distance"),
    ],
)
def test_a_run_goes_on_as_what_it_was_only(
    trained: Path, release: Path, tmp_path: Path, settings: tuple[str, ...], arguments: dict[str, Any], match: str
) -> None:
    refused(toy_job(release, copied(trained, tmp_path), *settings, resume=True, **arguments), match)


def test_a_run_goes_on_with_its_own_release_only(trained: Path, tmp_path: Path) -> None:
    other = toy_release(tmp_path, sources=11)
    refused(toy_job(other, copied(trained, tmp_path), resume=True), "release: r-.* -> r-.*; release digest")


def test_other_frozen_weights_are_noticed(trained: Path, release: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    described = runs.read_run(run)
    described["models"]["t5"]["digest"] = "0" * 64
    runs.write_run(run, described)
    refused(toy_job(release, run, resume=True), "frozen weights of t5 aren't those")


def test_weights_of_another_model_are_refused(trained: Path, release: Path, tmp_path: Path) -> None:
    job = toy_job(release, tmp_path, "semantic.lora_rank=8", stage=2, init_from=trained)
    assert "preset" in refused(job, "are of another model: semantic.lora_rank: 4 -> 8")


def test_what_one_stage_has_trained_is_no_start_for_stage_2(trained: Path, release: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    described = runs.read_run(run)
    described["preset"] = toy_job(release, run, ablation="one_stage").preset.model_dump(mode="json")
    runs.write_run(run, described)
    job = toy_job(release, tmp_path / "2", stage=2, init_from=run)
    assert "a run of stage 1" in refused(job, r"trained in one stage \(nano one_stage\)")


def test_a_checkpoint_cut_short_is_refused(trained: Path, release: Path, tmp_path: Path) -> None:
    run = copied(trained, tmp_path)
    path = runs.newest(run).path / runs.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    hint = refused(toy_job(release, run, resume=True), f"{path.name} is cut short or damaged")
    assert str(path.parent) in hint
    shutil.rmtree(path.parent)
    assert train(toy_job(release, run, resume=True)).finished  # from the checkpoint before
    assert_same_run(run, trained)


def test_shards_that_do_not_fit_the_preset_are_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    spec = dataclasses.replace(NANO, vision_dim=16, cardinality=64)
    release = toy_release(tmp_path, spec=spec)
    match = r"width of a global token 16 \(preset: 192\), entries of a codebook 64 \(preset: 2048\)\."
    refused(toy_job(release, tmp_path / "run"), match)


def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    refused(toy_job(tmp_path, tmp_path / "run"), "is not a release", ShardError)


def test_a_damaged_shard_ends_the_run_with_its_name(tmp_path: Path) -> None:
    folder = toy_release(tmp_path)
    shard = max(folder.glob("train-*"), key=lambda p: p.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[content.find(make_row("source 2", 0, 3000, spec=NANO).codes.tobytes()) + 9] ^= 4
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"is damaged in row group 0 .* column codes"):
        train(toy_job(folder, tmp_path / "run"))


def test_a_step_that_does_not_fit_into_memory_is_not_begun(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "available_bytes", lambda _: 90_000_000)
    asked = toy_job(release, tmp_path, "train.batch=64", "train.crop_s=30")
    hint = refused(asked, r"64 clips of 30 s needs about \d\d\.\d GB of cpu memory, 0\.1 GB are available")
    assert "train.checkpointing=true" in hint


def test_available_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = job.available_bytes(CPU)
    assert 1e8 < machine < 1e14
    monkeypatch.setattr(job, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert job.available_bytes(CPU) == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 3000000\ninactive_file 700000\n")
    assert job.available_bytes(CPU) == 1_700_000


def test_devices_that_are_not_there_are_refused(release: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    refused(toy_job(release, tmp_path, "train.accelerator=cuda"), "No training on these devices")


def test_a_batch_has_to_be_divisible_among_processes() -> None:
    with pytest.raises(SettingsError, match="A batch of 8 clips can't be shared by 3 processes"):
        job.check_devices(load_preset("nano"), 3, CPU)


def test_missing_weights_are_named(release: Path, tmp_path: Path) -> None:
    refused(toy_job(release, tmp_path / "run", "decoder.weights=bundled:none"), "No bundled weights", MissingWeights)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(release: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(toy_job(release, tmp_path), "can't be written to")


def test_a_file_in_the_place_of_the_run_is_refused(release: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.write_text("")
    with pytest.raises(SettingsError, match="run can't be made"):
        train(toy_job(release, place))


