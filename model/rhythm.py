"""The rhythm part: a curve of visual change, added to the decoder's residual stream (in-attention).

    d [25 Hz] -> 50 Hz -> Zero-Linear O -> Identity-Linear L_1 -> ... -> L_J       F_j = L_j(... L_1(O(d)))

F_j is added before the first layer of block j, for the blocks in the first 3/4 of the depth (VidMusician, arXiv
2412.06296). O starts at zero and every L_j at the identity: at first F_j = 0, so the decoder answers as without rhythm,
and the gradient reaches O through the identities at once. MusiConGen (arXiv 2407.15060) is the kind with one tensor for
all injections.

Parameters stay in fp32 (the chain is a product of up to 18 matrices), and weight decay must not touch them: it would
pull the identities to zero and silence the deep injections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.settings import RhythmSettings

CURVE_RATE, CODE_RATE = 25, 50  # Hz


def injection_layers(settings: RhythmSettings, layers: int) -> tuple[int, ...]:
    """The layers before which something is added: multiples of `inject_every` below `inject_fraction` of the depth.

    For `inject_every` 1 the first 18 of 24; for 4 the layers 0, 4, ..., 32 of 48, which is also MusiConGen's rule: its
    sum at the decoder's input is the injection before layer 0.
    """
    if settings.kind == "none":
        return ()
    return tuple(i for i in range(0, layers, settings.inject_every) if i < settings.inject_fraction * layers)


def resample(curve: Tensor, frames: int, samples: Tensor | None = None, ahead_s: float = 0) -> Tensor:
    """A curve [B, T25] at 25 Hz -> [B, frames] at 50 Hz, by timestamps.

    Sample i stands at i / 25 s and code frame t at t / 50 s: frame 2i is d_i, frame 2i + 1 the mean of d_i and d_{i+1}.
    After the last sample, of each row's first `samples` [B] if they are given, its value is held. Frame t may be given
    what stands `ahead_s` later, to the nearest frame.
    """
    times = (torch.arange(frames, device=curve.device) + round(ahead_s * CODE_RATE)) * (CURVE_RATE / CODE_RATE)
    before = times.floor().long()
    share = (times - before).to(curve.dtype)
    last = curve.new_full((len(curve),), curve.shape[1], dtype=torch.long) if samples is None else samples
    last = last.clamp(1, curve.shape[1])[:, None] - 1
    return curve.gather(1, before.minimum(last)) * (1 - share) + curve.gather(1, (before + 1).minimum(last)) * share


def standardised(curve: Tensor, valid: Tensor) -> Tensor:
    """Each row of [B, T] to mean 0 and deviation 1 over its valid frames; a constant row becomes zeros."""
    n = valid.sum(1, keepdim=True).clamp(min=1)
    centred = (curve - (curve * valid).sum(1, keepdim=True) / n) * valid
    deviation = (centred.square().sum(1, keepdim=True) / n).sqrt()
    return centred / deviation.clamp(min=1e-6)


class Rhythm(nn.Module):
    """From a rhythm curve to what is added before the decoder's layers.

    Args:
        settings: kind, injection rule, start.
        layers: the decoder's depth.
        dim: the decoder's width D.
    """

    def __init__(self, settings: RhythmSettings, layers: int, dim: int) -> None:
        super().__init__()
        self.settings = settings
        self.layers = injection_layers(settings, layers)
        self.lift = nn.Linear(1, dim) if settings.lift else nn.Identity()
        self.zero = nn.Linear(dim if settings.lift else 1, dim)
        chained = settings.kind == "vidmusician"
        self.chain = nn.ModuleList(nn.Linear(dim, dim) if chained else nn.Identity() for _ in self.layers)
        if settings.init == "zero_identity":
            for linear in (self.zero, *self.identities()):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
            for linear in self.identities():
                nn.init.eye_(linear.weight)

    def identities(self) -> list[nn.Linear]:
        """The Identity-Linears L_1 .. L_J; none for MusiConGen's kind."""
        return [linear for linear in self.chain if isinstance(linear, nn.Linear)]

    def forward(
        self, curve: Tensor, frames: int, *, keep: Tensor | None = None, valid: Tensor | None = None
    ) -> dict[int, Tensor]:
        """What to add before each injected layer, [B, T, D]: row t belongs to decoder step t; later steps get nothing.

        Args:
            curve: [B, T25], d_t = 1 - cos(p_t, p_{t-1}), 25 Hz.
            frames: code frames T at 50 Hz.
            keep: [B] bool; False is the null condition. The null is set after the chain, whose biases would leak.
            valid: [B, T] bool; False behind the end of a clip that is shorter than the batch.
        """
        valid = curve.new_ones(len(curve), frames, dtype=torch.bool) if valid is None else valid
        samples = (valid.sum(1) * CURVE_RATE / CODE_RATE).ceil().long()
        d = resample(curve.float(), frames, samples, self.settings.ahead_s)
        d = standardised(d, valid) if self.settings.standardise else d
        used = valid if keep is None else valid & keep[:, None]
        dropped = ~used[..., None]
        injected = {}
        x = self.zero(self.lift(d[..., None]))  # [B, T, D]
        for layer, linear in zip(self.layers, self.chain, strict=True):
            x = linear(x)
            injected[layer] = x.masked_fill(dropped, 0.0)
        return injected

    @torch.no_grad()
    def deviations(self) -> list[float]:
        """||L_j - I|| (Frobenius) for the log: how far each Identity-Linear has moved."""
        weights = [linear.weight for linear in self.identities()]
        return [float((w - torch.eye(len(w), device=w.device)).norm()) for w in weights]


@torch.no_grad()
def magnitudes(injected: dict[int, Tensor]) -> dict[int, float]:
    """||F_j|| for the log: by layer, the mean length of what is added at a step that gets anything."""
    lengths = {layer: f.float().norm(dim=-1) for layer, f in injected.items()}
    return {layer: float(n.sum() / (n > 0).sum().clamp(min=1)) for layer, n in lengths.items()}
