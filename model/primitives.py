"""The two operations that a decoder's time goes into, with a second way each for single steps on a CPU.

The second ways are for inference only and give the same numbers but for rounding; tests/benchmarks/decode.py measures
what they are worth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 8


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

    A single query on a CPU is K q^T, then weights times V: PyTorch's kernel splits the work by queries.

    Args:
        q, k, v: queries, keys, values.
        causal: step s sees keys 0 ... s.
        mask: bool, broadcast to [S, N]; True where a key is seen.
    """
    if q.shape[2] > 1 or mask is not None or q.device.type != "cpu" or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = k @ (q * q.shape[-1] ** -0.5).transpose(2, 3)  # [B, H, N, 1]
    return scores.softmax(2).transpose(2, 3) @ v
