"""Global tokens and distance curves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from pipeline import vision as room
from pipeline import weights
from pipeline.clips import samples
from pipeline.config import VisionSettings
from pipeline.errors import MissingWeights, SettingsError
from pipeline.media import encode, frames_at
from pipeline.nano.geometry import VISION
from pipeline.vision import VisionEncoder, VisionFeatures, build_tower, load_vision, weights_digest, weights_path

NANO = VisionSettings(model="random:nano", batch=16)
SIZE = 112


@pytest.fixture(scope="module")
def nano() -> VisionEncoder:
    return load_vision(NANO)


def drift(count: int, *, seed: int = 0, size: int = SIZE, cut: int | None = None) -> list[np.ndarray]:
    """Frames of blurred noise that slides to the right, one pixel a frame; at `cut` another noise takes over."""
    rng = np.random.default_rng(seed)

    def scene() -> np.ndarray:
        coarse = rng.integers(0, 256, (size // 8, (size + count) // 8 + 1, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(coarse).resize((8 * coarse.shape[1], size), Image.Resampling.BICUBIC))

    before, after = scene(), scene()
    return [(before if cut is None or i < cut else after)[:, i : i + size] for i in range(count)]


def tokens_of(frames: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] and patch tokens, float64, straight from open_clip's tower and its own normalisation."""
    prepare = open_clip.image_transform(SIZE, is_train=False)
    with torch.inference_mode():
        cls, patches = build_tower(VISION["nano"]).eval()(torch.stack([prepare(Image.fromarray(f)) for f in frames]))
    return cls.double().numpy(), patches.double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


class TestFeatures:
    """What comes out for given frames."""

    def test_follow_their_definition(self, nano: VisionEncoder):
        frames = drift(60, cut=40)
        cls, patches = tokens_of(frames)
        features = nano.encode_frames(frames, neighbour=False)

        np.testing.assert_allclose(features.clip_global, cls[[0, 25]], atol=2e-3)
        close = {"rtol": 2e-3, "atol": 1e-6}  # float16 has 11 bits
        np.testing.assert_allclose(features.cls_distance[1:], 1 - cosine(cls[1:], cls[:-1]), **close)
        each = 1 - cosine(patches[1:], patches[:-1])
        np.testing.assert_allclose(features.patch_distance[1:], each.mean(1), **close)
        flat = patches.reshape(60, -1)
        np.testing.assert_allclose(features.patch_distance_flat[1:], 1 - cosine(flat[1:], flat[:-1]), **close)
        assert features.patch_distance[0] == features.patch_distance_flat[0] == features.cls_distance[0] == 1
        assert np.argmax(features.patch_distance[1:]) + 1 == 40

    def test_are_float16_and_as_wide_as_the_tower(self, nano: VisionEncoder):
        features = nano.encode_frames(drift(26), neighbour=True)
        assert features.clip_global.shape == (1, nano.dim) == (1, 192)
        assert {a.dtype for a in vars(features).values()} == {np.dtype(np.float16)}

    def test_the_neighbour_only_gives_the_first_distance(self, nano: VisionEncoder):
        frames = drift(31)
        whole, rest = nano.encode_frames(frames, neighbour=False), nano.encode_frames(frames, neighbour=True)
        np.testing.assert_array_equal(rest.patch_distance, whole.patch_distance[1:])
        np.testing.assert_array_equal(rest.clip_global, nano.encode_frames(frames[1:], neighbour=False).clip_global)

    def test_the_same_frames_always_give_the_same_bits(self, nano: VisionEncoder):
        first = nano.encode_frames(drift(40), neighbour=False)
        nano.encode_frames(drift(33, seed=1), neighbour=True)
        second = nano.encode_frames(drift(40), neighbour=False)
        for name, array in vars(first).items():
            np.testing.assert_array_equal(array, getattr(second, name))

    def test_an_equal_frame_is_not_encoded_and_has_distance_zero(self, nano: VisionEncoder):
        a, b, c = drift(3)
        shown = [a, a.copy(), a, b, b, c, a]
        seen: list[int] = []
        hook = nano._tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        features = nano.encode_frames(shown, neighbour=False)
        hook.remove()
        assert sum(seen) == 4
        still = [1, 2, 4]
        assert (features.patch_distance[still] == 0).all()
        plain = nano.encode_frames([a, b, c, a], neighbour=False)
        np.testing.assert_array_equal(features.patch_distance[[0, 3, 5, 6]], plain.patch_distance)

    def test_a_distance_below_float32s_own_grain_is_right(self):
        """1 - cos of close vectors cancels in float32; half the squared distance of unit vectors doesn't."""
        a = np.random.default_rng(0).standard_normal(768)
        b = a + 1e-4 * np.random.default_rng(1).standard_normal(768)
        tokens = torch.from_numpy(np.stack([a, b]))[:, None].repeat(1, 2, 1).float()
        patch, flat, cls = room._distances(tokens)[0].tolist()
        exact = 1 - cosine(a, b)
        assert exact < 1e-8
        assert [patch, flat, cls] == pytest.approx([exact] * 3, rel=2e-3)

    @settings(deadline=None, max_examples=60)
    @given(start_ms=st.integers(0, 10**6), length_ms=st.integers(20, 60_000))
    def test_have_as_many_rows_as_the_shard_asks_for(self, nano: VisionEncoder, start_ms: int, length_ms: int):
        times, frame = samples(start_ms, start_ms + length_ms, 25), drift(1)[0]
        features = nano.encode_frames([frame] * (times + 1), neighbour=True)
        assert len(features.clip_global) == samples(start_ms, start_ms + length_ms, 1)
        assert len(features.patch_distance) == times

    @pytest.mark.parametrize("frames", [[], drift(1)])
    def test_no_frames_are_refused(self, nano: VisionEncoder, frames: list[np.ndarray]):
        with pytest.raises(ValueError, match="no frames"):
            nano.encode_frames(frames, neighbour=True)


class TestVideo:
    """From a file."""

    @pytest.fixture(scope="class")
    def film(self, tmp_path_factory) -> Path:
        """Six seconds at 30 fps, 160x120, with a cut at 3 s."""
        path = tmp_path_factory.mktemp("vision") / "film.mp4"
        tall = drift(180, size=120, cut=90)
        wide = [np.ascontiguousarray(np.pad(f, ((0, 0), (20, 20), (0, 0)), mode="edge")) for f in tall]
        encode(path, wide, Fraction(30), None, 0, crf=12)
        return path

    def test_a_cut_peaks_where_it_is_whatever_the_clips_start(self, nano: VisionEncoder, film: Path):
        for start_ms in (0, 1000, 2480):
            features = nano.encode(film, start_ms, 5000)
            peak = np.argmax(features.patch_distance[1:]) + 1
            assert start_ms + 40 * peak == 3000
            assert len(features.clip_global) == samples(start_ms, 5000, 1)

    def test_clips_join(self, nano: VisionEncoder, film: Path):
        whole = nano.encode(film, 0, 4000)
        left, right = nano.encode(film, 0, 2000), nano.encode(film, 2000, 4000)
        for name in ("patch_distance", "patch_distance_flat", "cls_distance"):
            joined = np.concatenate([getattr(left, name), getattr(right, name)])
            np.testing.assert_allclose(joined, getattr(whole, name), rtol=2e-3, atol=1e-6)
        assert whole.patch_distance[0] == left.patch_distance[0] == 1
        assert right.patch_distance[0] < 0.5
        np.testing.assert_allclose(np.concatenate([left.clip_global, right.clip_global]), whole.clip_global, atol=4e-3)

    def test_tokens_are_those_of_open_clips_own_preprocessing(self, nano: VisionEncoder, film: Path):
        features = nano.encode(film, 500, 4500)
        prepare = open_clip.image_transform(SIZE, is_train=False)
        shown = [Image.fromarray(f) for f in frames_at(film, [Fraction(1, 2) + i for i in range(4)])]
        with torch.inference_mode():
            cls, _ = build_tower(VISION["nano"]).eval()(torch.stack([prepare(i) for i in shown]))
        assert cosine(features.clip_global.astype(float), cls.double().numpy()).min() > 0.999


class TestPrecision:
    """bfloat16 against float32, on frames that hardly move, move and are cut."""

    def test_bf16_agrees_at_toy_size(self):
        self.check("random:nano", SIZE, 80)

    @pytest.mark.slow
    def test_bf16_agrees_at_vit_b_32(self):
        self.check("random:vit-b-32", 224, 32)

    def check(self, model: str, size: int, count: int) -> None:
        frames = drift(count, size=size, cut=count // 2)
        rng = np.random.default_rng(1)
        for i in range(1, count // 4):  # a still picture with a coder's noise
            frames[i] = np.clip(frames[0] + rng.integers(-1, 2, frames[0].shape), 0, 255).astype(np.uint8)
        exact, rough = (
            load_vision(VisionSettings(model=model, precision=p, batch=16)).encode_frames(frames, neighbour=False)
            for p in ("fp32", "bf16")
        )
        assert cosine(exact.clip_global.astype(float), rough.clip_global.astype(float)).min() > 0.9999
        for name in ("patch_distance", "patch_distance_flat", "cls_distance"):
            np.testing.assert_allclose(getattr(rough, name), getattr(exact, name), rtol=0.03, atol=2e-5)


class TestWeights:
    """Where they come from, and what is said where they don't."""

    @pytest.fixture
    def toy(self, tmp_path: Path) -> Iterator[str]:
        """A tiny CLIP known to open_clip by name."""
        shape = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
        text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
        config = tmp_path / "toy-clip.json"
        config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": shape, "text_cfg": text}))
        resnet = tmp_path / "toy-resnet.json"
        small = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
        resnet.write_text(json.dumps({"embed_dim": 16, "vision_cfg": small, "text_cfg": text}))
        open_clip.add_model_config(tmp_path)
        yield "toy-clip"
        config.unlink()
        resnet.unlink()
        open_clip.factory._rescan_model_configs()

    def test_tokens_are_taken_before_the_projection(self, toy: str, tmp_path: Path):
        model = open_clip.create_model(toy).eval()
        path = tmp_path / "weights.safetensors"
        save_file(model.state_dict(), path)
        encoder = load_vision(VisionSettings(model=toy, weights=str(path)))
        frames = drift(40, size=64)
        features = encoder.encode_frames(frames, neighbour=False)
        prepare = open_clip.image_transform(64, is_train=False)
        with torch.inference_mode():
            projected = model.encode_image(torch.stack([prepare(Image.fromarray(frames[i])) for i in (0, 25)]))
            ours = torch.from_numpy(features.clip_global).float() @ model.visual.proj
        torch.testing.assert_close(ours, projected, atol=5e-3, rtol=0)
        assert (encoder.dim, encoder.size) == (64, 64)
        assert encoder.id == "open_clip:toy-clip:weights.safetensors"
        assert encoder.digest == weights.digest_of_file(path)

    def test_a_file_of_another_model_is_refused(self, toy: str, tmp_path: Path):
        path = tmp_path / "other.safetensors"
        save_file({"visual.class_embedding": torch.zeros(64)}, path)
        with pytest.raises(MissingWeights, match="does not hold the weights of toy-clip"):
            load_vision(VisionSettings(model=toy, weights=str(path)))
        path.write_bytes(b"nonsense")
        with pytest.raises(MissingWeights, match="does not hold the weights of toy-clip"):
            load_vision(VisionSettings(model=toy, weights=str(path)))

    def test_a_tower_without_patch_tokens_is_refused(self, toy: str, tmp_path: Path):
        path = tmp_path / "resnet.safetensors"
        save_file(open_clip.create_model("toy-resnet").state_dict(), path)
        with pytest.raises(SettingsError, match="no \\[CLS\\] and patch tokens"):
            load_vision(VisionSettings(model="toy-resnet", weights=str(path)))

    def test_bundled_weights_carry_their_geometry(self, nano: VisionEncoder, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(weights, "BUNDLED", tmp_path)
        header = {"geometry": json.dumps(asdict(VISION["nano"])), "licence": "Apache-2.0"}
        save_file(build_tower(VISION["nano"]).state_dict(), tmp_path / "vision.safetensors", header)
        bundled = load_vision(VisionSettings(model="bundled:vision", batch=16))
        assert (bundled.id, bundled.licence) == ("bundled:vision", "Apache-2.0")
        assert same(bundled.encode_frames(drift(30), neighbour=True), nano.encode_frames(drift(30), neighbour=True))
        with pytest.raises(MissingWeights, match="vision"):
            load_vision(VisionSettings(model="bundled:other"))

    def test_random_weights_say_so_and_are_the_same_every_time(self, nano: VisionEncoder):
        assert nano.id == "random:nano (seed 0)"
        assert "random" in nano.licence
        assert nano.digest == weights_digest(NANO) != weights_digest(VisionSettings(model="random:vit-b-32"))
        before = torch.random.get_rng_state()
        one, two = build_tower(VISION["nano"]).state_dict(), build_tower(VISION["nano"]).state_dict()
        assert torch.equal(torch.random.get_rng_state(), before)
        assert all(torch.equal(one[n], two[n]) for n in one)

    def test_what_is_missing_is_named_with_its_place(self, tmp_path: Path, monkeypatch):
        monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
        place = tmp_path / "timm" / "vit_base_patch32_clip_224.openai" / "open_clip_model.safetensors"
        with pytest.raises(MissingWeights) as error:
            weights_digest(VisionSettings(), download=False)
        assert "timm/vit_base_patch32_clip_224.openai" in error.value.message
        assert str(place) in error.value.hint
        assert "dvmset doctor" in error.value.hint
        place.parent.mkdir(parents=True)
        place.write_bytes(b"weights")
        assert weights_path(VisionSettings()) == place
        assert weights_digest(VisionSettings()) == weights.digest_of_file(place)

    def test_an_unreachable_hub_is_reported_as_missing_weights(self, tmp_path: Path, monkeypatch):
        import huggingface_hub

        def unreachable(repo: str, name: str) -> str:
            raise huggingface_hub.errors.LocalEntryNotFoundError("Name or service not known")

        monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
        monkeypatch.setattr(weights, "_reach", lambda *_: None)
        with pytest.raises(MissingWeights, match="Name or service not known"):
            load_vision(VisionSettings())

    def test_where_our_profiles_weights_lie_is_what_open_clip_says(self):
        for (model, tag), repo in room._HUB.items():
            assert room._hub(model, tag) == repo
            assert open_clip.get_model_config(model)["vision_cfg"]["width"] == 768

    def test_the_wrong_activation_is_refused(self, tmp_path: Path, monkeypatch):
        """open_clip only warns when OpenAI's weights are put into a tower with another GELU."""
        monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
        place = tmp_path / "timm" / "vit_base_patch32_clip_224.openai" / "open_clip_model.safetensors"
        place.parent.mkdir(parents=True)
        place.write_bytes(b"never read")
        with pytest.raises(SettingsError, match="another activation"):
            load_vision(VisionSettings(model="ViT-B-32", weights="openai"))

    @pytest.mark.parametrize(
        ("model", "tag"), [("ViT-B-32", "no-such-tag"), ("NoSuchModel", "openai"), ("sorcery:nano", "")]
    )
    def test_an_unknown_model_or_tag_is_refused(self, model: str, tag: str):
        with pytest.raises(SettingsError, match=f"{tag or model}"):
            weights_path(VisionSettings(model=model, weights=tag))

    def test_a_pickle_is_refused(self, tmp_path: Path):
        with pytest.raises(SettingsError, match="hub"):
            weights_path(VisionSettings(weights=str(tmp_path / "clip.pt")))

    def test_the_digest_needs_no_torch(self):
        code = (
            "import sys; from pipeline.vision import weights_digest; from pipeline.config import VisionSettings as S;"
            "weights_digest(S(model='random:nano')); assert not {'torch', 'open_clip'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def same(a: VisionFeatures, b: VisionFeatures) -> bool:
    return all(np.array_equal(x, getattr(b, n)) for n, x in vars(a).items())
