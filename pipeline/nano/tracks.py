"""Fits the model of changes of track: how means of the sound differ within one piece of music, and between two.

    python -m pipeline.nano.tracks

Two Gaussians of zero mean on the difference of two neighbouring windows' means: the two-covariance model of speaker
recognition (Brummer and de Villiers, "The speaker partitioning problem", Odyssey 2010) as a likelihood ratio. Fitted on
the training bank of the nano separator (`mixtures`); its rendering takes minutes, the rest seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pipeline.config import MusicSettings
from pipeline.music.curves import COLOUR_HZ
from pipeline.music.meters import Onsets
from pipeline.music.tracks import WIDTH_S, colours, windows
from pipeline.nano.mixtures import RATE, bank
from pipeline.nano.mixtures.signals import rms
from pipeline.storage import Store

LICENCE = "Apache-2.0"
CLIPS = 150
SECONDS = 24  # of each clip
LEAST = 0.67  # share of a window that has to be there
PAIRS = 6000  # of windows of different clips
SHRINK = 0.1  # how far covariances are drawn to their diagonals


def main() -> None:
    """Writes `tracks.safetensors` beside this file."""
    within, between = differences(np.random.default_rng(0))
    a, b = covariance(within), covariance(between)
    ratio = np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
    arrays = {"form": np.linalg.inv(a) - np.linalg.inv(b), "offset": np.array([ratio])}
    path = Path(__file__).with_suffix(".safetensors")
    with Store(path.parent).write(path.name) as temporary:
        save_file({k: v.astype(np.float32) for k, v in arrays.items()}, temporary, {"licence": LICENCE})


def differences(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Differences of means of neighbouring windows of one clip, and of windows of two: [n, d] each."""
    within, of_clip = [], []
    for clip in bank("train", "music")[:CLIPS]:
        audio = clip / 32768
        meter = Onsets(RATE, MusicSettings())
        meter.feed((audio / rms(audio) * 0.1).astype(np.float32))
        meter.finish()
        (n_before, before), (n_after, after) = windows(*colours(*meter.colours(SECONDS)))
        least = LEAST * WIDTH_S * COLOUR_HZ
        both = (n_before >= least) & (n_after >= least)
        within.append((after - before)[both][::2])
        of_clip.append(before[n_before >= least][::6])
    pairs = [rng.choice(len(of_clip), 2, replace=False) for _ in range(PAIRS)]
    between = [rng.choice(of_clip[i]) - rng.choice(of_clip[j]) for i, j in pairs]
    return np.concatenate(within), np.array(between)


def covariance(rows: np.ndarray) -> np.ndarray:
    """Of rows of zero mean, [d, d]."""
    whole = rows.T @ rows / len(rows)
    return (1 - SHRINK) * whole + SHRINK * np.diag(np.diag(whole))


if __name__ == "__main__":
    main()
