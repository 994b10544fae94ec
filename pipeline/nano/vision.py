"""Trains the nano vision tower: a small CLIP image tower whose tokens say what is where, and its curves when it is cut.

    python -m pipeline.nano.vision --minutes 30 --out pipeline/nano/vision.safetensors

A first run decodes its material and asks the teacher (`footage`; two minutes of CPU time). Training goes on from the
checkpoint beside `--out` if there is one, stops when the minutes are used up, writes the weights and prints the
held-out tables. `--evaluate` prints those of weights that are there. The weights file holds the averaged weights
as float16 and, in its header, the tower's geometry and licence, as `pipeline.vision.load_vision` wants them.

**What is learnt.** CLIP's own way, captions, needs millions of pairs, and masked or contrastive learning alone needs
far more footage than ten minutes of one film. So the tower is taught by a classifier that has seen ImageNet and whose
weights may be passed on: EfficientNet-Lite0. Its last map of a 224-pixel picture has 7 x 7 cells, one for each patch
of the tower's 112-pixel picture, and it is as wide as the tower once reduced to 192 principal components. Hence no
heads: each patch token is turned towards its cell by cosine. The components are centred, which takes out what all
pictures share, so that cosines between tokens tell pictures apart.

What a scene's shots have in common is light and ground, hardly ever an object: a shot and its counter-shot show others.
So [CLS] is taught by two, of equal weight: half of its numbers follow the leading components of the cells' mean, the
other half those of the picture's palette (`footage.palette`: how often which hue and saturation occurs above, in the
middle and below). The palette is taken before colours are changed at random.

A classifier's map jumps where an edge crosses a cell, and a curve is read with one threshold. So two more terms, both
with a sigmoid per pair rather than a softmax over them (SigLIP, arXiv 2303.15343), as it fits one threshold for all:

- mean cosine over the patches, the measure behind the rhythm curve: pictures up to half a second apart within a shot,
  framed and lit a little differently, are to be close; those of other shots far, the next shot among them.
- cosine of [CLS]: any two pictures of a shot close; those of other shots far, unless within 30 s, where the scene may
  be the same.

Crops, mirroring, light and mixing of pictures stretch the five minutes of footage; hue and saturation change little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, softplus

from pipeline.nano import training
from pipeline.nano.card import show
from pipeline.nano.footage import HALF, Footage, Targets, cut_out, footage, palette, targets
from pipeline.nano.geometry import VISION
from pipeline.nano.vision_report import held_out_tables
from pipeline.storage import Store
from pipeline.vision import build_tower

LICENCE = "Apache-2.0; learnt from CC BY 3.0 footage (c) 2008 Blender Foundation, www.bigbuckbunny.org"
GEOMETRY = VISION["nano"]
GROUPS = 8  # per batch; each is four crops, two of a shot and two of the next, and a neighbour of each crop
NEAR = 4  # pictures: how far a neighbour is at most, 0.48 s
SCENE_S = 30.0
RATES, WARM_UP, DECAY = (1e-3, 1e-5), 100, 0.05
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # arguments of `loss_terms`
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
    options = training.options(__doc__ or "", __file__, minutes=30.0).parse_args()
    console = Console()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        material = footage("train")
        train(options.minutes, options.out, options.seed, material, targets(material, console), console)
    show(console, Path(__file__), options.out, *held_out_tables(options.out))


def train(minutes: float, out: Path, seed: int, material: Footage, taught: Targets, console: Console) -> None:
    """AdamW under a cosine over the minutes, on the sum of `loss_terms`."""
    torch.manual_seed(seed)
    student = Student().train()
    optimiser = torch.optim.AdamW(_groups(student), lr=RATES[0], betas=(0.9, 0.98))

    def gradients(batch: Batch, *_: float) -> np.ndarray:
        optimiser.zero_grad()
        terms = loss_terms(student, *batch)
        terms.sum().backward()
        return terms.detach().numpy()

    training.fit(
        out,
        student,
        optimiser,
        training.Schedule(minutes, RATES, WARM_UP, clip=1.0),
        console,
        batches=lambda step: batches(seed, step, material, taught),
        gradients=gradients,
        write=lambda state: write_weights(state, out),
        losses=("[CLS]", "patches", "same shot", "no cut"),
        average=training.Average(student, AVERAGE),
    )


def loss_terms(
    student: Student, pixels: Tensor, cells: Tensor, palettes: Tensor, shots: Tensor, times: Tensor
) -> Tensor:
    """The four terms of the loss, weighted: [CLS] against teacher and palette, patches against the teacher, same
    shot, no cut.

    Args:
        pixels: [2 B, 3, S, S] in 0..1, B crops and a neighbour of each.
        cells: [B, P, D], the teacher's of the crops.
        palettes: [2 B, D / 2], principal components of the palettes.
        shots, times: [B], of the crops; seconds.
    """
    tokens, count = student(pixels), len(cells)
    patches = 1 - cosine_similarity(tokens[:count, 1:], cells, dim=-1).mean()
    seen = normalize(cells.mean(1)[:, :HALF], dim=-1).repeat(2, 1)
    cls = 1 - cosine_similarity(tokens[:, 0], torch.cat([seen, normalize(palettes, dim=-1)], 1), dim=-1).mean()

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


def batches(seed: int, step: int, material: Footage, taught: Targets) -> Iterator[Batch]:
    """Endless arguments of `loss_terms`; batch number n depends on the seed and n alone. Made one ahead."""
    return training.ahead(lambda number: _batch(np.random.default_rng([seed, number]), material, taught), step)


def _batch(rng: np.random.Generator, material: Footage, taught: Targets) -> Batch:
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
    palettes = (palette(pixels) - torch.from_numpy(taught.palette_mean)) @ torch.from_numpy(taught.palette_basis)
    return (
        _coloured(rng, pixels),
        cells.flatten(1, 2),
        palettes,
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
    """Brightness and contrast changed at random, saturation and tint, by which scenes are known, only a little.

    A crop's neighbour is changed nearly as the crop itself.
    """

    def factors(spread: float, flicker: float, channels: int = 1) -> Tensor:
        each = rng.uniform(-spread, spread, (len(pixels) // 2, channels))
        both = np.concatenate([each, each + rng.uniform(-flicker, flicker, each.shape)])
        return torch.from_numpy(np.exp(both)).float()[..., None, None]

    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * factors(0.15, 0.05)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * factors(0.3, 0.1)
    return (pixels * factors(0.3, 0.2) * factors(0.03, 0.02, 3)).clamp(0, 1)


def _groups(student: Student) -> list[dict[str, object]]:
    """Matrices decay, everything else (gains, biases, positions, the sigmoids') doesn't."""
    matrices = [p for n, p in student.named_parameters() if p.ndim > 1 and "positional" not in n]
    others = [p for n, p in student.named_parameters() if p.ndim <= 1 or "positional" in n]
    return [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]


def write_weights(student: dict[str, Tensor], path: Path) -> None:
    """The tower's weights as float16, with geometry and licence in the header."""
    header = {"geometry": json.dumps(asdict(GEOMETRY), sort_keys=True), "licence": LICENCE}
    prefix = "tower."
    tower = {k.removeprefix(prefix): v.half().contiguous() for k, v in student.items() if k.startswith(prefix)}
    with Store(path.parent).write(path.name) as temporary:
        save_file(tower, str(temporary), header)


if __name__ == "__main__":
    main()
