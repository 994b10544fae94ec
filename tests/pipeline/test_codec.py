"""The codec's tokens and the loudness the music is brought to."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline import weights
from pipeline.codec import GATE_LUFS, Codec, load_codec, normalise, true_peak_db, weights_digest
from pipeline.config import CodecSettings
from pipeline.errors import MissingWeights, SettingsError
from pipeline.nano.geometry import CODEC, CodecGeometry

RATE = 32_000
NANO = CodecSettings(model="random:nano")


def sine(hertz: float, seconds: float, *, rate: int = RATE, amplitude: float = 1.0, phase: float = 0.0) -> np.ndarray:
    turns = hertz * np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * turns + phase)).astype(np.float32)


def plucked(pitch: int, *, phase: float = 0.0) -> np.ndarray:
    """Two seconds of a note struck every half second, at -14 LUFS."""
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    note = sum(sine(hertz * n, 2, amplitude=0.2 / n, phase=phase + n) for n in range(1, 6))
    decay = np.exp(-1.5 * (np.arange(2 * RATE) / RATE % 0.5))
    return normalise((note * decay).astype(np.float32), RATE, lufs=-14, peak_db=-1)[0]


class TestNormalise:
    """One gain, by loudness and by true peak."""

    @pytest.mark.parametrize("rate", [32_000, 44_100, 48_000])
    def test_a_full_scale_sine_near_1_khz_reads_what_the_standard_says(self, rate: int):
        _, loudness = normalise(sine(997, 5, rate=rate), rate, lufs=-14, peak_db=0)
        assert loudness.lufs == pytest.approx(-3.01, abs=0.02)  # ITU-R BS.1770: one channel at 0 dBFS
        assert loudness.gain_db == pytest.approx(-14 - loudness.lufs)

    def test_two_channels_are_3_db_louder_than_one(self):
        mono = sine(997, 3, amplitude=0.1)
        one = normalise(mono, RATE, lufs=-14, peak_db=-1)[1]
        both, two = normalise(np.stack([mono, mono]), RATE, lufs=-14, peak_db=-1)
        assert two.lufs - one.lufs == pytest.approx(10 * np.log10(2), abs=1e-3)
        assert both.shape == (2, mono.size)

    def test_true_peak_finds_what_lies_between_samples(self):
        audio = sine(RATE / 4, 1, phase=np.pi / 4)  # every sample at 0.707, the wave itself at 1
        assert 20 * np.log10(np.abs(audio).max()) == pytest.approx(-3.01, abs=0.01)
        assert true_peak_db(audio[1000:-1000]) == pytest.approx(0, abs=0.35)

    @settings(deadline=None, max_examples=30)
    @given(
        seed=st.integers(0, 2**32 - 1),
        seconds=st.floats(0.05, 2),
        level_db=st.floats(-40, 0),
        spike=st.floats(0, 1),
        lufs=st.floats(-30, -6),
        peak_db=st.floats(-6, 0),
    )
    def test_one_gain_meets_the_loudness_or_the_ceiling(self, seed, seconds, level_db, spike, lufs, peak_db):
        noise = np.random.default_rng(seed).standard_normal(int(seconds * RATE))
        audio = (0.1 * 10 ** (level_db / 20) * noise).astype(np.float32)
        audio[audio.size // 2] += spike
        louder, loudness = normalise(audio, RATE, lufs=lufs, peak_db=peak_db)

        np.testing.assert_allclose(louder, audio * 10 ** (loudness.gain_db / 20), rtol=1e-5, atol=1e-7)
        assert true_peak_db(louder) <= peak_db + 1e-3
        again = normalise(louder, RATE, lufs=lufs, peak_db=peak_db)[1]
        assert again.gain_db == pytest.approx(0, abs=1e-3)
        at_ceiling = true_peak_db(louder) == pytest.approx(peak_db, abs=1e-3)
        assert at_ceiling or again.lufs == pytest.approx(lufs, abs=1e-3)

    @pytest.mark.parametrize("audio", [np.zeros(RATE), sine(440, 1, amplitude=1e-5), np.zeros(9)])
    def test_silence_stays_as_it_is_and_reads_as_the_gate(self, audio: np.ndarray):
        same, loudness = normalise(audio, RATE, lufs=-14, peak_db=-1)
        assert (loudness.lufs, loudness.gain_db) == (GATE_LUFS, 0.0)
        np.testing.assert_array_equal(same, audio)

    def test_less_than_a_block_is_measured_as_if_silence_followed(self):
        tone = sine(997, 0.2, amplitude=0.1)
        padded = np.pad(tone, (0, tone.size))
        brief, whole = (normalise(a, RATE, lufs=-14, peak_db=0)[1] for a in (tone, padded))
        assert brief.lufs == pytest.approx(whole.lufs, abs=1e-6)


@pytest.fixture(scope="module")
def nano() -> Codec:
    return load_codec(NANO)


class TestNanoCodec:
    """The toy codec with random weights."""

    def test_has_musicgens_token_format_and_says_that_it_is_random(self, nano: Codec):
        assert (nano.rate, nano.frame_rate, nano.codebooks, nano.cardinality, nano.hop) == (RATE, 50, 4, 2048, 640)
        assert nano.id == "random:nano (seed 0)"
        assert "random" in nano.licence
        assert nano.digest == weights_digest(NANO)

    @pytest.mark.parametrize("frames", [1, 2, 49, 50, 751])
    def test_gives_exactly_one_token_per_codebook_and_640_samples(self, nano: Codec, frames: int):
        audio = np.random.default_rng(frames).uniform(-0.3, 0.3, frames * 640).astype(np.float32)
        codes = nano.encode(audio)
        assert codes.shape == (4, frames)
        assert codes.dtype == np.int16
        assert 0 <= codes.min() <= codes.max() < 2048
        assert nano.decode(codes).shape == audio.shape

    @pytest.mark.parametrize("audio", [np.zeros(641), np.zeros(0), np.zeros((1, 640))])
    def test_refuses_what_is_not_a_whole_number_of_frames(self, nano: Codec, audio: np.ndarray):
        with pytest.raises(ValueError, match="whole number of frames"):
            nano.encode(audio)

    @pytest.mark.parametrize("codes", [np.zeros((3, 5)), np.zeros((4, 0)), np.full((4, 5), 2048), np.full((4, 5), -1)])
    def test_refuses_codes_that_are_not_its_own(self, nano: Codec, codes: np.ndarray):
        with pytest.raises(ValueError, match="codes"):
            nano.decode(codes.astype(np.int16))

    def test_tokens_tell_notes_apart(self, nano: Codec):
        """A note played in another phase is known again among 22 by the tokens it uses (chance: 0.05)."""
        pitches = range(40, 84, 2)
        used = np.stack([_usage(nano.encode(plucked(p))[:2]) for p in pitches])
        found = [int(np.argmax(used @ _usage(nano.encode(plucked(p, phase=1.7))[:2]))) for p in pitches]
        assert np.mean(np.array(found) == np.arange(len(found))) > 0.5

    def test_every_codebook_uses_hundreds_of_its_entries(self, nano: Codec):
        codes = nano.encode(np.concatenate([plucked(p) for p in range(40, 84, 2)]))
        for row in codes:
            share = np.bincount(row, minlength=2048) / row.size
            entropy = -(share[share > 0] * np.log2(share[share > 0])).sum()
            assert entropy > 7  # bits, of 11

    def test_louder_music_has_other_tokens(self, nano: Codec):
        """There is no renormalisation inside: loudness is ours to settle."""
        music = plucked(60)
        assert (nano.encode(music) != nano.encode(music / 4)).mean() > 0.5

    def test_weights_are_the_same_every_time_and_leave_the_global_generator_alone(self, nano: Codec):
        before = torch.random.get_rng_state()
        load_codec.cache_clear()
        again = load_codec(NANO)
        assert torch.equal(torch.random.get_rng_state(), before)
        first, second = nano._model.state_dict(), again._model.state_dict()
        assert all(torch.equal(first[n], second[n]) for n in first)

    def test_bundled_weights_carry_their_geometry(self, nano: Codec, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(weights, "BUNDLED", tmp_path)
        state = {n: t.contiguous() for n, t in nano._model.state_dict().items()}
        for name, shape in {"codec": CODEC["nano"], "wider": CodecGeometry(filters=9, dimension=64)}.items():
            header = {"geometry": json.dumps(asdict(shape)), "licence": "Apache-2.0"}
            save_file(state, tmp_path / f"{name}.safetensors", header)
        bundled = load_codec(CodecSettings(model="bundled:codec"))
        music = plucked(60)
        np.testing.assert_array_equal(bundled.encode(music), nano.encode(music))
        assert (bundled.id, bundled.licence) == ("bundled:codec", "Apache-2.0")
        assert bundled.digest != nano.digest
        with pytest.raises(MissingWeights, match="does not fit"):
            load_codec(CodecSettings(model="bundled:wider"))


class TestHubCodec:
    """A toy EnCodec laid where the real one is looked for: transformers' files under the weights folder."""

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch) -> Path:
        monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
        load_codec.cache_clear()
        yield tmp_path / "facebook" / "encodec_32khz"
        load_codec.cache_clear()

    def test_is_audiocrafts_wrapper_around_the_files(self, place: Path):
        from transformers import EncodecConfig, EncodecModel

        shape = {"sampling_rate": RATE, "upsampling_ratios": [8, 5, 4, 4], "target_bandwidths": [2.2]}
        widths = {"codebook_size": 2048, "codebook_dim": 16, "hidden_size": 16, "num_filters": 4, "num_lstm_layers": 1}
        torch.manual_seed(0)
        inner = EncodecModel(EncodecConfig(**shape, **widths, use_causal_conv=False, use_conv_shortcut=False)).eval()
        for layer in inner.quantizer.layers:
            layer.codebook.embed.normal_(std=0.1)
        inner.save_pretrained(place)

        codec = load_codec(CodecSettings())
        assert codec.id == "audiocraft:facebook/encodec_32khz"
        assert codec.licence.startswith("CC-BY-NC 4.0")
        assert codec.digest == weights.digest_of_file(place / "model.safetensors")
        assert (codec.rate, codec.frame_rate, codec.codebooks, codec.cardinality) == (RATE, 50, 4, 2048)
        music = plucked(60)
        with torch.inference_mode():
            expected = inner.encode(torch.from_numpy(music)[None, None], bandwidth=2.2).audio_codes
            heard = inner.decode(expected, [None]).audio_values
        np.testing.assert_array_equal(codec.encode(music), expected[0, 0].numpy())
        np.testing.assert_allclose(codec.decode(expected[0, 0].numpy()), heard[0, 0].numpy(), atol=1e-6)

    def test_what_is_missing_is_named_with_its_place(self, place: Path):
        with pytest.raises(MissingWeights) as error:
            weights_digest(CodecSettings(), download=False)
        assert "facebook/encodec_32khz" in error.value.message
        assert str(place / "config.json") in error.value.hint

    def test_damaged_files_are_named(self, place: Path):
        place.mkdir(parents=True)
        (place / "config.json").write_text('{"model_type": "encodec"}')
        (place / "model.safetensors").write_bytes(b"not weights")
        with pytest.raises(MissingWeights, match="encodec_32khz"):
            load_codec(CodecSettings())


def test_a_codec_with_a_broken_frame_rate_is_refused():
    model = SimpleNamespace(channels=1, sample_rate=44_100, frame_rate=44_100 / 512)
    with pytest.raises(SettingsError, match="frames a second"):
        Codec(model, device="cpu", id="dac", digest="", licence="")


def test_an_unknown_geometry_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="nano"):
        weights_digest(CodecSettings(model="random:huge"))


def test_the_digest_of_random_weights_follows_their_shape():
    assert weights_digest(NANO) != weights_digest(CodecSettings(model="random:encodec-32khz"))


def test_the_real_geometry_is_musicgens():
    shape = CODEC["encodec-32khz"]
    assert (shape.hop, shape.rate // shape.hop, shape.codebooks, shape.cardinality) == (640, 50, 4, 2048)


@pytest.mark.slow
def test_loading_is_quiet_and_a_missing_audiocraft_is_named():
    load = (
        "from pipeline.codec import load_codec; from pipeline.config import CodecSettings as S;"
        "load_codec(S(model='random:nano'))"
    )
    loud = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
    assert "xformers" not in loud.stderr.lower()
    assert "weight_norm" not in loud.stderr
    without = f"import sys; sys.modules['audiocraft'] = None; {load}"
    failed = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    assert "audiocraft can't be used" in failed.stderr
    assert "make setup" in failed.stderr


def test_the_digest_needs_no_torch():
    code = (
        "import sys; from pipeline.codec import weights_digest; from pipeline.config import CodecSettings as S;"
        "weights_digest(S(model='random:nano')); assert not {'torch', 'audiocraft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _usage(codes: np.ndarray) -> np.ndarray:
    """How often each entry of each codebook is used, as a unit vector."""
    counts = np.concatenate([np.bincount(row, minlength=2048) for row in codes]).astype(float)
    return counts / np.linalg.norm(counts)
