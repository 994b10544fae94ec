"""The way from global tokens to cross-attention: LoRA's zero start, nulls, padding, text, weights."""

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import T5EncoderModel

from model.semantic import Semantic, read_t5, t5_config, weights_digest
from model.settings import SemanticSettings
from pipeline.errors import MissingWeights, SettingsError

DIM, CLIP = 32, 24


def semantic(**settings) -> Semantic:
    torch.manual_seed(5)
    return Semantic(SemanticSettings(**{"clip_dim": CLIP, "t5": "random:nano", "lora_rank": 2, **settings}), DIM)


def perturbed(**settings) -> Semantic:
    """As after some training: LoRA and all biases are off their start."""
    module = semantic(**settings)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def plain_t5(module: Semantic) -> T5EncoderModel:
    """The same encoder without peft."""
    t5 = T5EncoderModel(t5_config(module.settings))
    state = {k.replace(".base_layer", ""): v for k, v in module.t5.state_dict().items() if "lora_" not in k}
    t5.load_state_dict(state)
    return t5.eval()


def test_lora_starts_as_plain_t5_bit_for_bit():
    module = semantic().eval()
    tokens = torch.randn(2, 5, CLIP)
    hidden = plain_t5(module)(inputs_embeds=module.manager(tokens)).last_hidden_state
    assert torch.equal(module(tokens), module.projector(hidden))


def test_lora_changes_the_answer_once_it_has_moved():
    module = semantic().eval()
    tokens = torch.randn(2, 5, CLIP)
    before = module(tokens)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    assert (module(tokens) - before).abs().max() > 1e-3


def test_lora_scale_multiplies_its_product():
    one, two = (perturbed(lora_scale=scale) for scale in (1.0, 2.0))
    x = torch.randn(3, 64)
    ones, twos = (m.t5.encoder.block[0].layer[0].SelfAttention.q for m in (one, two))
    base = ones.base_layer(x)
    assert torch.allclose(twos(x) - base, 2 * (ones(x) - base), atol=1e-5)


def test_gradient_reaches_the_manager_and_the_second_lora_factor_first():
    module = semantic()
    module(torch.randn(2, 5, CLIP)).square().sum().backward()
    assert module.manager.weight.grad.any()
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            assert parameter.grad.any(), name
        elif "lora_A" in name:
            assert not parameter.grad.any(), name  # exactly zero behind a zero factor
        elif not name.startswith("manager"):
            assert parameter.grad is None, name


@pytest.mark.parametrize(
    ("projector", "trained"),
    [("frozen", set()), ("trained", {"projector"}), ("extra", {"extra"})],
)
def test_projector_setting_says_what_is_trained(projector, trained):
    module = semantic(projector=projector)
    learning = {n.split(".")[0] for n, p in module.named_parameters() if p.requires_grad}
    assert learning == {"manager", "t5"} | trained


def test_extra_projection_starts_as_if_it_were_not_there():
    tokens = torch.randn(2, 5, CLIP)
    assert torch.equal(semantic(projector="extra").eval()(tokens), semantic().eval()(tokens))


def test_from_scratch_trains_the_whole_encoder_without_lora():
    module = semantic(t5_from_scratch=True)
    learning = {n for n, p in module.named_parameters() if p.requires_grad}
    assert not any("lora" in n for n in learning)
    assert {n for n, _ in module.named_parameters()} - learning == {
        "t5.shared.weight",
        "projector.weight",
        "projector.bias",
    }
    module(torch.randn(2, 5, CLIP)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters() if p.requires_grad)


def test_frozen_weights_do_not_depend_on_the_seed_but_trained_ones_do():
    def build(seed: int) -> Semantic:
        torch.manual_seed(seed)
        return Semantic(SemanticSettings(clip_dim=CLIP, t5="random:nano", lora_rank=2), DIM)

    one, two = build(1), build(2)
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        constant = a.eq(a.flatten()[0]).all()  # norms are ones, LoRA's second factor zeros
        assert torch.equal(a, b) == bool(not a.requires_grad or constant), name


def test_null_is_exact_zeros_although_the_projector_has_a_bias():
    module = perturbed()
    tokens = torch.randn(3, 5, CLIP)
    cross = module(tokens, keep=torch.tensor([True, False, True]))
    assert not cross[1].any()
    assert module(torch.zeros(1, 5, CLIP)).any()  # black pictures are not the null
    assert torch.equal(cross[[0, 2]], module(tokens)[[0, 2]])


def test_padded_tokens_give_zero_vectors_and_are_not_read():
    module = perturbed()
    tokens = torch.randn(1, 7, CLIP)
    present = (torch.arange(7) < 4)[None]
    cross = module(tokens, present=present)
    assert not cross[:, 4:].any()
    assert torch.allclose(cross[:, :4], module(tokens[:, :4]), atol=1e-5)
    tokens[:, 4:] = 100.0
    assert torch.allclose(module(tokens, present=present), cross, atol=1e-5)


def test_text_is_read_together_with_the_video():
    module = perturbed()
    tokens = torch.randn(2, 5, CLIP)
    text = module.tokenize(["calm piano", "drums"])
    cross = module(tokens, text=text)
    assert cross.shape == (2, 5 + 11, DIM)  # the longer prompt has ten bytes and an end sign
    assert not cross[1, 5 + 6 :].any()  # the shorter one is padded
    assert (cross[:, :5] - module(tokens)).abs().max() > 1e-3  # the video's tokens have heard of it
    assert torch.allclose(module(tokens[1:], text=module.tokenize(["drums"]))[0], cross[1, :11], atol=1e-5)
    assert not module(tokens, text=text, keep=torch.tensor([True, False]))[1].any()


def test_tokens_of_another_width_are_refused():
    with pytest.raises(SettingsError, match="40 wide, the preset reads 24"):
        semantic()(torch.randn(1, 5, 40))


def test_t5_never_runs_in_half_precision():
    fp32, bf16 = semantic().eval(), semantic(t5_precision="bf16").eval()
    tokens = torch.randn(2, 5, CLIP)
    plain = fp32(tokens)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(fp32(tokens), plain)
        assert bf16(tokens).dtype == torch.bfloat16
    assert (bf16(tokens) - plain).abs().max() < 0.05 * plain.abs().max()


@pytest.fixture
def toy_hub(tmp_path, monkeypatch):
    """A folder of weights in which `t5-base` has the toy's shape, and a hub that can't be reached."""
    monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("model.semantic.T5_SHAPES", {"t5-base": t5_shape()})
    return tmp_path / "google-t5" / "t5-base"


def publish(folder) -> T5EncoderModel:
    """Writes weights as the hub has them: with a decoder, and the tied table once."""
    torch.manual_seed(9)
    t5 = T5EncoderModel(t5_config(SemanticSettings()))
    state = {k: v for k, v in t5.state_dict().items() if k != "encoder.embed_tokens.weight"}
    folder.mkdir(parents=True)
    save_file({**state, "decoder.final_layer_norm.weight": torch.ones(16)}, folder / "model.safetensors")
    return t5.eval()


def t5_shape() -> dict[str, int]:
    return {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4, "vocab_size": 20}


def test_missing_weights_say_which_file_and_where(toy_hub):
    with pytest.raises(MissingWeights, match=r"model\.safetensors of google-t5/t5-base are missing") as caught:
        semantic(t5="t5-base")
    assert str(toy_hub / "model.safetensors") in caught.value.hint


def test_weights_are_read_from_the_folder(toy_hub):
    source = publish(toy_hub)
    module = semantic(t5="t5-base").eval()
    x = torch.randn(1, 5, 16)
    assert torch.equal(module.t5(inputs_embeds=x).last_hidden_state, source(inputs_embeds=x).last_hidden_state)


def test_damaged_weights_are_an_error_not_random_weights(toy_hub):
    toy_hub.mkdir(parents=True)
    save_file({"shared.weight": torch.zeros(20, 16)}, toy_hub / "model.safetensors")
    with pytest.raises(MissingWeights, match="don't fit it"):
        semantic(t5="t5-base")
    whole = (toy_hub / "model.safetensors").read_bytes()
    (toy_hub / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(MissingWeights, match="is damaged"):
        read_t5("t5-base")


def test_prompts_are_cut_into_t5s_own_words(toy_hub):
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "calm": 3, "piano": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    publish(toy_hub)
    tokenizer.save(str(toy_hub / "tokenizer.json"))
    text = semantic(t5="t5-base").tokenize(["calm piano", "drums"])
    assert text.ids.tolist() == [[3, 4, 1], [2, 1, 0]]
    assert text.present.tolist() == [[True] * 3, [True, True, False]]


def test_digest_names_the_weights_without_loading_them(toy_hub):
    with pytest.raises(MissingWeights):
        weights_digest(SemanticSettings())
    toy_hub.mkdir(parents=True)
    (toy_hub / "model.safetensors").write_bytes(b"abc")
    assert weights_digest(SemanticSettings()).startswith("ba7816bf")  # SHA-256 of "abc"
    assert weights_digest(SemanticSettings(t5="random:t5-base")) != weights_digest(SemanticSettings())
