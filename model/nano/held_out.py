"""What the nano backbone has learnt: cross-entropy on held-out songs against n-grams, and samples to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from model.nano.backbone import FRAME_RATE, Captioned, batch_of, tokenize
from model.nano.material import Material
from model.semantic import Text
from pipeline.codec import Codec
from pipeline.nano.listening import write_page

HOP = 640
"""Samples of a frame, at 32 kHz."""
RISE_DB, BEFORE = 15.0, 4
"""An accent rises by so much over the loudest of so many frames before."""
_PRIORS = (1.0, 10.0, 100.0, 1000.0)
_BATCH = 8


def table(model: Captioned, learned: Material, held_out: Material) -> Table:
    """Cross-entropy in nats of each codebook and of their mean, by model and condition, in crops of 10 s.

    n-grams are counted on the training songs. A bigram knows the codebook's last code; it falls back on the unigram by
    as much as is best for it on the held-out songs themselves.
    """
    cardinality = model.decoder.geometry.cardinality
    seconds = held_out.codes.shape[-1] // FRAME_RATE
    at = [(song, first * FRAME_RATE) for song in range(len(held_out.codes)) for first in range(0, seconds - 9, 10)]
    seen = [(song, 0) for song in np.linspace(0, len(learned.codes) - 1, len(at) // 2, dtype=int).tolist()]
    long = [(song, 0) for song in range(len(held_out.codes))]
    swapped = Material(held_out.codes, held_out.captions[1:] + held_out.captions[:1], held_out.accents_s)
    rows: dict[str, Sequence[float]] = {
        "uniform": [float(np.log(cardinality))] * held_out.codes.shape[1],
        "unigram": _unigram(learned.codes, held_out.codes, cardinality),
        "bigram": _bigram(learned.codes, held_out.codes, cardinality),
        "backbone, no caption": _losses(model, held_out, at, kept=False),
        "backbone, another song's caption": _losses(model, swapped, at),
        "backbone": _losses(model, held_out, at),
        "backbone, crops of 30 s": _losses(model, held_out, long, seconds=30),
        "backbone, songs of the training": _losses(model, learned, seen),
    }
    shown = Table("nats per code", *(f"codebook {k + 1}" for k in range(held_out.codes.shape[1])), "mean")
    for name, losses in rows.items():
        shown.add_row(name, *(f"{loss:.3f}" for loss in (*losses, np.mean(losses))))
    return shown


def _losses(
    model: Captioned, songs: Material, at: Sequence[tuple[int, int]], *, seconds: int = 10, kept: bool = True
) -> list[float]:
    """Mean loss of each codebook over crops that begin at (song, frame)."""
    sums: list[Tensor] = []
    for first in range(0, len(at), _BATCH):
        batch = batch_of(songs, at[first : first + _BATCH], seconds * FRAME_RATE)
        with torch.no_grad():
            losses = model(batch._replace(keep=torch.full_like(batch.keep, kept)))
        sums.append(losses * len(batch.codes))
    return [float(x) for x in torch.stack(sums).sum(0) / len(at)]


def _unigram(learned: np.ndarray, held_out: np.ndarray, cardinality: int) -> list[float]:
    """Codes [songs, K, T] -> nats per code of each codebook; every code is counted once more than it is there."""
    found = []
    for k in range(learned.shape[1]):
        found.append(-np.log(_shares(learned[:, k], cardinality))[held_out[:, k]].mean())
    return [float(x) for x in found]


def _bigram(learned: np.ndarray, held_out: np.ndarray, cardinality: int) -> list[float]:
    """As `_unigram`; counts of pairs, plus `prior` pairs that are spread as the unigram is (Dirichlet smoothing)."""
    found = []
    for k in range(learned.shape[1]):
        before, after = (learned[:, k, s].astype(np.int64).ravel() for s in (slice(None, -1), slice(1, None)))
        pairs = np.bincount(before * cardinality + after, minlength=cardinality**2)
        seen = pairs.reshape(cardinality, cardinality)
        left, right = held_out[:, k, :-1].ravel(), held_out[:, k, 1:].ravel()
        alone = _shares(learned[:, k], cardinality)[right]
        times, together = seen.sum(1)[left], seen[left, right]
        found.append(min(-np.log((together + prior * alone) / (times + prior)).mean() for prior in _PRIORS))
    return [float(x) for x in found]


def _shares(codes: np.ndarray, cardinality: int) -> np.ndarray:
    counts = np.bincount(codes.ravel(), minlength=cardinality) + 1.0
    return counts / counts.sum()


def write_samples(
    model: Captioned,
    codec: Codec,
    held_out: Material,
    folder: Path,
    *,
    seconds: int = 10,
    known_s: int = 3,
    count: int = 4,
) -> Path:
    """A page to listen to: held-out songs beside music to their captions, to none, and gone on from their start.

    Args:
        model: in evaluation mode.
        codec: what its codes are turned into sound with, the songs' as well.
        held_out: where captions and songs are taken from, the first `count` of them.
        folder: is made; files of the same names are replaced.
        seconds: of a sample.
        known_s: of a song that is gone on with.
        count: of songs.

    Returns:
        The page.
    """
    captions, songs = held_out.captions[:count], held_out.codes[:count, :, : seconds * FRAME_RATE]
    cases = {"song": songs}
    went_on = f"gone on after {known_s} s"
    for name, kept, known in (("to its caption", True, 0), ("to no caption", False, 0), (went_on, True, known_s)):
        prompt = songs[..., : known * FRAME_RATE]
        cases[name] = generate(model, captions, seconds * FRAME_RATE, kept=kept, prompt=prompt)
    rows = ((said, [codec.decode(c) for c in codes]) for said, *codes in zip(captions, *cases.values(), strict=True))
    about = "Held-out songs as the codec plays them, beside music of the backbone (top 250, guidance 3)."
    return write_page(folder, "The nano backbone", about, list(cases), rows, codec.rate)


def generate(
    model: Captioned,
    captions: list[str],
    frames: int,
    *,
    kept: bool = True,
    prompt: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Codes [B, K, frames] int64, sampled as MusicGen does (top 250, guidance 3), with a seed for each row.

    Args:
        model: in evaluation mode.
        captions: B of them.
        frames: 50 a second.
        kept: False is the null in place of the captions.
        prompt: [B, K, P] codes to go on from, P < frames; None or P = 0 is none.
        seed: of the first row.
    """
    text: Text = tokenize(captions)
    with torch.no_grad():
        cross = model.cross(text, torch.full((len(captions),), kept))
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(captions))]
    given = torch.from_numpy(prompt.astype(np.int64)) if prompt is not None and prompt.shape[-1] else None
    codes = model.decoder.generate(
        cross, frames, prompt=given, guidance=3.0 if kept else 1.0, top_k=250, generator=generators
    )
    return codes.numpy()


def accents_table(model: Captioned, codec: Codec, held_out: Material, *, seconds: int = 20, count: int = 12) -> Table:
    """Accents in music to held-out captions beside those of the songs, and how irregular they are.

    What counts as an accent (`accents`) are 93 % of those in the songs as rendered, and 0.04 a second more where there
    are none. The variation of the gaps is their standard deviation over their
    mean: 0 for a beat, 1 for events that come at any time, and less where a gap has a least length, as here.
    """
    shown = Table("", "accents a second", "variation of the gaps")
    for says in (True, False):
        songs = [i for i, caption in enumerate(held_out.captions) if ("accents" in caption) == says][:count]
        captions = [held_out.captions[i] for i in songs]
        codes = {
            "songs": held_out.codes[songs, :, : seconds * FRAME_RATE],
            "backbone": generate(model, captions, seconds * FRAME_RATE),
        }
        for name, rows in codes.items():
            times = [accents(codec.decode(row)) for row in rows]
            gaps = np.concatenate([np.diff(t) for t in times])
            variation = f"{gaps.std() / gaps.mean():.2f}" if len(gaps) > 1 else ""
            rate = sum(map(len, times)) / (len(times) * seconds)
            shown.add_row(f"{name}, caption {'with' if says else 'without'} accents", f"{rate:.2f}", variation)
    return shown


def accents(audio: np.ndarray) -> np.ndarray:
    """Times in seconds at which sound [N] at 32 kHz rises by `RISE_DB` within a frame or two; at least 0.2 s apart."""
    frames = audio[: len(audio) // HOP * HOP].reshape(-1, HOP).astype(np.float64)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-6)
    found: list[int] = []
    for t in range(BEFORE, len(level) - 1):
        rise = level[t : t + 2].max() - level[t - BEFORE : t].max()
        if rise >= RISE_DB and level[t] > level[t - 1] and (not found or t - found[-1] >= 10):
            found.append(t)
    return np.array(found) / FRAME_RATE
