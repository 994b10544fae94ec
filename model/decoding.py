"""Decoding: codes sampled step by step, with caches allocated once, guidance in one batch, and no wait for the device.

B samples, K codebooks, T frames, D width, H heads; R rows of the batch: the guidance branches one after another, each
of B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.delay import delay_pattern
from model.primitives import attention

if TYPE_CHECKING:
    from model.decoder import Block, Decoder

UNKNOWN = -1  # a code that is still to be generated
Mode = Literal["eager", "static", "graph", "compile"]
Generators = torch.Generator | Sequence[torch.Generator] | None


def generate(
    decoder: Decoder,
    cross: Tensor,
    frames: int,
    *,
    in_attention: Mapping[int, Tensor] | None = None,
    prompt: Tensor | None = None,
    guidance: float = 3.0,
    guidance_rhythm: float | None = None,
    temperature: float = 1.0,
    top_k: int = 250,
    greedy: bool = False,
    generator: Generators = None,
    mode: Mode | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Codes [B, K, T] int64, the prompt's included.

    All guidance branches run in one batch: `null + guidance (full - null)`, or, with a `guidance_rhythm` of its own,
    `null + guidance (semantic - null) + guidance_rhythm (full - semantic)`. The null condition is zero vectors in
    cross-attention and nothing in in-attention.

    Args:
        decoder: in the precision to compute in (fp32 or bf16).
        cross: [B, N, D] semantic tokens; a padded one is zeros, and is attended to, as audiocraft does.
        frames: T, the prompt's included.
        in_attention: layer -> [B, up to T + K - 1, D]; row t at step t, steps behind it get nothing.
        prompt: [B, K, P] codes to go on from, P < T.
        guidance: 1 is none.
        guidance_rhythm: None is the same as `guidance`.
        temperature: what the guided logits are divided by.
        top_k: draw among the k likeliest codes (ties with the k-th kept); 0 is all of them.
        greedy: take the likeliest code, draw nothing.
        generator: on the decoder's device; one for the batch, or one per sample, whose draws then depend neither on
            the batch's size nor on its order. None is torch's own.
        mode: None is `graph` on CUDA and `eager` elsewhere. `graph` replays each step as one captured CUDA graph;
            `compile` puts torch.compile before that; `static` is their step, of fixed shapes, run op by op.
        on_step: called with the steps done and their number.
    """
    B, K, P = len(cross), decoder.geometry.codebooks, 0 if prompt is None else prompt.shape[-1]
    if prompt is not None and not (prompt.shape[:2] == (B, K) and frames > P):
        raise ValueError(f"codes {tuple(prompt.shape)} can't be continued to [{B}, {K}, {frames}]")
    prompt = torch.empty(B, K, 0, dtype=torch.long, device=cross.device) if prompt is None else prompt
    split = bool(in_attention) and guidance_rhythm is not None and guidance_rhythm != guidance
    scales: list[float] = [guidance] if split or guidance != 1.0 else []
    if split and guidance_rhythm is not None:
        scales.append(guidance_rhythm)
    generators = generator if isinstance(generator, Sequence) else [generator] * B
    mode = mode or ("graph" if cross.is_cuda else "eager")
    last = frames + K - 1
    with torch.inference_mode():
        delay = delay_pattern(K, frames, cross.device)
        tokens = delay.build(F.pad(prompt, (0, frames - P), value=UNKNOWN), decoder.geometry.special)  # [B, K, T + K]
        unknown = tokens == UNKNOWN  # teacher-forced elsewhere: the prompt's late codebooks, and special tokens
        run = _Run(decoder, cross, in_attention or {}, steps=last, branches=len(scales) + 1)
        logits = run.step(run.rows(tokens[..., : P + 1]), 0)
        advance = run.stepper(mode, run.rows(tokens[..., P : P + 1]), P)
        for step in range(P + 1, last + 1):
            guided = _guided(logits.unflatten(0, (-1, B)), scales)
            codes = guided.argmax(-1) if greedy else _drawn(guided / temperature, top_k, generators)
            tokens[..., step] = torch.where(unknown[..., step], codes, tokens[..., step])
            if step < last:
                logits = advance(run.rows(tokens[..., step : step + 1]), step)
            if on_step:
                on_step(step - P, last - P)
        codes = delay.revert(tokens)
    return codes.clone()  # outside inference mode: one may train on them


class _Run:
    """What one call of `generate` computes once, and its keys and values, written in place."""

    def __init__(
        self, decoder: Decoder, cross: Tensor, rhythm: Mapping[int, Tensor], *, steps: int, branches: int
    ) -> None:
        weight, geometry = decoder.embed.weight, decoder.geometry
        self.decoder, self.samples, self.branches = decoder, len(cross), branches
        self.blocks = [cast("Block", block) for block in decoder.blocks]
        nulls = [torch.zeros_like(cross)] if branches > 1 else []
        cross = torch.cat([cross] * max(1, branches - 1) + nulls).to(weight.dtype)
        self.cross = [block.keys_values(cross) for block in self.blocks]
        self.positions = decoder.positions(steps)
        self.rhythm = {i: F.pad(x.to(weight.dtype), (0, 0, 0, steps - x.shape[1])) for i, x in rhythm.items()}
        shape = (len(cross), geometry.heads, steps, geometry.dim // geometry.heads)  # [R, H, S, D / H]
        self.keys = [weight.new_zeros(shape) for _ in self.blocks]
        self.values = [weight.new_zeros(shape) for _ in self.blocks]
        self.steps = torch.arange(steps, device=weight.device)

    def rows(self, tokens: Tensor) -> Tensor:
        """[B, K, n] -> [R, K, n]."""
        return tokens.repeat(self.branches, 1, 1)

    def step(self, tokens: Tensor, at: int | Tensor) -> Tensor:
        """The logits [R, K, cardinality] float32 after n more tokens [R, K, n], the first of which is step `at`.

        With an int, only the steps so far are attended to; with a [1] tensor (n is 1 then) all shapes are fixed.
        """
        n = tokens.shape[-1]
        x = self.decoder.embedded(tokens) + _rows_at(self.positions, at, n)
        for layer, block in enumerate(self.blocks):
            if layer in self.rhythm:  # only the branch that comes first has it
                x[: self.samples] += _rows_at(self.rhythm[layer], at, n)
            x = block(x, self.cross[layer], partial(self._attend, layer, at))
        return self.decoder.logits(x[:, -1:])[:, :, 0].float()

    def stepper(self, mode: Mode, tokens: Tensor, at: int) -> Callable[[Tensor, int], Tensor]:
        """`step` for one token at a time in the given mode; (tokens, at) is a step that may be done once more."""
        if mode == "eager":
            return self.step
        step = partial(_compiled_step() if mode == "compile" else _Run.step, self)
        position = torch.tensor([at], device=tokens.device)
        if mode != "static" and tokens.is_cuda:
            return _Graph(step, tokens, position)
        return lambda tokens, at: step(tokens, position.fill_(at))

    def _attend(self, layer: int, at: int | Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal self-attention [R, H, n, D / H] over the steps so far, to which it adds the new keys and values."""
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(at, int):
            end = at + q.shape[2]
            keys[:, :, at:end] = k
            values[:, :, at:end] = v
            return attention(q, keys[:, :, :end], values[:, :, :end], causal=q.shape[2] > 1)
        keys.index_copy_(2, at, k)
        values.index_copy_(2, at, v)
        return attention(q, keys, values, mask=(self.steps <= at)[None])


def _rows_at(table: Tensor, at: int | Tensor, n: int) -> Tensor:
    """Rows at ... at + n - 1 of [..., S, D]."""
    return table.narrow(-2, at, n) if isinstance(at, int) else table.index_select(-2, at)


@cache
def _compiled_step() -> Callable[..., Tensor]:
    return torch.compile(_Run.step, fullgraph=True, dynamic=False)


class _Graph:
    """A step captured as a CUDA graph: one launch in place of hundreds."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, at: Tensor) -> None:
        self.tokens, self.at = tokens.clone(), at.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a capture wants everything compiled and allocated before
            for _ in range(3):
                step(self.tokens, self.at)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step(self.tokens, self.at)

    def __call__(self, tokens: Tensor, at: int) -> Tensor:
        self.tokens.copy_(tokens)
        self.at.fill_(at)
        self.graph.replay()
        return self.logits


def _guided(branches: Tensor, scales: Sequence[float]) -> Tensor:
    """Logits of (full,), (full, null) or (full, semantic, null), the branches first, by 0, 1 or 2 scales."""
    if not scales:
        return branches[0]
    null = branches[-1]
    guided = null + (branches[-2] - null) * scales[0]
    return guided + (branches[0] - branches[1]) * scales[1] if len(scales) > 1 else guided


def _drawn(logits: Tensor, top_k: int, generators: Sequence[torch.Generator | None]) -> Tensor:
    """A code for each codebook from [B, K, cardinality].

    The largest of the probabilities, each divided by an exponential draw, is a sample of them. torch.multinomial works
    so too; here each sample has its own generator.
    """
    probabilities = logits.softmax(-1)
    if top_k:
        kth = probabilities.topk(min(top_k, logits.shape[-1])).values[..., -1:]
        probabilities = probabilities * (probabilities >= kth)
    noise = torch.empty_like(probabilities)
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(generator=generator)
    return (probabilities / noise).argmax(-1)
