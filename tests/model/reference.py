"""The yardsticks: audiocraft's LMModel and transformers' MusicgenForCausalLM in a given geometry, random weights."""

from __future__ import annotations

import torch
from torch import nn

from model.checkpoints import convert
from model.decoder import Decoder, Geometry

TOY = Geometry(layers=3, dim=64, heads=4, ff=256, cardinality=32)
OFF = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}  # transformers' default is 0.1


def perturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Moves all 1-D parameters: LayerNorms start as ones and zeros, so swapped ones would go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def audiocraft_lm(geometry: Geometry, *, memory_efficient: bool = False):
    """LMModel as MusicGen's configuration builds it; conditions are tensors [N, D] in the `text` slot, or None.

    Only what stands in the `text` slot is nulled for guidance: an attribute of one's own would reach both branches, and
    guidance would do nothing.
    """
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider
    from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider, TextConditioner

    class Vectors(TextConditioner):
        def tokenize(self, given):
            length = max([len(x) for x in given if x is not None] or [1])
            vectors, mask = torch.zeros(len(given), length, self.dim), torch.zeros(len(given), length)
            for row, x in enumerate(given):
                if x is not None:
                    vectors[row, : len(x)], mask[row, : len(x)] = x, 1
            return vectors, mask

        def forward(self, tokenized):
            vectors, mask = tokenized
            return vectors.to(self.output_proj.weight.dtype), mask

    with torch.device("meta"):  # the weights are drawn below
        lm = LMModel(
            DelayedPatternProvider(geometry.codebooks),
            ConditioningProvider({"description": Vectors(geometry.dim, geometry.dim)}),
            ConditionFuser({"cross": ["description"], "sum": [], "prepend": [], "input_interpolate": []}),
            n_q=geometry.codebooks, card=geometry.cardinality, dim=geometry.dim, num_heads=geometry.heads,
            num_layers=geometry.layers, hidden_scale=geometry.ff / geometry.dim, norm_first=True, causal=True,
            custom=True, memory_efficient=memory_efficient, activation="gelu", dropout=0.0, bias_proj=False,
            bias_ff=False, bias_attn=False, cross_attention=True,
        )  # fmt: skip
    lm.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return lm.eval()


def audiocraft_conditions(cross):
    """Conditions of a list of [N, D] tensors."""
    from audiocraft.modules.conditioners import ConditioningAttributes

    return [ConditioningAttributes(text={"description": x}) for x in cross]


def audiocraft_generate(lm, cross, frames, **options):
    """`LMModel.generate`, greedy unless the options say otherwise, guidance 3."""
    options = {"use_sampling": False, "cfg_coef": 3.0, **options}
    return lm.generate(conditions=audiocraft_conditions(cross), max_gen_len=frames, **options)


def ours_of(lm, geometry: Geometry) -> Decoder:
    """Our decoder with audiocraft's weights."""
    state = convert(lm.state_dict(), "audiocraft", "ours", geometry)
    with torch.device("meta"):
        decoder = Decoder(geometry)
    decoder.load_state_dict({n: w for n, w in state.items() if not n.startswith("projection.")}, assign=True)
    return decoder.eval()


def transformers_config(geometry: Geometry):
    """The decoder's configuration with dropout off."""
    from transformers import MusicgenDecoderConfig

    return MusicgenDecoderConfig(
        vocab_size=geometry.cardinality, num_hidden_layers=geometry.layers, ffn_dim=geometry.ff,
        num_attention_heads=geometry.heads, hidden_size=geometry.dim, num_codebooks=geometry.codebooks,
        pad_token_id=geometry.special, bos_token_id=geometry.special, **OFF,
    )  # fmt: skip
