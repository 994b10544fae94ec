"""Fits the model of changes of track: how the sound differs inside a piece of music, and where two meet.

    python -m pipeline.nano.tracks

Renders tracks of the training half of the nano family's scores (`mixtures`; 600 of 30 to 75 s, about a quarter of an
hour, kept in the media cache), joins them to compilations whose joins are known, fits the likelihood ratios of
`pipeline.music.tracks` to differences inside and between tracks, and trains the network on what they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track as shown
from safetensors.numpy import save_file
from torch import nn

from pipeline.config import MusicSettings
from pipeline.music.curves import COLOUR_HZ, Curves
from pipeline.music.meters import Onsets
from pipeline.music.tracks import GROUPS, LENGTHS_S, Ratio, colours, evidence, sides
from pipeline.nano.mixtures import JOINS, RATE, TRACKS, Compilation, joined, training_track
from pipeline.storage import Store

LICENCE = "Apache-2.0"
COMPILATIONS = 160
CUT_FADE_GAP = (0.45, 0.45, 0.1)  # how often; gaps are found without a model
NEAR_S, APART_S = 0.5, 3.0  # a moment this near is a join; one between the two is neither
PAIRS = 8000  # of stretches of different tracks
SHRINK = 0.1  # how far covariances are drawn to their diagonals
WIDTH, DROPOUT, NOISE = 64, 0.3, 0.1
EPOCHS, BATCH, RATE_MOST, DECAY = 30, 256, 2e-3, 0.1


@dataclass(frozen=True)
class Heard:
    """What is heard of a compilation, as `colours` has it, and its joins, seconds."""

    rows: np.ndarray
    heard: np.ndarray
    joins: tuple[tuple[float, float], ...]

    @property
    def times_s(self) -> np.ndarray:
        """When each row begins."""
        return np.arange(len(self.rows)) / COLOUR_HZ

    def distance_s(self) -> np.ndarray:
        """How far each row's beginning lies from the nearest join, [m]."""
        return np.min([np.maximum(np.maximum(a - self.times_s, self.times_s - b), 0) for a, b in self.joins], axis=0)


def main() -> None:
    """Writes `tracks.safetensors` beside this file."""
    made = [listen(_compilation(number)) for number in shown(range(COMPILATIONS), "compilations")]
    ratios = fit_ratios(made, np.random.default_rng(0))
    arrays = {f"form.{i}": ratio.form for i, ratio in enumerate(ratios)}
    arrays["offsets"] = np.array([ratio.offset for ratio in ratios])
    arrays |= fit_network(*examples(made, ratios))
    path = Path(__file__).with_suffix(".safetensors")
    with Store(path.parent).write(path.name) as temporary:
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()}, temporary, {"licence": LICENCE})


def _compilation(number: int) -> Compilation:
    """Six random tracks, joined in random ways."""
    rng = np.random.default_rng([5, number])
    chosen = rng.choice(TRACKS, 6, replace=False).tolist()
    return joined(map(training_track, chosen), rng.choice(JOINS, 5, p=CUT_FADE_GAP).tolist(), rng)


def listen(made: Compilation) -> Heard:
    """The colours of a compilation, as the pipeline measures them."""
    meter, n = Onsets(RATE, MusicSettings()), -(-len(made.audio) // RATE)
    for block in np.array_split(made.audio, n):
        meter.feed(block)
    envelope = meter.finish()
    timbre, chroma = meter.colours(n)
    z = np.zeros(n, np.float32)  # what isn't looked at
    end_ms = len(made.audio) * 1000 // RATE
    curves = Curves(0, end_ms, z, {}, z, z, z, z, z, z, z, envelope, timbre=timbre, chroma=chroma)
    return Heard(*colours(curves), made.joins)


def fit_ratios(made: list[Heard], rng: np.random.Generator) -> list[Ratio]:
    """A ratio for each length and group: zero-mean Gaussians of differences inside tracks, and between two."""
    ratios = []
    for length_s in LENGTHS_S:
        inside, of_track = [], []
        for heard in made:
            (n_before, before), (n_after, after) = sides(heard.rows, heard.heard, length_s)
            most = length_s * COLOUR_HZ
            both = np.minimum(n_before, n_after) >= max(1.0, most / 3)
            inside.append((after - before)[both & (heard.distance_s() > length_s + 1.5)])
            full = n_before >= most * 2 / 3
            of_track += [before[at & full][:: max(1, int(length_s))] for at in _tracks(heard, length_s)]
        of_track = [means for means in of_track if len(means)]
        pairs = [rng.choice(len(of_track), 2, replace=False) for _ in range(PAIRS)]
        between = np.array([rng.choice(of_track[i]) - rng.choice(of_track[j]) for i, j in pairs])
        for group in GROUPS:
            a, b = covariance(np.concatenate(inside)[:, group]), covariance(between[:, group])
            offset = float(np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1])
            ratios.append(Ratio(np.linalg.inv(a) - np.linalg.inv(b), offset))
    return ratios


def _tracks(heard: Heard, length_s: float) -> Iterator[np.ndarray]:
    """For each track the rows before which only it is heard for that long, [m] bool."""
    begin = [0.0, *(b for _, b in heard.joins)]
    end = [*(a for a, _ in heard.joins), float(heard.times_s[-1])]
    for a, b in zip(begin, end, strict=True):
        yield (heard.times_s >= a + 1.5 + length_s) & (heard.times_s <= b - 1.5)


def covariance(rows: np.ndarray) -> np.ndarray:
    """Of rows of zero mean, [d, d]."""
    whole = rows.T @ rows / len(rows)
    return (1 - SHRINK) * whole + SHRINK * np.diag(np.diag(whole))


def examples(made: list[Heard], ratios: list[Ratio]) -> tuple[np.ndarray, np.ndarray]:
    """What the network sees, [n, d], and what it should say, [n]: 1 at a join, 1/2 within the second, else 0.

    Left out: what is near a join but not at it, gaps, and moments before or after which too little is heard.
    """
    seen, said = [], []
    for heard in made:
        (before, _), (after, _) = sides(heard.rows, heard.heard, 12.0)
        gaps = [(a, b) for a, b in heard.joins if b > a]
        near_gap = [(heard.times_s > a - APART_S) & (heard.times_s < b + APART_S) for a, b in gaps]
        distance = heard.distance_s()
        usable = (np.minimum(before, after) >= 4 * COLOUR_HZ) & ~np.any([distance < 0, *near_gap], axis=0)
        usable &= (distance <= 2 * NEAR_S) | (distance > APART_S)
        seen.append(evidence(heard.rows, heard.heard, ratios)[usable])
        said.append(np.select([distance <= NEAR_S, distance <= 2 * NEAR_S], [1.0, 0.5], 0.0)[usable])
    return np.concatenate(seen).astype(np.float32), np.concatenate(said).astype(np.float32)


def fit_network(seen: np.ndarray, said: np.ndarray) -> dict[str, np.ndarray]:
    """Weights and biases of three layers that give the log odds; the scaling of what they see is in the first."""
    torch.manual_seed(0)
    mean, spread = seen.mean(0), seen.std(0) + 1e-6
    x, y = torch.from_numpy((seen - mean) / spread), torch.from_numpy(said)
    layers = [nn.Linear(x.shape[1], WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)]
    hidden = [part for layer in layers[:-1] for part in (layer, nn.ReLU(), nn.Dropout(DROPOUT))]
    network = nn.Sequential(*hidden, layers[-1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE_MOST, weight_decay=DECAY)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE_MOST, total_steps=EPOCHS * steps)
    for _ in shown(range(EPOCHS), "network"):
        for batch in torch.randperm(len(x)).split(BATCH)[:steps]:
            noisy = x[batch] + NOISE * torch.randn(len(batch), x.shape[1])
            loss = nn.functional.binary_cross_entropy_with_logits(network(noisy)[:, 0], y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    weights = [layer.weight.detach().numpy().T for layer in layers]
    biases = [layer.bias.detach().numpy() for layer in layers]
    biases[0] = biases[0] - (mean / spread) @ weights[0]
    weights[0] = weights[0] / spread[:, None]
    named = {"weights": weights, "bias": biases}
    return {f"{name}.{i}": array for name, arrays in named.items() for i, array in enumerate(arrays)}


if __name__ == "__main__":
    main()
