"""The bundled checkpoint: how it is taken out of a run, and that it fits the bundled weights beside it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import torch

from model import runs
from model.generate import LUFS, generate
from model.generate.models import BUNDLED, load
from model.nano.adapters import bundle
from pipeline.config import MusicSettings
from pipeline.media import audio_window
from pipeline.music.meters import Scores
from tests import synth


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


@pytest.mark.slow
def test_what_the_bundled_family_makes_sounds_like_music(tmp_path: Path) -> None:
    """By the detector that the pipeline decides with; it takes codes drawn by chance, played by the codec, for music in
    some seconds, and noise of the same level in none.
    """

    def music_scores(audio: np.ndarray) -> np.ndarray:
        scores = Scores(models.codec.rate, MusicSettings())
        scores.feed(audio.astype(np.float32))
        return scores.finish(10)["music"]

    models, stamps, rng = load(), synth.even_stamps(Fraction(25), 10), np.random.default_rng(0)
    cuts = [Fraction(s) for s in (2, 4, 5, 7, 8)]
    synth.write(tmp_path / "a.mp4", stamps=stamps, pictures=synth.shots(stamps, cuts, width=128, height=72))
    generate(tmp_path / "a.mp4", tmp_path / "b.mp4", models)
    (audio,) = audio_window(tmp_path / "b.mp4", rate=models.codec.rate, channels=1, start_s=0, end_s=10)
    loudness = pyloudnorm.Meter(models.codec.rate, filter_class="DeMan").integrated_loudness(audio)
    assert loudness == pytest.approx(LUFS, abs=0.5)
    chance = music_scores(models.codec.decode(rng.integers(0, models.codec.cardinality, (models.codec.codebooks, 500))))
    assert music_scores(audio).min() > max(0.7, chance.min() + 0.2)
    assert music_scores(audio).mean() > chance.mean() + 0.1
    assert music_scores(rng.normal(0, audio.std(), len(audio))).max() < 0.1
