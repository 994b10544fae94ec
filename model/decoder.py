"""MusicGen's decoder, top to bottom, and its loss.

A causal transformer over EnCodec's codebooks in the delay pattern. It cross-attends to the semantic tokens, and takes
the rhythm tensors as an argument (in-attention). After Copet et al., "Simple and Controllable Music Generation" (arXiv
2306.05284); tests/model/ holds it to audiocraft's `LMModel` and to transformers' `MusicgenForCausalLM`.

B samples, K codebooks, T frames (50 Hz), S steps, D width, H heads, N cross-attention keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model import decoding
from model.delay import delay_pattern
from model.primitives import Linear, attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [B, H, S, D / H] -> [B, H, S, D / H]


@dataclass(frozen=True)
class Geometry:
    """The shape of a decoder; `ff` is the width of the feed-forward part."""

    layers: int
    dim: int
    heads: int
    ff: int
    codebooks: int = 4
    cardinality: int = 2048

    def __post_init__(self) -> None:
        if self.dim % 2 or self.dim % self.heads:
            raise ValueError(f"a width of {self.dim} is odd or no multiple of {self.heads} heads")

    @property
    def special(self) -> int:
        """The token that stands where the delay pattern has no code."""
        return self.cardinality


GEOMETRIES = {
    "nano": Geometry(layers=8, dim=128, heads=4, ff=512),
    "small": Geometry(layers=24, dim=1024, heads=16, ff=4096),
    "medium": Geometry(layers=48, dim=1536, heads=24, ff=6144),
    "large": Geometry(layers=48, dim=2048, heads=32, ff=8192),
}


class Output(NamedTuple):
    """Logits already aligned: `logits[b, k, t]` predicts `codes[b, k, t]`.

    Attributes:
        logits: [B, K, T, cardinality]; NaN for the last k codes of codebook k, which lie behind the trained steps.
        mask: [B, K, T] bool; False there, and likewise for a clip that is padded: it is trained on as if alone.
    """

    logits: Tensor
    mask: Tensor


class Decoder(nn.Module):
    """MusicGen's decoder.

    Args:
        geometry: its shape. Weights start as audiocraft's: a truncated Gaussian, smaller with depth.
        checkpointing: recompute each layer's activations in the backward pass instead of keeping them.
    """

    def __init__(self, geometry: Geometry, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.geometry, self.checkpointing = geometry, checkpointing
        K, D = geometry.codebooks, geometry.dim
        self.embed = nn.Embedding(K * (geometry.cardinality + 1), D)  # the codebooks' tables one under another
        self.blocks = nn.ModuleList(Block(geometry) for _ in range(geometry.layers))
        self.out_norm = nn.LayerNorm(D)
        self.heads = Linear(D, K * geometry.cardinality)  # likewise
        _initialise(self.embed.weight)
        _initialise(self.heads.weight)
        for depth, block in enumerate(self.blocks, start=1):
            for linear in (m for m in block.modules() if isinstance(m, Linear)):
                _initialise(linear.weight, 1 / math.sqrt(2 * depth))

    def forward(
        self,
        codes: Tensor,
        cross: Tensor,
        *,
        in_attention: Mapping[int, Tensor] | None = None,
        padding: Tensor | None = None,
    ) -> Output:
        """Teacher-forced logits of all codes.

        The last of audiocraft's T + 1 steps predicts nothing that is trained, so T are run.

        Args:
            codes: [B, K, T] int64, any in range where the clip is padded.
            cross: [B, N, D] semantic tokens; the null condition, and a padded token, is exact zeros.
            in_attention: layer -> [B, any length, D], added to the residual stream before the layer's first norm: row t
                at step t, whose logits predict frame t of codebook 0. Steps without a row get nothing.
            padding: [B, T] bool, True where the clip is, False behind its end.
        """
        T = codes.shape[-1]
        delay = delay_pattern(self.geometry.codebooks, T, codes.device)
        mask = delay.mask
        if padding is not None:  # a late codebook's step reads codes after its frame: those of the clip only
            mask = mask & padding[:, delay.step.clamp(max=T - 1)]
        x = self.hidden(codes, cross, in_attention)
        return Output(delay.align(self.logits(x)), mask.expand(codes.shape))

    def hidden(self, codes: Tensor, cross: Tensor, in_attention: Mapping[int, Tensor] | None = None) -> Tensor:
        """[B, T, D] behind the last block, as `forward` takes its arguments: what `logits` reads, step by step."""
        T = codes.shape[-1]
        delay = delay_pattern(self.geometry.codebooks, T, codes.device)
        x = self.embedded(delay.build(codes, self.geometry.special)[..., :T]) + self.positions(T)
        for layer, block in enumerate(self.blocks):
            if in_attention and layer in in_attention:
                added = in_attention[layer][:, :T].to(x.dtype)
                x = x + F.pad(added, (0, 0, 0, T - added.shape[1]))
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cross, use_reentrant=False)
            else:
                x = block(x, cross)
        return x

    def generate(self, cross: Tensor, frames: int, **options: Any) -> Tensor:
        """Codes [B, K, frames] for semantic tokens [B, N, D]; the options are `decoding.generate`'s."""
        return decoding.generate(self, cross, frames, **options)

    def embedded(self, tokens: Tensor) -> Tensor:
        """Tokens [B, K, S] -> [B, S, D], the sum over codebooks; no sqrt(D) scaling."""
        first = torch.arange(self.geometry.codebooks, device=tokens.device) * (self.geometry.cardinality + 1)
        return self.embed(tokens + first[:, None]).sum(1)

    def positions(self, steps: int) -> Tensor:
        """Sinusoids [S, D], cosines first, of steps 0, 1, ...

        Computed in fp32 and cast once. Computed in bf16, as audiocraft does under bf16, steps above 256 are rounded.
        """
        half, weight = self.geometry.dim // 2, self.embed.weight
        frequency = 10000 ** (torch.arange(half, device=weight.device, dtype=torch.float32) / (half - 1))
        phase = torch.arange(steps, device=weight.device, dtype=torch.float32)[:, None] / frequency
        return torch.cat([phase.cos(), phase.sin()], 1).to(weight.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, K, S, cardinality], step by step."""
        return self.heads(self.out_norm(x)).unflatten(-1, (self.geometry.codebooks, -1)).transpose(1, 2)


def loss(output: Output, codes: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats: per codebook over its mask, then the mean of the codebooks, as audiocraft trains.

    Args:
        output: what `Decoder.forward` gave for `codes`.
        codes: [B, K, T].
        counts: [K] codes that each codebook's sum is divided by; its mask's by default. Given the mean of several
            processes' counts, the mean of their losses is the loss of all their clips in one batch, padded or not.

    Returns:
        The loss, and those of the codebooks [K], detached. A codebook with nothing to predict counts as 0.
    """
    targets = codes.masked_fill(~output.mask, -100)
    sums = [
        F.cross_entropy(output.logits[:, k].flatten(0, 1).float(), targets[:, k].flatten(), reduction="sum")
        for k in range(codes.shape[1])
    ]
    counts = output.mask.sum((0, 2)) if counts is None else counts
    per_codebook = torch.stack(sums) / counts.float().clamp(min=1e-6)
    return per_codebook.mean(), per_codebook.detach()


class Block(nn.Module):
    """One pre-norm layer: self-attention, cross-attention, feed-forward with exact GELU; LayerNorm's eps is 1e-5."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        D = geometry.dim
        self.head_dim = D // geometry.heads
        self.norm1 = nn.LayerNorm(D)
        self.self_qkv = Linear(D, 3 * D)
        self.self_out = Linear(D, D)
        self.norm_cross = nn.LayerNorm(D)
        self.cross_q = Linear(D, D)
        self.cross_kv = Linear(D, 2 * D)
        self.cross_out = Linear(D, D)
        self.norm2 = nn.LayerNorm(D)
        self.up = Linear(D, geometry.ff)
        self.down = Linear(geometry.ff, D)

    def forward(self, x: Tensor, cross: Tensor | tuple[Tensor, ...], attend: Attention | None = None) -> Tensor:
        """[B, S, D] -> [B, S, D].

        Args:
            x: the residual stream.
            cross: semantic tokens [B, N, D], or what `keys_values` makes of them.
            attend: self-attention; None is causal attention among the S steps.
        """
        attend = attend or partial(attention, causal=True)
        q, k, v = self._split(self.self_qkv(self.norm1(x)), 3)
        x = x + self.self_out(_merged(attend(q, k, v)))
        (q,) = self._split(self.cross_q(self.norm_cross(x)), 1)
        k, v = self.keys_values(cross.to(x.dtype)) if isinstance(cross, Tensor) else cross
        x = x + self.cross_out(_merged(attention(q, k, v)))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def keys_values(self, cross: Tensor) -> tuple[Tensor, ...]:
        """Semantic tokens [B, N, D] -> cross-attention's keys and values, [B, H, N, D / H] each."""
        return self._split(self.cross_kv(cross), 2)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, S, parts D] -> `parts` of [B, H, S, D / H]."""
        return x.unflatten(-1, (parts, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()


def _merged(x: Tensor) -> Tensor:
    """[B, H, S, D / H] -> [B, S, D]."""
    return x.transpose(1, 2).flatten(2)


def _initialise(weight: Tensor, scale: float = 1.0) -> None:
    std = scale / math.sqrt(weight.shape[1])
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
