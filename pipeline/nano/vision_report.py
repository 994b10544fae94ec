"""What the nano vision tower can do on the half of the film that it has not seen, and on videos that have nothing to do
with the film, beside its random twin.

*Retrieval*: one picture a second; how well the pictures of the same shot, or those of the other shots of the same
scene, rank among all others by the cosine of their [CLS] tokens (mean average precision). In the second reading of
`shot` the query is mirrored, cut to 70 %, and darker. The teacher, EfficientNet-Lite0, is given beside.

*Cuts*: twelve made edits of 20 s, pieces of held-out shots in random order, and the film as it is. A threshold over
`patch_distance` is set so that one frame in 750 (30 s) that is no cut exceeds it; recall is the share of cuts over it.
`ratio` is the median distance at cuts over that threshold. Three ways to film the pieces: as they are; a camera that
shakes and wanders; flashes of light. Mean absolute difference of pixels is given beside.

*Other videos*: the same with 24 s of streets, a man in a car and the earth from afar, five pictures a second. A query
of theirs has the film's held-out pictures, too, to be mistaken for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from rich.table import Table

from pipeline import weights
from pipeline.config import VisionSettings
from pipeline.nano.footage import HEIGHT, SCENES_S, WIDTH, Footage, cut_out, footage, load_teacher, others
from pipeline.nano.geometry import VISION, VisionGeometry, from_header
from pipeline.vision import FPS, VisionEncoder, build_tower, load_vision

SETTINGS = VisionSettings(model="random:nano", precision="bf16", batch=32)
HANDLING = ("as filmed", "shaken", "flashes")
EDITS, EDIT_S, PIECE_S = 12, 20, (0.8, 2.4)
FALSE_ALARMS = 1 / 750  # of the frames that are no cuts
Video = tuple[np.ndarray, np.ndarray]  # [N, S, S, 3] uint8 at 25 fps; frames that begin a new shot
Describe = Callable[[np.ndarray], np.ndarray]  # [N, S, S, 3] uint8 -> [N, D], or a curve [N]


def held_out_tables(path: Path) -> tuple[Table, Table]:
    """Retrieval and cuts, for the weights in `path` and what they are measured against: the film, and other videos."""
    trained, random = load_file(path), load_vision(SETTINGS)
    describers: list[Describe] = [lambda p, e=e: tokens(e, p) for e in (trained, random)] + [_teacher_tokens]
    curves: list[Describe] = [lambda p, e=e: curve(e, p) for e in (trained, random)] + [_pixel_curve]
    test, strange = footage("test"), others()
    stills, few = every(test, FPS), every(strange, FPS // 5)
    found = [retrieval(describe, stills) for describe in describers]
    of_film = _table("held out: 301-489 s of the film", found, curves, {"the film": [whole(test)], **made_edits(test)})
    found = [retrieval_among(describe, few, stills) for describe in describers]
    return of_film, _table("other videos", found, curves, made_edits(strange))


def _table(title: str, found: list[dict[str, float]], curves: list[Describe], videos: dict[str, list[Video]]) -> Table:
    table = Table("measure", "trained", "random", "other", title=title)
    for name in found[0]:
        table.add_row(f"retrieval, {name} (mAP; other: teacher)", *(f"{f[name]:.3f}" for f in found))
    for name, cut in videos.items():
        scores = [cut_scores([(c(pictures), cuts) for pictures, cuts in cut]) for c in curves]
        table.add_row(f"cuts, {name} (recall; other: pixels)", *(f"{recall:.3f}" for recall, _ in scores))
        table.add_row(f"cuts, {name} (ratio; other: pixels)", *(f"{ratio:.2f}" for _, ratio in scores))
    return table


def load_file(path: Path) -> VisionEncoder:
    """The encoder of a weights file that isn't bundled yet, as `load_vision` makes it of a bundled one."""
    header = weights.header(path)
    tower = build_tower(from_header(VisionGeometry, header))
    weights.fill(tower, path)
    return VisionEncoder(
        tower,
        mean=OPENAI_DATASET_MEAN,
        std=OPENAI_DATASET_STD,
        settings=SETTINGS,
        id=path.stem,
        digest=weights.digest_of_file(path),
        licence=header["licence"],
    )


def tokens(encoder: VisionEncoder, pictures: np.ndarray) -> np.ndarray:
    """[CLS] tokens [N, D] float32, each picture shown for a second (an equal frame isn't encoded again)."""
    shown = (picture for picture in pictures for _ in range(FPS))
    return encoder.encode_frames(shown, neighbour=False).clip_global.astype(np.float32)


def curve(encoder: VisionEncoder, pictures: np.ndarray) -> np.ndarray:
    """[N] float32 `patch_distance` of pictures 1/25 s apart."""
    return encoder.encode_frames(pictures, neighbour=False).patch_distance.astype(np.float32)


def every(footage: Footage, step: int) -> Footage:
    """One of so many pictures, from the middle of the first so many on."""
    rows = np.arange(step // 2, len(footage.times), step)
    return Footage(footage.pictures[rows], footage.times[rows], footage.shots[rows])


def retrieval(describe: Describe, stills: Footage) -> dict[str, float]:
    """Mean average precision of each kind of query among held-out pictures, say one a second."""
    count, scenes = len(stills.times), np.searchsorted(SCENES_S, stills.times)
    plain, disturbed = _readings(describe, stills)
    itself = np.eye(count, dtype=bool)
    same_shot, same_scene = stills.shots[:, None] == stills.shots, scenes[:, None] == scenes
    return {
        "shot": mean_average_precision(plain, plain, same_shot & ~itself, ~itself),
        "shot, disturbed": mean_average_precision(disturbed, plain, same_shot & ~itself, ~itself),
        "scene": mean_average_precision(plain, plain, same_scene & ~same_shot, ~same_shot),
    }


def retrieval_among(describe: Describe, stills: Footage, beside: Footage) -> dict[str, float]:
    """Mean average precision of the same shot, where pictures of other videos are there to be mistaken for."""
    plain, disturbed = _readings(describe, stills)
    gallery = np.concatenate([plain, _readings(describe, beside)[0]])
    allowed = ~np.eye(len(plain), len(gallery), dtype=bool)
    wanted = np.zeros_like(allowed)
    wanted[:, : len(plain)] = stills.shots[:, None] == stills.shots
    return {
        "shot": mean_average_precision(plain, gallery, wanted & allowed, allowed),
        "shot, disturbed": mean_average_precision(disturbed, gallery, wanted & allowed, allowed),
    }


def _readings(describe: Describe, stills: Footage) -> tuple[np.ndarray, np.ndarray]:
    """[N, D] of pictures as they are, and mirrored, cut to 70 % and darker."""
    count = len(stills.times)
    small = _framed(stills.pictures[:, :, ::-1], np.tile(_centre(0.7), (count, 1)))
    return describe(_framed(stills.pictures, np.tile(_centre(1.0), (count, 1)))), describe((small * 0.7).astype("u1"))


def mean_average_precision(queries: np.ndarray, gallery: np.ndarray, wanted: np.ndarray, allowed: np.ndarray) -> float:
    """Mean over the queries that want anything.

    Args:
        queries, gallery: [Q, D], [G, D]; compared by cosine.
        wanted, allowed: [Q, G] bool; what isn't allowed is left out of the ranking.
    """
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, gallery)]
    precisions = []
    for likeness, hits, kept in zip(unit[0] @ unit[1].T, wanted, allowed, strict=True):
        ranked = hits[kept][np.argsort(-likeness[kept], kind="stable")]
        places = np.flatnonzero(ranked) + 1
        if len(places):
            precisions.append((np.arange(1, len(places) + 1) / places).mean())
    return float(np.mean(precisions))


def whole(test: Footage) -> Video:
    """The footage as it is."""
    return _framed(test.pictures, np.tile(_centre(1.0), (len(test.times), 1))), np.flatnonzero(np.diff(test.shots)) + 1


def made_edits(test: Footage) -> dict[str, list[Video]]:
    """Edits made of it in each handling."""
    return {f"edits {name}": [made_edit(test, name, seed) for seed in range(EDITS)] for name in HANDLING}


def made_edit(test: Footage, handling: str, seed: int) -> Video:
    """Pieces of different shots one after another, and where they begin; equal seeds give equal pieces."""
    rng = np.random.default_rng(seed)
    rows, cuts, last = np.empty(0, int), [], -1
    while len(rows) < EDIT_S * FPS:
        length = int(FPS * rng.uniform(*PIECE_S))
        begin = int(rng.integers(0, len(test.times) - length))
        shot = test.shots[begin]
        if shot != last and shot == test.shots[begin + length - 1]:
            cuts.append(len(rows))
            rows, last = np.append(rows, np.arange(begin, begin + length)), shot
    boxes = np.tile(_centre(0.8 if handling == "shaken" else 1.0), (len(rows), 1))
    if handling == "shaken":
        t = np.arange(len(rows))[:, None] / FPS
        sway = sum(rng.uniform(0.3, 1.0, 2) / 3 * np.sin(2 * np.pi * (f * t + rng.random(2))) for f in (0.4, 1.1, 2.7))
        boxes[:, :2] += 0.08 * sway + rng.normal(0, 0.004, (len(rows), 2))
    pictures = _framed(test.pictures[rows], boxes)
    if handling == "flashes":
        light = np.ones(len(rows))
        for at in rng.choice(len(rows) - 4, EDIT_S, replace=False):
            light[at : at + 4] += np.array([0.6, 0.4, 0.2, 0.1])
        pictures = (pictures * light[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return pictures, np.array(cuts[1:])


def cut_scores(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """(recall, ratio) of curves [N] with their cuts, under one threshold; a cut may show a frame early or late."""
    peaks, others = [], []
    for distance, cuts in curves:
        around = cuts[:, None] + np.array([-1, 0, 1])
        around = around.clip(1, len(distance) - 1)
        peaks.append(distance[around].max(1))
        elsewhere = np.ones(len(distance), bool)
        elsewhere[around] = elsewhere[0] = False
        others.append(distance[elsewhere])
    threshold = np.quantile(np.concatenate(others), 1 - FALSE_ALARMS)
    at_cuts = np.concatenate(peaks)
    return float((at_cuts > threshold).mean()), float(np.median(at_cuts) / threshold)


def _centre(share: float) -> np.ndarray:
    """[4] float32: the square in the middle, of `share` of the height."""
    width = share * HEIGHT / WIDTH
    return np.array([(1 - width) / 2, (1 - share) / 2, width, share], np.float32)


def _framed(pictures: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[N, S, S, 3] uint8 at the tower's size."""
    size, parts = VISION["nano"].image_size, []
    for i in range(0, len(pictures), 256):
        crops = cut_out(pictures[i : i + 256], boxes[i : i + 256], size)
        parts.append((crops * 255).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _teacher_tokens(pictures: np.ndarray) -> np.ndarray:
    """[N, 1280] float32, the teacher's pooled features."""
    import torch
    from torch.nn.functional import interpolate

    teacher, parts = load_teacher(), []
    for i in range(0, len(pictures), 16):
        pixels = torch.from_numpy(pictures[i : i + 16]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            parts.append(teacher.forward_features(interpolate(pixels, size=224, mode="bilinear")).mean((2, 3)).numpy())
    return np.concatenate(parts)


def _pixel_curve(pictures: np.ndarray) -> np.ndarray:
    """[N] float32: mean absolute difference of each picture to the one before; the first has 1."""
    moved = [np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(pictures)]
    return np.array([255.0, *moved], np.float32) / 255
