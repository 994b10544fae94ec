"""Weights from files in the layouts of audiocraft and transformers, at toy size, and names in all directions."""

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from model.checkpoints import (
    AUDIOCRAFT_FILE,
    MUSICGEN_LICENCE,
    convert,
    load_backbone,
    save_backbone,
    weights_digest,
)
from model.decoder import Decoder
from pipeline.errors import MissingWeights, SettingsError
from tests.model.reference import TOY, audiocraft_conditions, audiocraft_lm, perturb, transformers_config

T5_WIDTH = 24
CONFIG = {  # the keys of a released checkpoint that say what the decoder is
    "transformer_lm": {
        "dim": TOY.dim, "num_heads": TOY.heads, "num_layers": TOY.layers, "hidden_scale": TOY.ff // TOY.dim,
        "n_q": TOY.codebooks, "card": TOY.cardinality, "norm_first": True, "activation": "gelu",
        "positional_embedding": "sin", "layer_scale": None,
    },
    "codebooks_pattern": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0}},
    "fuser": {"cross": ["description"], "prepend": [], "sum": [], "cross_attention_pos_emb": False},
    "dataset": {"path": "${oc.env:NOWHERE}", "segment_duration": 30},
}  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    return perturb(audiocraft_lm(TOY))


@pytest.fixture(scope="module")
def state(lm):
    """LMModel's state with MusicGen's projection from T5's width, as in a released checkpoint."""
    place = "condition_provider.conditioners.description.output_proj"
    generator = torch.Generator().manual_seed(3)
    return {
        **lm.state_dict(),
        f"{place}.weight": torch.randn(TOY.dim, T5_WIDTH, generator=generator),
        f"{place}.bias": torch.randn(TOY.dim, generator=generator),
    }


def audiocraft_folder(path, state, config=CONFIG, dtype=torch.float32):
    path.mkdir(exist_ok=True)
    state = {n: w.to(dtype) for n, w in state.items()}
    package = {"best_state": state, "xp.cfg": yaml.dump(config), "version": "1.3.0", "exported": True}
    torch.save(package, path / AUDIOCRAFT_FILE)
    return str(path)


def transformers_folder(path, state, *, shards=1, **changes):
    """A composite checkpoint: text and audio encoder beside the decoder, in one file or in shards with an index."""
    path.mkdir(exist_ok=True)
    decoder = {**transformers_config(TOY).to_dict(), **changes}
    (path / "config.json").write_text(json.dumps({"model_type": "musicgen", "decoder": decoder}))
    tensors = {n: w.clone() for n, w in convert(state, "audiocraft", "transformers", TOY).items()}
    tensors |= {"text_encoder.shared.weight": torch.zeros(3, 3), "audio_encoder.encoder.weight": torch.zeros(2)}
    tensors["decoder.model.decoder.embed_positions.weights"] = torch.zeros(8, TOY.dim)  # older files have it
    if shards == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return str(path)
    names = sorted(tensors)
    where = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in names[i::shards]}, path / file, {"format": "pt"})
        where |= dict.fromkeys(names[i::shards], file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return str(path)


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("there", ["ours", "transformers"])
def test_names_go_there_and_back_exactly(state, there):
    away = convert(state, "audiocraft", there, TOY)
    assert not away.keys() & state.keys() - {"out_norm.weight", "out_norm.bias"}
    assert same(convert(away, there, "audiocraft", TOY), state)
    other = "transformers" if there == "ours" else "ours"
    assert same(convert(away, there, other, TOY), convert(state, "audiocraft", other, TOY))


def test_names_cover_the_libraries_whole_states(state):
    from transformers import MusicgenForCausalLM

    theirs = {f"decoder.{n}" for n, _ in MusicgenForCausalLM(transformers_config(TOY)).named_parameters()}
    assert convert(state, "audiocraft", "transformers", TOY).keys() - {
        "enc_to_dec_proj.weight", "enc_to_dec_proj.bias",
    } == theirs  # fmt: skip
    ours = convert(state, "audiocraft", "ours", TOY)
    assert ours.keys() - {"projection.weight", "projection.bias"} == Decoder(TOY).state_dict().keys()


def test_fused_attention_is_cut_in_the_order_q_k_v(state):
    fused = state["transformer.layers.1.cross_attention.in_proj_weight"]
    theirs = convert(state, "audiocraft", "transformers", TOY)
    ours = convert(state, "audiocraft", "ours", TOY)
    for i, x in enumerate("qkv"):
        rows = fused[i * TOY.dim : (i + 1) * TOY.dim]
        assert torch.equal(theirs[f"decoder.model.decoder.layers.1.encoder_attn.{x}_proj.weight"], rows)
    assert torch.equal(ours["blocks.1.cross_kv.weight"], fused[TOY.dim :])


@pytest.mark.parametrize("change", ["missing", "bias", "more_layers"])
def test_weights_that_are_missing_or_of_another_model_are_refused(state, change):
    changed = dict(state)
    if change == "missing":
        del changed["transformer.layers.2.norm2.bias"]
    elif change == "bias":
        changed["transformer.layers.0.linear1.bias"] = torch.zeros(TOY.ff)
    else:
        changed["transformer.layers.3.norm1.weight"] = torch.ones(TOY.dim)
    with pytest.raises(KeyError, match=r"norm2\.bias|linear1\.bias|layers\.3\.norm1"):
        convert(changed, "audiocraft", "ours", TOY)


@torch.no_grad()
def test_audiocrafts_file_gives_audiocrafts_logits(lm, state, tmp_path):
    backbone = load_backbone(audiocraft_folder(tmp_path / "musicgen-toy", state), TOY)
    codes, cross = torch.randint(0, TOY.cardinality, (2, 4, 20)), torch.randn(2, 5, TOY.dim)
    theirs = lm.compute_predictions(codes, audiocraft_conditions(cross))
    ours = backbone.decoder(codes, cross)
    assert (ours.logits - theirs.logits)[ours.mask].abs().max() < 1e-5
    assert same(backbone.projection, {n: state[f"condition_provider.conditioners.description.output_proj.{n}"]
                                      for n in ("weight", "bias")})  # fmt: skip
    assert backbone.licence == MUSICGEN_LICENCE
    assert not backbone.decoder.training


def test_released_files_are_fp16_and_come_as_fp32(state, tmp_path):
    backbone = load_backbone(audiocraft_folder(tmp_path / "half", state, dtype=torch.float16), TOY)
    weight = backbone.decoder.blocks[0].up.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["transformer.layers.0.linear1.weight"].half().float())


@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_files_give_the_same_decoder(state, tmp_path, shards):
    expected = load_backbone(audiocraft_folder(tmp_path / "ac", state), TOY)
    found = load_backbone(transformers_folder(tmp_path / "hf", state, shards=shards), TOY)
    assert same(found.decoder.state_dict(), expected.decoder.state_dict())
    assert same(found.projection, expected.projection)


def test_a_model_transformers_saved_is_loaded(state, tmp_path):
    """Not our idea of its layout: the composite model's own `save_pretrained`."""
    from transformers import EncodecConfig, MusicgenConfig, MusicgenForConditionalGeneration, T5Config

    config = MusicgenConfig(
        text_encoder=T5Config(d_model=T5_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=9),
        audio_encoder=EncodecConfig(num_filters=2, hidden_size=4, codebook_size=TOY.cardinality, codebook_dim=4),
        decoder=transformers_config(TOY),
    )
    model = MusicgenForConditionalGeneration(config)
    weights = convert(state, "audiocraft", "transformers", TOY)
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    model.save_pretrained(tmp_path / "saved")
    found = load_backbone(str(tmp_path / "saved"), TOY)
    expected = load_backbone(audiocraft_folder(tmp_path / "ac", state), TOY)
    assert same(found.decoder.state_dict(), expected.decoder.state_dict())
    assert same(found.projection, expected.projection)


def test_our_own_file_goes_there_and_back_with_licence_and_geometry(state, tmp_path):
    backbone = load_backbone(audiocraft_folder(tmp_path / "ac", state), TOY)
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, backbone.decoder, backbone.projection, licence="Apache-2.0", trained_by="a script")
    again = load_backbone(str(path), TOY)
    assert same(again.decoder.state_dict(), backbone.decoder.state_dict())
    assert same(again.projection, backbone.projection)
    assert again.licence == "Apache-2.0"
    assert again.digest == weights_digest(str(path), TOY) != backbone.digest
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["backbone.safetensors"]


def test_random_weights_are_the_same_for_a_seed_and_leave_the_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (load_backbone(f"random:{seed}", TOY) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert same(first.decoder.state_dict(), second.decoder.state_dict())
    assert not torch.equal(first.decoder.embed.weight, other.decoder.embed.weight)
    assert first.digest == second.digest != other.digest
    assert first.projection == {}
    assert "random" in first.id


@pytest.mark.parametrize(
    ("part", "key", "value", "named"),
    [
        ("transformer_lm", "activation", "relu", "activation"),
        ("transformer_lm", "norm_first", False, "norm_first"),
        ("transformer_lm", "positional_embedding", "rope", "positions"),
        ("codebooks_pattern", "delay", {"delays": [0, 0, 1, 1]}, "pattern"),
        ("codebooks_pattern", "modeling", "parallel", "pattern"),
        ("fuser", "prepend", ["self_wav"], "condition"),
    ],
)
def test_checkpoints_that_would_load_and_mean_something_else_are_refused(state, tmp_path, part, key, value, named):
    config = {**CONFIG, part: {**CONFIG[part], key: value}}
    with pytest.raises(SettingsError, match=named):
        load_backbone(audiocraft_folder(tmp_path / "other", state, config), TOY)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation_function": "relu"}, "activation"),
        ({"scale_embedding": True}, "embedding_scale"),
        ({"audio_channels": 2}, "mono"),
    ],
)
def test_transformers_checkpoints_of_another_kind_are_refused(state, tmp_path, changes, named):
    with pytest.raises(SettingsError, match=named):
        load_backbone(transformers_folder(tmp_path / "other", state, **changes), TOY)


def test_another_geometry_is_refused(state, tmp_path):
    folder = audiocraft_folder(tmp_path / "ac", state)
    with pytest.raises(SettingsError, match=r"layers=3.*layers=24"):
        load_backbone(folder, "small")
    with pytest.raises(SettingsError, match=r"heads=4.*heads=2"):  # the same tensors, read otherwise
        load_backbone(folder, replace(TOY, heads=2))


@pytest.mark.parametrize("kind", ["audiocraft", "transformers", "ours"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(state, tmp_path, kind, share):
    if kind == "audiocraft":
        name = audiocraft_folder(tmp_path / "cut", state)
        path = tmp_path / "cut" / AUDIOCRAFT_FILE
    elif kind == "transformers":
        name = transformers_folder(tmp_path / "cut", state)
        path = tmp_path / "cut" / "model.safetensors"
    else:
        path = tmp_path / "cut.safetensors"
        save_backbone(path, Decoder(TOY), {}, licence="")
        name = str(path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(MissingWeights, match=path.name):
        load_backbone(name, TOY)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    folder = tmp_path / "evil"
    folder.mkdir()
    torch.save({"best_state": {}, "xp.cfg": Code()}, folder / AUDIOCRAFT_FILE)
    with pytest.raises(MissingWeights, match="damaged, or of another kind"):
        load_backbone(str(folder), TOY)
    (folder / AUDIOCRAFT_FILE).write_bytes(pickle.dumps(Code()))
    with pytest.raises(MissingWeights):
        load_backbone(str(folder), TOY)
    assert not (tmp_path / "was run").exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file({"lora": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(MissingWeights, match=r"adapter\.safetensors"):
        load_backbone(str(path), TOY)


def test_weights_put_by_hand_are_found_by_their_hubs_name(state, tmp_path, monkeypatch):
    monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
    (tmp_path / "facebook").mkdir()
    folder = audiocraft_folder(tmp_path / "facebook" / "musicgen-toy", state)
    found = load_backbone("facebook/musicgen-toy", TOY)
    assert same(found.decoder.state_dict(), load_backbone(folder, TOY).decoder.state_dict())
    assert found.id == "facebook/musicgen-toy"


def test_weights_that_are_nowhere_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingWeights, match=AUDIOCRAFT_FILE) as caught:
        load_backbone("facebook/musicgen-absent", TOY)
    assert str(tmp_path) in caught.value.hint
    with pytest.raises(MissingWeights, match=r"No bundled weights .nothing."):
        load_backbone("bundled:nothing", TOY)
    with pytest.raises(SettingsError, match="no seed"):
        load_backbone("random:nano", TOY)


def test_saved_tensors_are_contiguous_and_own_their_memory(state, tmp_path):
    backbone = load_backbone(audiocraft_folder(tmp_path / "ac", state), TOY)
    save_backbone(tmp_path / "b.safetensors", backbone.decoder, backbone.projection, licence="")
    stored = load_file(tmp_path / "b.safetensors")
    assert sum(w.numel() for w in stored.values()) == sum(w.numel() for w in state.values())
