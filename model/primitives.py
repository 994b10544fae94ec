"""The two operations that a decoder's time goes into, with other ways for a CPU: single steps, and bf16 training.

The other ways give the same numbers but for rounding. tests/benchmarks/decode.py measures what those of single steps
are worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 8
BLOCK = 128  # queries


class Linear(nn.Linear):
    """Without bias. A few fp32 rows on a CPU are multiplied as (W x^T)^T: MKL reads W once that way, not per row."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        few = x.numel() <= FEW_ROWS * x.shape[-1] and not torch.is_grad_enabled()
        if not few or x.dtype != torch.float32 or x.device.type != "cpu":
            return F.linear(x, self.weight)
        rows = torch.mm(self.weight, x.reshape(-1, x.shape[-1]).t()).t()
        return rows.contiguous().view(*x.shape[:-1], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: q [B, H, S, d], k and v [B, H, N, d] -> [B, H, S, d].

    A single query on a CPU is K q^T, then weights times V: PyTorch's kernel splits the work by queries. Its bf16 kernel
    is also slow backwards there: plain products took 11 ms where it took 25 (forwards and backwards, 4 heads of 32, 4
    sequences of 500 steps, one Zen 5 core), and 1.6 ms in place of 8.9 for cross-attention to 48 keys; it keeps the
    weights [H, S, N] of each layer for that, see `kept_weights`.

    Args:
        q, k, v: queries, keys, values.
        causal: step s sees keys 0 ... s.
        mask: bool, broadcast to [S, N]; True where a key is seen.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and mask is None and torch.is_grad_enabled():
        return _products(q, k, v, causal)
    if q.shape[2] > 1 or mask is not None or q.device.type != "cpu" or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = k @ (q * q.shape[-1] ** -0.5).transpose(2, 3)  # [B, H, N, 1]
    return scores.softmax(2).transpose(2, 3) @ v


def kept_weights(steps: int, keys: int) -> int:
    """Attention weights per sample and head that bf16 training on a CPU keeps of a layer: to steps, and to keys."""
    return sum((last - first) * last for first, last in _blocks(steps)) + steps * keys


def _products(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """`attention` from matrix products; the causal one in blocks of queries, which leave out most keys to come."""
    B, H, S, d = q.shape
    # Each a copy of its own: else every block copies the keys and values it sees, and keeps them.
    q, k, v = (q * d**-0.5).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if not causal:
        return ((q @ k.transpose(1, 2)).softmax(-1) @ v).unflatten(0, (B, H))
    parts = []
    future = q.new_full((BLOCK, BLOCK), -math.inf).triu(1)
    for first, last in _blocks(S):
        scores = q[:, first:last] @ k[:, :last].transpose(1, 2)
        scores = scores + F.pad(future[: last - first, : last - first], (first, 0))
        parts.append(scores.softmax(-1) @ v[:, :last])
    return torch.cat(parts, 1).unflatten(0, (B, H))


def _blocks(steps: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + BLOCK, steps)) for first in range(0, steps, BLOCK))
