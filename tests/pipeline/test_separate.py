"""Separation: lengths, cross-fades, silence, memory, and where weights come from."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from demucs.hf import hf_repo_name, load_safetensors_model
from demucs.htdemucs import HTDemucs
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline import separate
from pipeline.config import SeparateSettings
from pipeline.errors import MissingWeights, SettingsError
from pipeline.separate import Separator, load_separator, load_weights, weights_digest, weights_paths

TINY = {
    "sources": ["other", "vocals"],
    "audio_channels": 1,
    "samplerate": 4000,
    "segment": {"_type": "fraction", "numerator": 1, "denominator": 1},
    "channels": 8,
    "depth": 3,
    "nfft": 512,
    "t_layers": 1,
    "t_heads": 4,
}


class Shares(torch.nn.Module):
    """A model that gives the stems fixed shares of the input, and counts what it is asked."""

    sources, samplerate, audio_channels, segment = ["other", "vocals"], 1000, 2, Fraction(1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, mix: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.stack([mix * 0.25, mix * 0.75], 1)


def write_model(path: Path, kwargs: dict, seed: int = 0, klass: str = "demucs.htdemucs.HTDemucs") -> Path:
    """Random weights in the layout in which demucs publishes its models."""
    torch.manual_seed(seed)
    model = HTDemucs(**separate._decode(json.loads(json.dumps(kwargs))))
    header = {"klass": klass, "args": "[]", "kwargs": json.dumps(kwargs)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(path), header)
    return path


def noise(channels: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (channels, length)).astype(np.float32)


def pieces(audio: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(audio, sorted(c % (audio.shape[1] + 1) for c in cuts), axis=1)


def together(separator: Separator, blocks: list[np.ndarray]) -> np.ndarray:
    empty = np.zeros((len(separator.sources), separator.channels, 0), np.float32)
    return np.concatenate([empty, *separator.stream(blocks)], axis=-1)


@given(
    st.integers(0, 9000),
    st.lists(st.integers(0, 10**6), max_size=8),
    st.sampled_from([0.4, 1.0, 3.0]),
    st.sampled_from([0.0, 0.1, 0.4]),
)
@settings(deadline=None, max_examples=60)
def test_stems_stay_aligned_and_sum_to_the_input_over_every_seam(length, cuts, chunk_s, context_s):
    audio = noise(2, length)
    separator = Separator(Shares(), "", "", SeparateSettings(chunk_s=chunk_s, context_s=context_s, device="cpu"))
    stems = together(separator, pieces(audio, cuts))
    assert stems.shape == (2, 2, length)
    np.testing.assert_allclose(stems.sum(0), audio, atol=1e-6)
    np.testing.assert_allclose(stems[1], 0.75 * audio, atol=1e-6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Separator:
    path = write_model(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", TINY)
    return Separator(load_weights(path), "tiny", "", SeparateSettings(chunk_s=2, context_s=0.5, device="cpu"))


@given(st.lists(st.integers(0, 10**6), max_size=6))
@settings(deadline=None, max_examples=8)
def test_block_sizes_do_not_change_a_bit(tiny, cuts):
    audio = noise(1, 4000 * 6 + 123)
    assert np.array_equal(together(tiny, pieces(audio, cuts)), together(tiny, [audio]))


def test_silence_stays_silent_without_the_model():
    model = Shares()
    separator = Separator(model, "", "", SeparateSettings(chunk_s=1, context_s=0.1, device="cpu"))
    assert not together(separator, [np.zeros((2, 5000), np.float32)]).any()
    assert model.calls == 0


def test_an_empty_stream_gives_nothing(tiny):
    assert list(tiny.stream([])) == []
    assert list(tiny.stream([np.zeros((1, 0), np.float32)])) == []


@pytest.mark.slow
def test_memory_is_flat_in_the_length(tmp_path):
    path = write_model(tmp_path / "tiny.safetensors", {**TINY, "samplerate": 16000})
    script = f"""
import resource, numpy as np, torch
from pathlib import Path
from pipeline.config import SeparateSettings
from pipeline.separate import Separator, load_weights
torch.set_num_threads(2)
separator = Separator(load_weights(Path({str(path)!r})), "", "", SeparateSettings(chunk_s=20, device="cpu"))
def run(seconds):
    rng = np.random.default_rng(0)
    blocks = (rng.normal(0, 0.1, (1, 16000 * 10)).astype(np.float32) for _ in range(seconds // 10))
    total = sum(stems.shape[-1] for stems in separator.stream(blocks))
    assert total == seconds * 16000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(run(60), run(600))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    short, long = map(float, out.split())
    assert long - short < 40, f"peak memory grew from {short:.0f} to {long:.0f} MB"  # ten minutes are 38 MB a stem


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """Where htdemucs belongs in an empty weights folder; no hub."""
    monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    load_separator.cache_clear()
    folder = tmp_path / "adefossez" / "HTDemucs"
    folder.mkdir(parents=True)
    return folder


def test_missing_weights_are_named_with_their_place(weights):
    with pytest.raises(MissingWeights) as caught:
        load_separator(SeparateSettings(model="htdemucs"))
    assert "htdemucs.yaml of adefossez/HTDemucs" in caught.value.message
    assert str(weights / "htdemucs.yaml") in caught.value.hint and "dvmset doctor" in caught.value.hint
    (weights / "htdemucs.yaml").write_text("models: ['955717e8']")
    (weights / "955717e8-8726e21a.th").write_bytes(b"a pickle")
    with pytest.raises(MissingWeights, match=r"955717e8\.safetensors") as caught:
        weights_digest(SeparateSettings(model="htdemucs"), download=False)
    assert "955717e8-8726e21a.th" in caught.value.message and "is not read" in caught.value.message


@pytest.mark.parametrize("model", ["../secrets", "hf://someone/model", "", "bundled:absent", "random:nano"])
def test_names_that_are_no_model_are_refused(model, weights):
    with pytest.raises((MissingWeights, SettingsError)):
        weights_paths(SeparateSettings(model=model))


@pytest.mark.parametrize("text", ["", "models: []", "models: ['../../x']", "models: 3", "[1, 2]"])
def test_a_list_of_models_that_is_none_is_refused(text, weights):
    (weights / "htdemucs.yaml").write_text(text)
    with pytest.raises(MissingWeights, match="list of demucs models"):
        weights_paths(SeparateSettings(model="htdemucs"))


@pytest.mark.parametrize("content", [b"models: [", b"models: \xff\xfe", b"models: \0"])
def test_a_damaged_list_of_models_is_told_with_its_place(content, weights):
    (weights / "htdemucs.yaml").write_bytes(content)
    with pytest.raises(MissingWeights, match=r"htdemucs\.yaml can't be read"):
        weights_paths(SeparateSettings(model="htdemucs"))


@pytest.mark.parametrize("klass", ["subprocess.Popen", "builtins.eval", "torch.nn.Linear"])
def test_a_header_cannot_name_other_code(klass, tmp_path):
    path = write_model(tmp_path / "m.safetensors", TINY, klass=klass)
    with pytest.raises(MissingWeights, match="demucs model"):
        load_weights(path)


def test_weights_that_do_not_fit_their_header_are_refused(tmp_path):
    path = write_model(tmp_path / "m.safetensors", TINY)
    model = load_weights(path)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        str(path),
        {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": json.dumps({**TINY, "channels": 16})},
    )
    with pytest.raises(MissingWeights, match="don't fit"):
        load_weights(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(MissingWeights, match="not a safetensors file"):
        load_weights(path)


def test_the_repository_rule_is_demucs_own():
    for name in ("htdemucs", "htdemucs_ft", "htdemucs_6s", "hdemucs_mmi", "mdx_extra"):
        assert separate._repository(name) == f"adefossez/{hf_repo_name(name)}"


def test_a_bag_in_the_weights_folder_is_averaged_with_its_gains(weights):
    bag = {"models": ["aaaa", "bbbb"], "weights": [[1.0, 0.0], [0.0, 1.0]]}
    (weights / "htdemucs.yaml").write_text(yaml.safe_dump(bag))
    singles = [load_weights(write_model(weights / f"{n}.safetensors", TINY, i)) for i, n in enumerate(bag["models"])]
    options = SeparateSettings(model="htdemucs", chunk_s=2, device="cpu")
    separator = load_separator(options)
    assert (separator.sources, separator.rate, separator.channels) == (("other", "vocals"), 4000, 1)
    audio = noise(1, 4000 * 3)
    stems = together(separator, [audio])
    alone = [together(Separator(m, "", "", options), [audio]) for m in singles]
    np.testing.assert_allclose(stems[0], alone[0][0], atol=1e-6)
    np.testing.assert_allclose(stems[1], alone[1][1], atol=1e-6)


def test_the_digest_follows_the_weights_and_needs_no_torch(weights):
    (weights / "htdemucs.yaml").write_text("models: [aaaa]")
    options = SeparateSettings(model="htdemucs")
    write_model(weights / "aaaa.safetensors", TINY, seed=1)
    first = weights_digest(options)
    write_model(weights / "aaaa.safetensors", TINY, seed=2)
    assert weights_digest(options) != first
    script = """
import sys
from pipeline.config import SeparateSettings
from pipeline.separate import weights_digest
print(weights_digest(SeparateSettings(model="htdemucs")), "torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.split() == [weights_digest(options), "False"]


@pytest.mark.slow
def test_htdemucs_at_full_size_loads_from_the_published_layout_and_separates(weights):
    """Random weights under htdemucs' own arguments: 42 M parameters, 44.1 kHz stereo, four stems."""
    kwargs = {
        "sources": ["drums", "bass", "other", "vocals"],
        "bottom_channels": 512,
        "dconv_mode": 3,
        "samplerate": 44100,
        "segment": {"_type": "fraction", "numerator": 39, "denominator": 5},
        "t_layers": 5,
        "t_dropout": 0.02,
    }
    path = write_model(weights / "955717e8.safetensors", kwargs)
    (weights / "htdemucs.yaml").write_text("models: ['955717e8']\n")
    separator = load_separator(SeparateSettings(model="htdemucs", chunk_s=8, device="cpu"))
    assert separator.sources == ("drums", "bass", "other", "vocals")
    assert (separator.rate, separator.channels) == (44100, 2)
    audio = noise(2, 44100 * 12)
    stems = together(separator, np.array_split(audio, 5, axis=1))
    assert stems.shape == (4, 2, 44100 * 12) and np.isfinite(stems).all()
    with torch.no_grad():
        ours = load_weights(path)(torch.from_numpy(audio[None, :, :44100]))
        theirs = load_safetensors_model(path).eval()(torch.from_numpy(audio[None, :, :44100]))
    assert torch.equal(ours, theirs)
