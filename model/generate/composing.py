"""From what is seen to codes: windows by absolute time, each going on from the codes of the one before.

Window i begins at i x (window - prompt) seconds and is as long as a crop in training. Both conditions are cut by the
same absolute time out of the whole video's, so that d_0 = 1 stands at the video's first frame only.

In the delay pattern the last K - 1 frames of a sequence are finished by steps that are never trained on and see special
tokens for codes. So each window is decoded K - 1 frames further, which nobody hears; and the K - 1 before those, whose
last steps lie behind the conditions' end, aren't handed on: the next window makes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from model.generate.options import Options
from model.rhythm import CODE_RATE, CURVE_RATE
from model.semantic import Text
from model.settings import Reduction
from model.vidmusician import VidMusician
from pipeline.errors import SettingsError
from pipeline.media import frames_at
from pipeline.vision import FPS, VisionEncoder

PROMPT_SHARE = 0.4  # of a window, unless the options say how much: audiocraft hands on 12 of 30 s
OnPart = Callable[[float, float], None]  # done, of how much
Item = TypeVar("Item")


@dataclass(frozen=True)
class Scene:
    """What is seen in a video.

    Attributes:
        seconds: S, whole ones; the last may be begun only, and then shows the last frame to its end.
        clip_global: [S, D] float16 global tokens, 1 Hz.
        curve: [25 S] float16 rhythm curve of the preset's reduction.
    """

    seconds: int
    clip_global: np.ndarray
    curve: np.ndarray


def watch(video: Path, seconds: int, vision: VisionEncoder, reduction: Reduction, on_part: OnPart) -> Scene:
    """Reads a video once, from its first frame to its last.

    Raises:
        SourceError: a frame can't be decoded.
    """
    count = FPS * seconds
    frames = frames_at(video, (Fraction(i, FPS) for i in range(count)), size=vision.size)
    features = vision.encode_frames(_counted(frames, count, on_part), neighbour=False)
    return Scene(seconds, features.clip_global, getattr(features, reduction))


def prompt_seconds(window_s: int, asked: int | None) -> int:
    """Seconds of a window that are the end of the one before.

    Raises:
        SettingsError: nothing new would be left in a window.
    """
    prompt_s = max(1, round(PROMPT_SHARE * window_s)) if asked is None else asked
    if not 1 <= prompt_s < window_s:
        raise SettingsError(
            f"A window of {window_s} s can't begin with {prompt_s} s of the one before.",
            hint=f"Use a prompt of 1 to {window_s - 1} s; the window is the preset's train.crop_s.",
        )
    return prompt_s


def compose(
    scenes: Sequence[Scene], model: VidMusician, options: Options, on_part: OnPart
) -> list[np.ndarray]:
    """Codes [K, 50 S] int16 for each scene.

    A scene's codes depend on the seed and on the scene, not on the others, which are only decoded at the same time.
    """
    late = model.decoder.geometry.codebooks - 1
    window_s = model.preset.train.crop_s
    prompt_s = prompt_seconds(window_s, options.prompt_s) if any(s.seconds > window_s for s in scenes) else 0
    device = model.semantic.manager.weight.device
    text = model.semantic.tokenize([options.text]) if options.text else None
    generators = [torch.Generator(device).manual_seed(options.seed) for _ in scenes]
    codes = [
        torch.zeros(model.decoder.geometry.codebooks, CODE_RATE * scene.seconds, dtype=torch.long, device=device)
        for scene in scenes
    ]
    longest = max(scene.seconds for scene in scenes)
    for start in range(0, max(1, longest - prompt_s), window_s - prompt_s):
        first = CODE_RATE * start
        known = CODE_RATE * prompt_s - late if start else 0
        active = [i for i, scene in enumerate(scenes) if start == 0 or start + prompt_s < scene.seconds]
        ahead = CODE_RATE * max(min(window_s, scenes[i].seconds - start) for i in active)
        given = [conditions(model, scenes[i], start, text) for i in active]
        made = model.decoder.generate(
            torch.cat([cross for cross, _ in given]),
            ahead + late,
            in_attention={layer: torch.cat([r[layer] for _, r in given])[:, :ahead] for layer in given[0][1]},
            prompt=torch.stack([codes[i][:, first : first + known] for i in active]) if known else None,
            guidance=options.guidance,
            guidance_rhythm=options.guidance_rhythm,
            temperature=options.temperature,
            top_k=options.top_k,
            greedy=options.greedy,
            generator=[generators[i] for i in active],
            on_step=_steps(on_part, start + prompt_s if start else 0, start + ahead / CODE_RATE, longest),
        )
        for i, new in zip(active, made, strict=True):
            place = codes[i][:, first + known : first + ahead]
            place.copy_(new[:, known : known + place.shape[1]])
    return [c.cpu().numpy().astype(np.int16) for c in codes]


@torch.inference_mode()
def conditions(
    model: VidMusician, scene: Scene, start_s: int, text: Text | None = None
) -> tuple[Tensor, dict[int, Tensor]]:
    """What the decoder is given for the window from a second on; behind the scene's end as behind a clip's in training.

    One scene at a time, so that the last bits don't depend on the others of a batch.

    Returns:
        Cross-attention's [1, N, D], and by layer the [1, 50 x window, D] of in-attention.
    """
    window_s, device = model.preset.train.crop_s, model.semantic.manager.weight.device
    # Made by torch for its alignment, on which the last bits of a product may depend.
    clip_global = torch.zeros(1, window_s, scene.clip_global.shape[1])
    curve = torch.zeros(1, CURVE_RATE * window_s)
    present = torch.zeros(1, window_s, dtype=torch.bool)
    valid = torch.zeros(1, CODE_RATE * window_s, dtype=torch.bool)
    here = min(window_s, scene.seconds - start_s)
    clip_global[0, :here] = torch.from_numpy(scene.clip_global[start_s : start_s + here]).float()
    piece = scene.curve[CURVE_RATE * start_s : CURVE_RATE * (start_s + here)]
    curve[0, : len(piece)] = torch.from_numpy(piece).float()
    present[:, :here] = True
    valid[:, : CODE_RATE * here] = True
    return model.conditions(
        clip_global.to(device),
        curve.to(device),
        valid.shape[1],
        present=present.to(device),
        valid=valid.to(device),
        text=text,
    )


def _counted(items: Iterable[Item], count: int, on_part: OnPart) -> Iterator[Item]:
    for number, item in enumerate(items, start=1):
        yield item
        on_part(number / FPS, count / FPS)


def _steps(on_part: OnPart, begin_s: float, end_s: float, whole_s: float) -> Callable[[int, int], None]:
    def on_step(done: int, steps: int) -> None:
        on_part(begin_s + (end_s - begin_s) * done / steps, whole_s)

    return on_step
