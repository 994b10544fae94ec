"""The delay pattern: which code of which codebook stands at which decoder step (audiocraft's, as index tables)."""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Delay(NamedTuple):
    """The pattern of T frames in K codebooks: one empty step, then codebook k comes k steps late; T + K steps in all.

    Attributes:
        frame: [K, T + K] the flat index k T + t of the code that stands at each step; K T where none does.
        step: [K, T] the step whose logits predict each code: the one before that at which it stands.
        mask: [K, T] bool; whether that step is among the first T, which are trained on.
    """

    frame: Tensor
    step: Tensor
    mask: Tensor

    def build(self, codes: Tensor, special: int) -> Tensor:
        """Codes [B, K, T] -> tokens [B, K, T + K], `special` where no code stands."""
        return F.pad(codes.flatten(1), (0, 1), value=special)[:, self.frame]

    def revert(self, tokens: Tensor) -> Tensor:
        """Tokens [B, K, T + K] -> codes [B, K, T]."""
        return tokens[:, self._codebooks(), self.step + 1]

    def align(self, logits: Tensor) -> Tensor:
        """Logits of the first T steps [B, K, T, card] -> those that predict each code, NaN outside the mask."""
        late = self.frame.shape[0] - 1
        return F.pad(logits, (0, 0, 0, late), value=math.nan)[:, self._codebooks(), self.step]

    def _codebooks(self) -> Tensor:
        return torch.arange(len(self.step), device=self.step.device)[:, None]


@lru_cache(maxsize=256)
def delay_pattern(codebooks: int, frames: int, device: torch.device) -> Delay:
    """The pattern of T frames, out of audiocraft's `DelayedPatternProvider`."""
    with torch.inference_mode(False):  # the tables are kept, and may be saved for a backward pass later
        pattern = _audiocraft_patterns().DelayedPatternProvider(codebooks).get_pattern(frames)
        codes = torch.arange(codebooks * frames).view(1, codebooks, frames)
        frame, _, _ = pattern.build_pattern_sequence(codes, codebooks * frames)
        steps = torch.arange(frames + codebooks, dtype=torch.float64).expand(1, 1, codebooks, -1)
        step, _, _ = pattern.revert_pattern_logits(steps, math.nan)
        step = step[0, 0].long()
        return Delay(frame[0].to(device), step.to(device), (step < frames).to(device))


@cache
def _audiocraft_patterns() -> Any:
    """The module `audiocraft.modules.codebooks_patterns` by itself: importing its package takes 20 s."""
    package = importlib.util.find_spec("audiocraft")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("audiocraft is not installed", name="audiocraft")
    file = Path(package.submodule_search_locations[0]) / "modules" / "codebooks_patterns.py"
    spec = importlib.util.spec_from_file_location("model._codebooks_patterns", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there for its own module
    spec.loader.exec_module(module)
    return module
