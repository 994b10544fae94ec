"""What can be asked of a generation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import SettingsError


@dataclass(frozen=True)
class Options:
    """How music is drawn and written.

    Attributes:
        seed: of the draws; the same for every video of a batch.
        text: prompt that T5 reads behind the video; empty for none.
        guidance: how far the semantic condition is exaggerated; 1 is not at all.
        guidance_rhythm: the same for the rhythm; None is the same as `guidance`.
        temperature: what the logits are divided by.
        top_k: draw among the k likeliest codes; 0 is all.
        greedy: take the likeliest code; then the seed has no effect.
        prompt_s: whole seconds that a window goes on from; None is 0.4 of it.
        audio_only: write a WAV file instead of a video.
        overwrite: replace a file that is there already.
        command: what the user typed, for the record.
    """

    seed: int = 0
    text: str = ""
    guidance: float = 3.0
    guidance_rhythm: float | None = None
    temperature: float = 1.0
    top_k: int = 250
    greedy: bool = False
    prompt_s: int | None = None
    audio_only: bool = False
    overwrite: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        checks = {
            "seed": 0 <= self.seed < 2**63,
            "guidance": math.isfinite(self.guidance),
            "guidance_rhythm": self.guidance_rhythm is None or math.isfinite(self.guidance_rhythm),
            "temperature": 0 < self.temperature < math.inf,
            "top_k": self.top_k >= 0,
        }
        if wrong := [f"{name} {getattr(self, name)}" for name, good in checks.items() if not good]:
            raise SettingsError(
                f"Can't generate with {', '.join(wrong)}.",
                hint="Take a seed and top_k from 0, a temperature above 0, a guidance around 3.",
            )

    def drawing(self) -> dict[str, Any]:
        """The options that change what is heard."""
        return {n: v for n, v in asdict(self).items() if n not in ("audio_only", "overwrite", "command")}
