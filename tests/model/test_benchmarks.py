"""The benchmarks of the model still run, and say what they should; how fast anything is isn't looked at."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.settings import load_preset
from model.vidmusician import describe
from tests import synth
from tests.benchmarks import loading, step
from tests.model.releases import toy_release


def printed(*command: str) -> dict[str, Any]:
    """What `python -m tests.benchmarks....` prints last, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_a_training_step_is_measured_in_both_stages_and_precisions() -> None:
    found = step.measure("nano", ("fp32", "bf16"), batch=2, seconds=2, steps=2)
    assert found["trainable"] == describe(load_preset("nano"), batch=1)["trainable"]
    ways = [(part["precision"], part["stage"]) for part in found["stages"]]
    assert ways == [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
    for part in found["stages"]:
        assert part["finite"] and len(part["s_per_step"]) == 2 and min(part["s_per_step"]) >= 0
        assert all(math.isfinite(value) for value in (*part["loss"], *part["grad_norm"]))
        assert min(part["grad_norm"]) > 0
        assert part["peak_mb"] > 0 and part["estimate_mb"] > 0
    first, second = (part["loss"] for part in found["stages"][:2])
    assert first == pytest.approx([math.log(2048)] * 2, rel=0.2) and second != first


def test_waiting_is_measured_on_a_release_that_is_named(tmp_path: Path) -> None:
    release = toy_release(tmp_path / "data", sources=20, spans=((0, 12_000),))
    (tmp_path / "work").mkdir()
    found = loading.waiting(tmp_path / "work", 2, release)
    assert found.keys() == {"waiting_share", "tokens_per_s"}
    assert 0 <= found["waiting_share"] <= 1 and found["tokens_per_s"] > 0
    described = json.loads((tmp_path / "work" / "run" / "run.json").read_text())
    assert described["release"]["path"] == str(release)


@pytest.mark.slow
def test_decoding_is_compared_with_audiocraft_on_the_same_tokens() -> None:
    found = printed("tests.benchmarks.decode", "--quick", "--json")
    assert found["tokens_equal"] is True
    assert found["ms_per_step"].keys() == {"audiocraft", "fp32", "bf16"}
    for ours in ("fp32", "bf16"):
        times = found["ms_per_step"]
        assert found[f"ratio_{ours}"] == pytest.approx(times["audiocraft"] / times[ours])
    assert 0 < found["bf16_tokens_equal"] <= 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_every_stage_is_measured_on_a_video(tmp_path: Path) -> None:
    stamps = synth.even_stamps(Fraction(25), 8)
    sound = np.sin(2 * np.pi * 220 * np.arange(8 * 44_100) / 44_100)[None] * 0.3
    video = synth.write(tmp_path / "short.mp4", stamps=stamps, audio=sound)
    found = printed("tests.benchmarks.stages", "--video", str(video), "--json")
    assert found["profile"] == "nano" and found["seconds"]["fetched"] == pytest.approx(8, abs=0.1)
    assert {"fetch", "shots", "music"} <= found["stages"].keys()
    for stage in found["stages"].values():
        assert stage.keys() == {"wall_s", "cpu_s", "peak_mb", "rtf"}
    assert found["total"]["wall_s"] == pytest.approx(sum(stage["wall_s"] for stage in found["stages"].values()))
    assert found["total"]["peak_mb"] == max(stage["peak_mb"] for stage in found["stages"].values())
