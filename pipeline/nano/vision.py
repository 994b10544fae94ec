"""Trains the nano vision tower: a small CLIP image tower whose tokens say what is where, and its curves when it is cut.

    python -m pipeline.nano.vision --minutes 30 --out pipeline/nano/vision.safetensors

A first run decodes its material and asks the teacher (`footage`; two minutes of CPU time). Training goes on from the
checkpoint beside `--out` if there is one, stops when the minutes are used up, writes the weights and prints the
held-out table. `--evaluate` prints the table of weights that are there. The weights file holds the averaged weights
as float16 and, in its header, the tower's geometry and licence, as `pipeline.vision.load_vision` wants them.

**What is learnt.** CLIP's own way, captions, needs millions of pairs, and masked or contrastive learning alone needs
far more footage than ten minutes of one film. So the tower is taught by a classifier that has seen ImageNet and whose
weights may be passed on: EfficientNet-Lite0. Its last map of a 224-pixel picture has 7 x 7 cells, one for each patch
of the tower's 112-pixel picture, and it is as wide as the tower once reduced to 192 principal components. Hence no
heads: each patch token is turned towards its cell, [CLS] towards the cells' mean, by cosine. The components are
centred, which takes out what all pictures share, so that cosines between tokens tell pictures apart.

A classifier's map jumps where an edge crosses a cell, and a curve is read with one threshold. So two more terms, both
with a sigmoid per pair rather than a softmax over them (SigLIP, arXiv 2303.15343), as it fits one threshold for all:

- mean cosine over the patches, the measure behind the rhythm curve: pictures up to half a second apart within a shot,
  framed and lit a little differently, are to be close; those of other shots far, the next shot among them.
- cosine of [CLS]: any two pictures of a shot close; those of other shots far, unless within 30 s, where the scene may
  be the same.

Crops, mirroring, colour and mixing of pictures stretch the five minutes of footage.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, softplus

from pipeline.nano.footage import Footage, Targets, cut_out, footage, targets
from pipeline.nano.geometry import VISION
from pipeline.nano.vision_report import held_out_table
from pipeline.storage import Store
from pipeline.vision import build_tower

LICENCE = "Apache-2.0; learnt from CC BY 3.0 footage (c) 2008 Blender Foundation, www.bigbuckbunny.org"
GEOMETRY = VISION["nano"]
GROUPS = 8  # per batch; each is four crops, two of a shot and two of the next, and a neighbour of each crop
NEAR = 4  # pictures: how far a neighbour is at most, 0.48 s
SCENE_S = 30.0
RATE_MAX, RATE_MIN, WARM_UP, DECAY = 1e-3, 1e-5, 100, 0.05
AVERAGE = 0.998
"""Decay of the running average of the weights, per step; shorter at the start."""


class Student(torch.nn.Module):
    """The tower, and the slope and threshold of the two sigmoids ([CLS], patches)."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = build_tower(GEOMETRY)
        self.slope = torch.nn.Parameter(torch.full((2,), math.log(10.0)))
        self.bias = torch.nn.Parameter(torch.full((2,), -5.0))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] in 0..1 -> [B, 1 + P, D] float32 tokens of unit length."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        with torch.autocast("cpu", torch.bfloat16):
            cls, patches = self.tower((pixels - mean) / std)
        return normalize(torch.cat([cls[:, None], patches], 1).float(), dim=-1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="training time in all, over all runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="don't train; print the table of the weights in --out")
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        material = footage("train")
        train(options.minutes, options.out, options.seed, material, targets(material, console), console)
    console.print(held_out_table(options.out))


def train(minutes: float, out: Path, seed: int, material: Footage, taught: Targets, console: Console) -> None:
    """AdamW under a cosine over the minutes; writes a checkpoint and the averaged weights every two minutes."""
    torch.manual_seed(seed)
    student = Student().train()
    optimiser = torch.optim.AdamW(_groups(student), lr=RATE_MAX, betas=(0.9, 0.98))
    average = {k: v.clone() for k, v in student.tower.state_dict().items()}
    step, spent, losses = 0, 0.0, deque[np.ndarray](maxlen=100)
    checkpoint = out.with_suffix(".checkpoint.pt")
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        average, step, spent = state["average"], state["step"], state["spent"]
        console.print(f"going on from step {step}, {spent / 60:.1f} minutes in")

    def save() -> None:
        state = {"student": student.state_dict(), "optimiser": optimiser.state_dict(), "average": average}
        with Store(out.parent).write(checkpoint.name) as path:
            torch.save({**state, "step": step, "spent": spent}, path)
        write_weights(average, out)

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=minutes * 60, completed=int(spent))
        began, saved = time.monotonic() - spent, time.monotonic()
        for batch in batches(seed, step, material, taught):
            share = spent / (minutes * 60)
            if share >= 1:
                break
            rate = RATE_MIN + (RATE_MAX - RATE_MIN) * (1 + math.cos(math.pi * share)) / 2
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
            parts = loss_terms(student, *batch)
            optimiser.zero_grad()
            parts.sum().backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            step += 1
            decay = min(AVERAGE, (step + 1) / (step + 10))
            with torch.no_grad():
                for key, value in student.tower.state_dict().items():
                    average[key].lerp_(value, 1 - decay)
            losses.append(parts.detach().numpy())
            spent = time.monotonic() - began
            means = "  ".join(f"{v:.3f}" for v in np.mean(losses, axis=0))
            progress.update(bar, completed=spent, description=f"step {step}  {means}")
            if time.monotonic() - saved > 120:
                saved = time.monotonic()
                save()
                progress.print(
                    f"step {step}, {spent / 60:.1f} min, [CLS], patches, same shot, no cut: {means}, rate {rate:.1e}"
                )
    save()
    console.print(f"{step} steps in {spent / 60:.1f} minutes -> {out} ({out.stat().st_size / 1e6:.1f} MB)")


def loss_terms(student: Student, pixels: Tensor, cells: Tensor, shots: Tensor, times: Tensor) -> Tensor:
    """The four terms of the loss, weighted: [CLS] and patches against the teacher, same shot, no cut.

    Args:
        pixels: [2 B, 3, S, S] in 0..1, B crops and a neighbour of each.
        cells: [B, P, D], the teacher's of the crops.
        shots, times: [B], of the crops; seconds.
    """
    tokens, count = student(pixels), len(cells)
    patches = 1 - cosine_similarity(tokens[:count, 1:], cells, dim=-1).mean()
    cls = 1 - cosine_similarity(tokens[:count, 0], cells.mean(1), dim=-1).mean()

    slope, bias = student.slope.exp(), student.bias
    alike = shots[:, None] == shots
    far = ~alike & ((times[:, None] - times).abs() > SCENE_S)
    views = tokens[:, 0].unflatten(0, (2, count))
    shot = _pairs(slope[0] * (views[0] @ views[1].T) + bias[0], alike, far)
    flat = tokens[:, 1:].flatten(1).unflatten(0, (2, count))
    near = torch.eye(count, dtype=torch.bool)
    cut = _pairs(slope[1] * (flat[0] @ flat[1].T) / cells.shape[1] + bias[1], near, ~alike)
    return torch.stack([cls, patches, 0.25 * shot, 0.5 * cut])


def _pairs(logits: Tensor, close: Tensor, far: Tensor) -> Tensor:
    """Sigmoid loss of pairs [B, B]; the close ones weigh as much as the far ones."""
    return softplus(-logits[close]).mean() + softplus(logits[far]).mean()


def batches(
    seed: int, step: int, material: Footage, taught: Targets
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Endless arguments of `loss_terms`; batch number n depends on the seed and n alone. Made one ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_batch, np.random.default_rng([seed, step]), material, taught)
        while True:
            step += 1
            following = pool.submit(_batch, np.random.default_rng([seed, step]), material, taught)
            yield coming.result()
            coming = following


def _batch(rng: np.random.Generator, material: Footage, taught: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shots = material.shots[taught.rows]
    numbers, chosen = np.unique(shots), []
    for first in rng.choice(shots, GROUPS, replace=False):
        following = numbers[(np.searchsorted(numbers, first) + 1) % len(numbers)]
        chosen += [rng.choice(np.flatnonzero(shots == shot), 2) for shot in (first, following)]
    picked = np.concatenate(chosen)
    rows, boxes = taught.rows[picked], taught.boxes[picked]

    beside = np.clip(rows + rng.integers(-NEAR, NEAR + 1, len(rows)), 0, len(material.shots) - 1)
    beside = np.where(material.shots[beside] == material.shots[rows], beside, rows)
    shaken = boxes.copy()
    shaken[:, :2] += rng.uniform(-0.06, 0.06, (len(rows), 2)) * boxes[:, 2:]
    shaken[:, 2:] *= rng.uniform(0.92, 1.08, (len(rows), 1))
    pictures = material.pictures[np.concatenate([rows, beside])]
    pixels = cut_out(pictures, np.concatenate([boxes, shaken]), GEOMETRY.image_size)

    mirrored = torch.from_numpy(rng.random(len(rows)) < 0.5)[:, None, None, None]
    pixels = torch.where(mirrored.repeat(2, 1, 1, 1), pixels.flip(3), pixels)
    cells = torch.from_numpy(taught.cells[picked]).float()
    cells = torch.where(mirrored, cells.flip(2), cells)

    _mix(rng, pixels, cells)
    return (
        _coloured(rng, pixels),
        cells.flatten(1, 2),
        torch.from_numpy(material.shots[rows]),
        torch.from_numpy(material.times[rows]),
    )


def _mix(rng: np.random.Generator, pixels: Tensor, cells: Tensor) -> None:
    """Puts a block of each other group's pictures into a quarter of the groups, in place (CutMix, arXiv 1905.04899).

    Pictures of one group are pasted over by those of one other group, shot by shot, so that what is of the same shot
    stays alike and what isn't stays apart.
    """
    side, patch, size = cells.shape[1], GEOMETRY.patch_size, 4
    views = pixels.unflatten(0, (2, GROUPS, size))
    grouped = cells.unflatten(0, (GROUPS, size))
    into = rng.permutation(GROUPS)[: GROUPS // 4]
    others = [group for group in range(GROUPS) if group not in into]
    for group, other in zip(into, rng.choice(others, len(into), replace=False), strict=True):
        height, width = rng.integers(2, 5, 2)
        top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        rows, columns = slice(top, top + height), slice(left, left + width)
        pixel_rows, pixel_columns = (slice(s.start * patch, s.stop * patch) for s in (rows, columns))
        views[:, group, ..., pixel_rows, pixel_columns] = views[:, other, ..., pixel_rows, pixel_columns]
        grouped[group, :, rows, columns] = grouped[other, :, rows, columns]


def _coloured(rng: np.random.Generator, pixels: Tensor) -> Tensor:
    """Saturation, contrast, brightness and tint changed at random; a crop's neighbour nearly as the crop itself."""

    def factors(spread: float, flicker: float, channels: int = 1) -> Tensor:
        each = rng.uniform(-spread, spread, (len(pixels) // 2, channels))
        both = np.concatenate([each, each + rng.uniform(-flicker, flicker, each.shape)])
        return torch.from_numpy(np.exp(both)).float()[..., None, None]

    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * factors(0.5, 0.05)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * factors(0.3, 0.1)
    return (pixels * factors(0.3, 0.2) * factors(0.1, 0.02, 3)).clamp(0, 1)


def _groups(student: Student) -> list[dict[str, object]]:
    """Matrices decay, everything else (gains, biases, positions, the sigmoids') doesn't."""
    matrices = [p for n, p in student.named_parameters() if p.ndim > 1 and "positional" not in n]
    others = [p for n, p in student.named_parameters() if p.ndim <= 1 or "positional" in n]
    return [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """The tower's weights as float16, with geometry and licence in the header."""
    header = {"geometry": json.dumps(asdict(GEOMETRY), sort_keys=True), "licence": LICENCE}
    with Store(path.parent).write(path.name) as temporary:
        save_file({k: v.half().contiguous() for k, v in state.items()}, str(temporary), header)


if __name__ == "__main__":
    main()
