"""The bundled checkpoint: how it is taken out of a run, and that it fits the bundled weights beside it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from model import runs
from model.generate.models import BUNDLED, load
from model.nano.adapters import bundle


def test_a_bundled_run_keeps_its_weights_and_nothing_of_the_machine(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "bundled"
    runs.write_run(run, {"format": runs.FORMAT, "release": {"id": "r-1", "path": str(tmp_path)}, "sessions": ["here"]})
    runs.save(run, runs.Position(step=7), {"a": torch.arange(3.0)}, {"a/step": torch.zeros(1)})
    out.mkdir()
    (out / "old").touch()
    bundle(run, out)
    found = runs.newest(out)
    assert found.position.step == 7 and found.weights()["a"].tolist() == [0, 1, 2]
    assert runs.read_run(out)["release"] == {"id": "r-1"}
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["run.json", "state.json", "weights.safetensors"]
    assert str(tmp_path) not in "".join(p.read_text() for p in out.rglob("*.json"))


def test_the_bundled_checkpoint_belongs_to_the_bundled_family() -> None:
    models = load()
    assert models.checkpoint is not None and models.checkpoint["stage"] == 2
    assert models.musician.uses_rhythm
    assert not any(m["id"].startswith("random") for m in models.digests().values())
    (said,) = models.caveats()
    assert "bundled nano" in said
    files = [p for p in BUNDLED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 1_000_000
    assert "path" not in json.loads((BUNDLED / runs.RUN).read_text())["release"]
