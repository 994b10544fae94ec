"""The nano separator: its material, its training loop, and what the bundled weights can do."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from pipeline.config import SeparateSettings
from pipeline.nano import mixtures, separator
from pipeline.nano.mixtures import RATE, mixing, music, voices
from pipeline.separate import licence, load_separator, load_weights
from pipeline.weights import bundled

BUNDLED_SETTINGS = SeparateSettings(model="bundled:separator", chunk_s=30, device="cpu")


@pytest.fixture
def small_banks(monkeypatch):
    """Banks of coloured noise instead of an hour of rendered audio."""
    rng = np.random.default_rng(0)
    clips = (rng.normal(0, 3000, (3, 12 * RATE))).astype(np.int16)
    monkeypatch.setattr(mixing, "bank", lambda split, kind: clips)
    monkeypatch.setattr(mixing, "training_track", lambda number: clips[number % 3] / 32768)


def test_no_score_and_no_voice_is_in_both_splits():
    train, test = (set(music.score_paths(split)) for split in ("train", "test"))
    assert len(train) > 200 and len(test) > 20 and not train & test
    assert not set(voices.VARIANTS["train"]) & set(voices.VARIANTS["test"])


def test_every_voice_speaks():
    for split in ("train", "test"):
        for language in voices.LANGUAGES[split]:
            for variant in voices.VARIANTS[split][:2]:
                audio = mixtures.say("lala mono kasta", f"{language}+{variant}")
                assert len(audio) > RATE // 2 and np.abs(audio).max() > 0.05
    with pytest.raises(ValueError, match="no voice"):
        mixtures.say("hello", "xx-none")


def test_sung_voices_follow_the_melody():
    spoken = mixtures.say("a malena o mani la mola nu ma " * 3, "it+f2")
    f0 = np.full(len(spoken) * 3, 220.0)
    sung = voices.vocode(spoken, f0, 2.0, np.random.default_rng(0))
    assert len(sung) > 1.3 * len(spoken)  # vowels are drawn out
    spectrum = np.abs(np.fft.rfft(sung)) ** 2
    frequency = np.fft.rfftfreq(len(sung), 1 / RATE)
    band = (frequency > 150) & (frequency < 1500)
    distance = np.abs(frequency / 220 - np.round(frequency / 220)) * 220
    assert spectrum[band & (distance < 15)].sum() > 0.8 * spectrum[band].sum()


def test_a_mixture_depends_on_its_seed_alone_and_is_the_sum_of_its_stems(small_banks):
    for seed in range(30):
        first, second = (mixtures.training_mixture(np.random.default_rng(seed), 2.0) for _ in range(2))
        assert np.array_equal(first.other, second.other) and np.array_equal(first.vocals, second.vocals)
        assert first.mix.shape == (2 * RATE,) and np.isfinite(first.mix).all()
        assert np.array_equal(first.mix, first.other + first.vocals)


def test_a_batch_depends_on_seed_and_number_alone(small_banks):
    one, two, other = (separator._batch(3, number) for number in (2, 2, 4))
    assert one.shape == (separator.BATCH, 2, 1, 3 * RATE)
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_training_writes_weights_and_goes_on_from_its_checkpoint(small_banks, tmp_path: Path, monkeypatch):
    geometry = {**separator.GEOMETRY, "segment": 1, "channels": 8, "depth": 3, "nfft": 512, "t_layers": 1}
    monkeypatch.setattr(separator, "GEOMETRY", geometry)
    out, log = tmp_path / "w.safetensors", io.StringIO()
    console = Console(file=log, width=200)
    separator.train(0.005, out, seed=0, threads=1, console=console)
    first = {k: v.clone() for k, v in load_weights(out).state_dict().items()}
    separator.train(0.1, out, seed=0, threads=1, console=console)
    assert "going on from step" in log.getvalue()
    model = load_weights(out)
    assert tuple(model.sources) == separator.SOURCES and model.samplerate == RATE
    assert any(not torch.equal(v, first[k]) for k, v in model.state_dict().items())


def test_the_bundled_weights_are_small_and_say_what_they_are():
    path = bundled("separator")
    assert path.stat().st_size < 5e6
    with safe_open(str(path), framework="pt") as file:
        assert file.metadata()["klass"] == "demucs.htdemucs.HTDemucs"
    loaded = load_separator(BUNDLED_SETTINGS)
    assert (loaded.sources, loaded.rate, loaded.channels) == (("other", "vocals"), 22050, 1)
    assert len(loaded.digest) == 64 and licence(BUNDLED_SETTINGS) == "Apache-2.0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "snr_db", "low", "high", "error"),
    [
        ("music", None, 0.0, 0.07, 0.07),
        ("music speech", 0.0, 0.3, 0.6, 0.25),
        ("music speech", 10.0, 0.8, 1.0, 0.15),
        ("speech", None, 0.93, 1.0, 0.06),
        ("singing", None, 0.9, 1.0, 0.08),
    ],
)
def test_bundled_weights_tell_held_out_voices_from_held_out_music(case, snr_db, low, high, error):
    examples = [mixtures.test_mixture(case, i, snr_db) for i in range(12)]
    scores = np.array([separator.score(load_separator(BUNDLED_SETTINGS), m) for m in examples])
    assert low <= scores[:, 1].mean() <= high
    assert scores[:, 2].mean() <= error
