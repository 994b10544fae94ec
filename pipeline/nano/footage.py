"""Moving pictures the nano vision tower learns from and is measured on, and what its teachers see in them.

Decoded and looked at once, into the media cache (about 0.7 GB); later runs only map the files into memory.

The film is split by time, between two of its scenes: the first half (the meadow, and the hare making traps) is trained
on, the chase and the finale are held out. The trailer is made of excerpts of both and never used. The credits are left
out. The split also serves whatever else has to keep apart footage that the tower knows: see `HELD_OUT_S`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipeline.config import ShotSettings
from pipeline.media import frames_at
from pipeline.nano.packages import cache_folder, fetch, film
from pipeline.shots import find_cuts
from pipeline.storage import Store
from pipeline.vision import FPS

HEIGHT = 128  # of the cached pictures, which keep the film's 16:9
WIDTH = 227
TRAIN_S = (2, 299)  # of the film
HELD_OUT_S = (301, 489)
CITY_S = (0, 7)
OTHERS = (("streets", "bikes.mp4", 10), ("streets", "carphone_pristine.mp4", 4), ("earth", "world.mp4", 10))
"""Videos that have nothing to do with the film: package, file, seconds taken. For measuring only, as nobody says whose
they are."""
TRAIN_STEP = 3  # 25ths of a second between two pictures of the training footage
SCENES_S = (301.0, 305.208, 339.75, 381.167, 417.333, 443.208, 462.5, 489.0)
"""Held-out scenes, told apart by eye: the field, the path, the log, the branch, the flight, the spikes, the finale."""

TARGET = 192  # principal components kept of the teacher's 1280 channels: the width of the tower
HALF = TARGET // 2  # numbers of [CLS] that are the teacher's; as many are the palette's
PALETTE_BINS = (16, 4, 2)  # hue, saturation, brightness: little of the last, as light changes within a scene
PALETTE_BANDS = 3  # above one another
PALETTE_SIZE = 24  # pixels a side; on the held-out half 28 told scenes apart as well as 112
CELLS = 7  # rows and columns of the teacher's map of a 224-pixel picture
SHOTS = ShotSettings(detector="adaptive", threshold=3.0)
"""Of the two settings measured on this film (`pipeline.shots`) the one without false cuts."""


@dataclass(frozen=True)
class Footage:
    """Pictures in order.

    Attributes:
        pictures: [N, HEIGHT, WIDTH, 3] uint8, mapped from the cache.
        times: [N] float64, seconds in the film; below zero for other footage.
        shots: [N] int, the number of each picture's shot.
    """

    pictures: np.ndarray
    times: np.ndarray
    shots: np.ndarray


@dataclass(frozen=True)
class Targets:
    """What the teacher sees in one crop of every second training picture, and how palettes of such crops vary.

    Attributes:
        rows: [M] int, number of the picture.
        boxes: [M, 4] float32, the crop: left, top, width, height as shares of the picture.
        cells: [M, CELLS, CELLS, TARGET] float16, centred principal components of the teacher's last map.
        palette_mean: [C] float32, of `palette` over the crops.
        palette_basis: [C, HALF] float32, its leading principal components.
    """

    rows: np.ndarray
    boxes: np.ndarray
    cells: np.ndarray
    palette_mean: np.ndarray
    palette_basis: np.ndarray


def footage(split: str) -> Footage:
    """The pictures of `train` (8 1/3 a second: film and city) or `test` (25 a second: film)."""
    if split == "train":
        parts = [("film", film(), TRAIN_S, TRAIN_STEP), ("city", fetch("city") / "cityCC0.mpg", CITY_S, TRAIN_STEP)]
    else:
        parts = [("film", film(), HELD_OUT_S, 1)]
    pictures = [_decoded(f"{split}-{name}", path, span, step) for name, path, span, step in parts]
    times, shots = [], []
    for (name, _, (begin, _), step), part in zip(parts, pictures, strict=True):
        at = begin + np.arange(len(part)) * step / FPS
        times.append(at if name == "film" else at - 1000)
        shots.append(np.searchsorted(_film_cuts(), at, side="right") if name == "film" else np.full(len(part), -1))
    joined = pictures[0] if len(pictures) == 1 else np.concatenate(pictures)
    return Footage(joined, np.concatenate(times), np.concatenate(shots))


def others() -> Footage:
    """`OTHERS` one after another, 25 pictures a second, their shots numbered on from 0."""
    pictures, times, shots = [], [], [np.array([-1])]
    for number, (package, name, seconds) in enumerate(OTHERS, start=1):
        path = fetch(package) / name
        pictures.append(_decoded(f"other-{path.stem}", path, (0, seconds), 1))
        at = np.arange(len(pictures[-1])) / FPS
        times.append(at - 1000 * number)
        shots.append(shots[-1][-1] + 1 + np.searchsorted(find_cuts(path, SHOTS), at, side="right"))
    return Footage(np.concatenate(pictures), np.concatenate(times), np.concatenate(shots[1:]))


def targets(train: Footage, console: Console) -> Targets:
    """The teacher's view of the training footage.

    Teacher: EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946, as released for TensorFlow Lite; Apache-2.0), trained on
    ImageNet's labels. Its map of a 224-pixel picture has 7 x 7 cells, as many as the tower has patches.
    """
    store, name = _store(), "targets.npz"
    if not store.exists(name):
        import torch

        rows = np.arange(0, len(train.pictures), 2)
        boxes = random_boxes(np.random.default_rng(0), len(rows))
        teacher, maps = load_teacher(), []
        for i in range(0, len(rows), 16):
            crops = cut_out(train.pictures[rows[i : i + 16]], boxes[i : i + 16], 224)
            with torch.inference_mode():
                maps.append(teacher.forward_features(crops * 2 - 1).permute(0, 2, 3, 1).half().numpy())
            if i % 320 == 0:
                console.print(f"teacher: {i} of {len(rows)}")
        seen = np.concatenate(maps)
        flat = seen.reshape(-1, seen.shape[-1]).astype(np.float32)
        mean, basis = _components(flat, TARGET)
        cells = ((flat - mean) @ basis).reshape(len(rows), CELLS, CELLS, TARGET)
        with store.write(name) as path, path.open("wb") as file:
            np.savez(file, rows=rows, boxes=boxes, cells=cells.astype(np.float16))
    with np.load(store.path(name)) as saved:
        rows, boxes, cells = saved["rows"], saved["boxes"], saved["cells"]
    starts = range(0, len(rows), 64)
    crops = (cut_out(train.pictures[rows[i : i + 64]], boxes[i : i + 64], CELLS * 16) for i in starts)
    return Targets(rows, boxes, cells, *_components(np.concatenate([palette(c).numpy() for c in crops]), HALF))


def palette(pixels: Any) -> Any:
    """How often each colour occurs in the upper, middle and lower third of pictures.

    Hue, saturation and brightness as in HSV, but for the hue, which is the angle around the grey axis. A pixel counts
    for the two nearest bins along each axis. Square roots make cosines Bhattacharyya's coefficients.

    Args:
        pixels: [B, 3, S, S] float32 tensor in 0..1.

    Returns:
        [B, C] float32 tensor, C = PALETTE_BANDS times the product of PALETTE_BINS.
    """
    import torch
    from torch.nn.functional import interpolate

    red, green, blue = interpolate(pixels, size=PALETTE_SIZE, mode="area").unbind(1)
    bright = torch.maximum(torch.maximum(red, green), blue)
    dark = torch.minimum(torch.minimum(red, green), blue)
    hue = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * torch.pi) % 1
    weights = []
    for value, bins in zip((hue, 1 - dark / bright.clamp(min=1e-3), bright), PALETTE_BINS, strict=True):
        at = value[..., None] * bins - 0.5
        if value is hue:
            gap = (at - torch.arange(bins)).abs()
            gap = torch.minimum(gap, bins - gap)
        else:
            gap = (at.clamp(0, bins - 1) - torch.arange(bins)).abs()
        weights.append((1 - gap).clamp(min=0).unflatten(1, (PALETTE_BANDS, -1)).flatten(2, 3))
    counts = torch.einsum("bknh,bkns,bknv->bkhsv", *weights) / weights[0].shape[2]
    return counts.flatten(1).sqrt()


def load_teacher() -> Any:
    """EfficientNet-Lite0 in timm's class; takes [B, 3, 224, 224] in -1..1. Its weights are read without unpickling."""
    import timm
    import torch

    weights = torch.load(fetch("efficientnet") / "efficientnet-lite0-57934424.pth", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    own = model.state_dict()
    # The package names its layers otherwise than timm does, in the same order.
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    return model.eval()


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 4] float32 crops of a picture, nearly square: left, top, width, height as shares of it."""
    height = rng.uniform(0.5, 1.0, count)
    width = np.minimum(height * rng.uniform(0.85, 1.3, count) * HEIGHT / WIDTH, 1)
    return np.stack([rng.random(count) * (1 - width), rng.random(count) * (1 - height), width, height], 1).astype("f4")


def cut_out(pictures: np.ndarray, boxes: np.ndarray, size: int) -> Any:
    """Crops of [B, H, W, 3] uint8 pictures as a [B, 3, size, size] float32 tensor in 0..1 (bilinear)."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    left, top, width, height = torch.from_numpy(boxes).unbind(1)
    zero = torch.zeros_like(left)
    rows = torch.stack([width, zero, 2 * left + width - 1]), torch.stack([zero, height, 2 * top + height - 1])
    grid = affine_grid(torch.stack(rows).permute(2, 0, 1), [len(boxes), 3, size, size], align_corners=False)
    planes = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255
    return grid_sample(planes, grid, align_corners=False, padding_mode="border")


def _components(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [C] and leading principal components [C, count], float32, of rows [N, C]."""
    basis = np.linalg.eigh(np.cov(rows, rowvar=False))[1][:, : -count - 1 : -1]
    return rows.mean(0), basis.astype(np.float32)


def wide(picture: np.ndarray) -> np.ndarray:
    """What a 16:9 frame shows of the middle of a picture [H, W, 3]."""
    height, width = picture.shape[:2]
    rows, columns = min(height, round(width * 9 / 16)), min(width, round(height * 16 / 9))
    top, left = (height - rows) // 2, (width - columns) // 2
    return picture[top : top + rows, left : left + columns]


def _store() -> Store:
    return Store(cache_folder() / "vision")


def _film_cuts() -> np.ndarray:
    """[C] float64: seconds at which the film's shots begin, but for the first."""
    store, name = _store(), "cuts.npy"
    if not store.exists(name):
        with store.write(name) as path, path.open("wb") as file:
            np.save(file, np.array(find_cuts(film(), SHOTS)))
    return np.load(store.path(name))


def _decoded(name: str, path: Path, span: tuple[int, int], step: int) -> np.ndarray:
    """Pictures of a file, `step` 25ths of a second apart, [N, HEIGHT, WIDTH, 3] uint8, from the cache."""
    from PIL import Image

    store, file_name = _store(), f"{name}.npy"
    if not store.exists(file_name):
        count = (span[1] - span[0]) * FPS // step
        times = (span[0] + Fraction(i * step, FPS) for i in range(count))
        pictures = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
        for i, picture in enumerate(frames_at(path, times)):
            small = Image.fromarray(wide(picture)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, reducing_gap=2.0)
            pictures[i] = np.asarray(small)
        with store.write(file_name) as target, target.open("wb") as file:
            np.save(file, pictures)
    return np.load(store.path(file_name), mmap_mode="r")
