"""Run folders: checkpoints whole or not at all, read back bit for bit, and what damage does."""

from __future__ import annotations

import copy
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from model import runs
from model.runs import Position
from pipeline.errors import DvmsetError, SettingsError

WEIGHTS = {"a.weight": torch.randn(3, 4), "b": torch.randn(5, 2).t()}  # b is not contiguous
OPTIMIZER = {"a.weight/exp_avg": torch.randn(3, 4), "a.weight/step": torch.tensor(7.0)}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = runs.save(tmp_path, Position(1000, 3, 12345), WEIGHTS, OPTIMIZER)
    assert path == tmp_path / "checkpoints" / "00001000"
    found = runs.newest(tmp_path)
    assert (found.path, found.position) == (path, Position(1000, 3, 12345))
    assert_same(found.weights(), WEIGHTS)
    assert_same(found.optimizer(), OPTIMIZER)


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(tmp_path: Path) -> None:
    path = runs.save(tmp_path, Position(2), WEIGHTS, OPTIMIZER)
    assert sorted(p.name for p in path.iterdir()) == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000002"]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (0, 999, 1000, 20_000_000):
        runs.save(tmp_path, Position(step), WEIGHTS, OPTIMIZER)
    assert [p.name for p in runs.checkpoints(tmp_path)] == ["00001000", "20000000"]


def test_a_crash_while_saving_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.save(tmp_path, Position(1), WEIGHTS, OPTIMIZER)

    class Crash(BaseException):
        pass

    def dies(*_: object) -> None:
        raise Crash

    for name in ("save_file", "file_digest"):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(runs, name, dies)
            runs.save(tmp_path, Position(2), WEIGHTS, OPTIMIZER)
        assert runs.newest(tmp_path).position.step == 1
        assert_same(runs.newest(tmp_path).weights(), WEIGHTS)
    runs.save(tmp_path, Position(3), WEIGHTS, OPTIMIZER)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000003"]


def test_a_disk_that_is_full_is_one_clear_error_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.save(tmp_path, Position(1), WEIGHTS, OPTIMIZER)

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(runs, "save_file", full)
    with pytest.raises(DvmsetError, match=r"The checkpoint of step 2 can't be written.*No space left"):
        runs.save(tmp_path, Position(2), WEIGHTS, OPTIMIZER)
    assert runs.newest(tmp_path).position.step == 1


def test_a_step_that_is_saved_already_is_left_as_it_is(tmp_path: Path) -> None:
    runs.save(tmp_path, Position(1), WEIGHTS, OPTIMIZER)
    runs.save(tmp_path, Position(1), {"other": torch.zeros(1)}, {})
    assert_same(runs.newest(tmp_path).weights(), WEIGHTS)


@pytest.mark.parametrize("name", ["weights", "optimizer"])
def test_a_file_cut_short_or_changed_is_one_clear_error(tmp_path: Path, name: str) -> None:
    path = runs.save(tmp_path, Position(1), WEIGHTS, OPTIMIZER) / f"{name}.safetensors"
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    for damaged in (content[:-10], flipped, b""):
        path.write_bytes(damaged)
        with pytest.raises(SettingsError, match=f"{path.name} is cut short or damaged") as error:
            getattr(runs.newest(tmp_path), name)()
        assert "goes on from the checkpoint before it" in error.value.hint
    path.unlink()
    with pytest.raises(SettingsError, match=f"{path.name} can't be read"):
        getattr(runs.newest(tmp_path), name)()


def test_a_damaged_state_is_one_clear_error(tmp_path: Path) -> None:
    state = runs.save(tmp_path, Position(1), WEIGHTS, OPTIMIZER) / "state.json"
    for text in ("{", "{}", json.dumps({"position": {"steps": 1}, "digests": {}})):
        state.write_text(text)
        with pytest.raises(SettingsError, match=r"state\.json can't be read"):
            runs.newest(tmp_path)


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere is not a training run"):
        runs.read_run(tmp_path / "nowhere")
    with pytest.raises(SettingsError, match="has no checkpoint"):
        runs.newest(tmp_path)
    for text, message in (("{", "can't be read"), ('{"format": 99}', "is not of format 1"), ("[]", "not of format")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(SettingsError, match=message):
            runs.read_run(tmp_path)


def test_a_folder_with_both_stages_says_how_to_go_on_with_them(tmp_path: Path) -> None:
    for stage in (1, 2):
        (tmp_path / f"stage{stage}").mkdir()
        runs.write_run(tmp_path / f"stage{stage}", {"format": runs.FORMAT})
    with pytest.raises(SettingsError, match="is not a training run") as caught:
        runs.read_run(tmp_path)
    both = f"{tmp_path / 'stage1'} and {tmp_path / 'stage2'}"
    assert caught.value.hint == f"It holds {both}: the command that began it, run again, goes on; or name a stage's."


def test_a_folder_that_may_not_be_read_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.save(tmp_path, Position(1), WEIGHTS, OPTIMIZER)

    def refuses(path: object, **_: object) -> None:  # as the system does, except to root
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for call in ("listdir", "stat"):
        with monkeypatch.context() as patch, pytest.raises(SettingsError, match=r"can't be read: .*denied"):
            patch.setattr(os, call, refuses)
            runs.is_run(tmp_path) if call == "stat" else runs.checkpoints(tmp_path)


def test_an_optimiser_goes_on_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    other = copy.deepcopy(layer)
    data = torch.randn(20, 5, 4)

    def made(module: nn.Linear) -> torch.optim.AdamW:
        groups = [{"params": [module.weight], "weight_decay": 0.1}, {"params": [module.bias], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.95))

    def names(module: nn.Linear) -> dict[Tensor, str]:
        return {p: n for n, p in module.named_parameters()}

    def trained(module: nn.Linear, optimizer: torch.optim.AdamW, batches: Tensor) -> None:
        for batch in batches:
            optimizer.zero_grad()
            module(batch).square().mean().backward()
            optimizer.step()

    first = made(layer)
    trained(layer, first, data[:10])
    runs.save(tmp_path, Position(10), layer.state_dict(), runs.optimizer_tensors(first, names(layer)))
    trained(layer, first, data[10:])

    found, second = runs.newest(tmp_path), made(other)
    other.load_state_dict(found.weights())
    runs.restore_optimizer(second, names(other), found.optimizer())
    trained(other, second, data[10:])
    assert_same(dict(other.state_dict()), dict(layer.state_dict()))
    assert_same(runs.optimizer_tensors(second, names(other)), runs.optimizer_tensors(first, names(layer)))


@pytest.mark.parametrize("tensors", [{"c/exp_avg": torch.zeros(1)}, {"weight/exp_avg": torch.zeros(3, 4)}])
def test_the_state_of_another_optimiser_is_refused(tensors: dict[str, Tensor]) -> None:
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    with pytest.raises(SettingsError, match="of another model"):
        runs.restore_optimizer(optimizer, {p: n for n, p in layer.named_parameters()}, tensors)
    assert not optimizer.state


def test_what_computes_is_recorded() -> None:
    found = runs.provenance()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["commit"] is None or len(found["commit"].split("+")[0]) == 40
