"""`dvmset doctor`: what is missing, what is damaged, and what of it counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from flows.cli import app

PLACES = {  # where the published weights are put by hand, by the line of doctor
    "dvmset separator": ("adefossez/HTDemucs/htdemucs.yaml", "adefossez/HTDemucs/955717e8.safetensors"),
    "dvmset vision": ("timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors",),
    "dvmset codec": ("facebook/encodec_32khz/config.json", "facebook/encodec_32khz/model.safetensors"),
    "model musicgen-small": ("facebook/musicgen-small/state_dict.bin",),
    "model musicgen-medium": ("facebook/musicgen-medium/state_dict.bin",),
    "model t5-base": ("google-t5/t5-base/model.safetensors",),
    "tokenizer t5-base": ("google-t5/t5-base/tokenizer.json",),
}
Examine = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder with whole files at all places, whatever is in them, and no hub."""
    monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for path in (tmp_path / "weights" / name for names in PLACES.values() for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"a": np.zeros(3)}, path)
        elif path.suffix == ".bin":
            torch.save({"best_state": {}}, path)
        else:
            path.write_text("models: ['955717e8']" if path.suffix == ".yaml" else "{}")
    return tmp_path / "weights"


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """Exit code and JSON of doctor, the checks by name."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        result = CliRunner().invoke(app, ["doctor", "--data", str(tmp_path), "--json", *arguments])
        found = json.loads(result.stdout)
        found["checks"] = {check["name"]: check for check in found["checks"]}
        assert found["ok"] == (result.exit_code == 0)
        return result.exit_code, found

    return run


def test_whole_files_are_ok(weights: Path, examine: Examine) -> None:
    code, found = examine("--preset", "medium")
    assert (code, found["profile"], found["preset"]) == (0, "dvmset", "medium")
    for name, places in PLACES.items():
        assert found["checks"][name]["ok"], found["checks"][name]
        assert str(weights / places[-1]) in found["checks"][name]["detail"]


@pytest.mark.parametrize("place", [place for name in PLACES if "dvmset" in name for place in PLACES[name]])
def test_a_damaged_file_fails_the_profile_that_needs_it(weights: Path, examine: Examine, place: str) -> None:
    (weights / place).write_bytes(b"\xff garbage \0")
    code, found = examine()
    (broken,) = [check for check in found["checks"].values() if check["needed"] and not check["ok"]]
    assert (code, place in PLACES[broken["name"]]) == (1, True)
    assert str(weights / place) in broken["detail"] and "again" in broken["hint"]
    assert examine("--profile", "nano")[0] == 0


@pytest.mark.parametrize("name", ["model musicgen-small", "model t5-base", "tokenizer t5-base"])
def test_models_of_a_preset_count_if_it_is_asked_for(weights: Path, examine: Examine, name: str) -> None:
    (weights / PLACES[name][0]).write_bytes(b"garbage")
    code, found = examine()
    check = found["checks"][name]
    assert (code, check["ok"], check["needed"]) == (0, False, False)
    assert str(weights / PLACES[name][0]) in check["detail"] and check["hint"].startswith("Only ")
    assert examine("--preset", "small")[0] == ("model" in name)
    assert examine("--preset", "nano")[0] == 0


def test_what_is_missing_says_where_it_belongs(weights: Path, examine: Examine) -> None:
    place = weights / PLACES["model musicgen-small"][0]
    place.unlink()
    check = examine("--preset", "small")[1]["checks"]["model musicgen-small"]
    assert (check["ok"], check["needed"]) == (False, True)
    assert str(place) in check["hint"]


def test_transformers_files_of_a_backbone_are_looked_at_one_by_one(weights: Path, examine: Examine) -> None:
    folder = weights / "facebook/musicgen-small"
    (folder / "state_dict.bin").unlink()
    save_file({"a": np.zeros(3)}, folder / "one.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    (folder / "config.json").write_text("{}")
    assert "two.safetensors can't be read" in examine()[1]["checks"]["model musicgen-small"]["detail"]
    save_file({"b": np.zeros(3)}, folder / "two.safetensors")
    assert examine("--preset", "small")[0] == 0
    index.write_text("{")
    assert f"{index} is damaged" in examine()[1]["checks"]["model musicgen-small"]["detail"]


def test_a_data_folder_below_a_file_fails(weights: Path, examine: Examine, tmp_path: Path) -> None:
    file = tmp_path / "afile"
    file.touch()
    for data in (file, file / "x"):
        code, found = examine("--data", str(data))
        assert (code, found["checks"]["disk"]["detail"]) == (1, f"{file} is a file")
