"""What the nano codec's weights can do on held-out sound: a table, and a page to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from pipeline import weights
from pipeline.codec import build_codec, load_codec
from pipeline.config import CodecSettings
from pipeline.nano import geometry, listening

RATE = 32_000
WINDOWS = (256, 512, 1024, 2048)
"""Of the multi-scale mel spectrum, in samples; each has a sixteenth as many bands."""
FLOOR = 3e-4
"""Added to magnitudes before their logarithm: -70 dB under a sine of full scale."""


def load_model(path: Path) -> Any:
    """The `EncodecModel` of a weights file.

    Raises:
        MissingWeights: the file is damaged or does not fit.
    """
    model = build_codec(geometry.from_header(geometry.CodecGeometry, weights.header(path)))
    weights.fill(model, path)
    return model.requires_grad_(False)


@torch.inference_mode()
def encode(model: Any, clips: np.ndarray) -> Tensor:
    """[B, N] sound -> [B, K, T] codes."""
    return torch.cat([model.encode(torch.from_numpy(clip[None, None]))[0] for clip in clips.astype(np.float32)])


@torch.inference_mode()
def decode(model: Any, codes: Tensor, codebooks: int) -> np.ndarray:
    """[B, K, T] codes -> [B, N] sound, from the first `codebooks` of them."""
    return torch.cat([model.decode(each[None, :codebooks], None)[:, 0] for each in codes]).numpy()


def held_out_table(model: Any, kinds: dict[str, np.ndarray]) -> Table:
    """Scores for each kind of sound ([B, N] float32) and number of codebooks, beside what knows nothing.

    The references: the same network untrained (`random:nano`, whose codebooks do fit its latents), silence, and for
    onsets another clip. Use of a codebook: share of its entries that the kind's codes hold, and their perplexity.
    """
    columns = ("sound", "from", "mel distance dB", "SI-SDR dB", "onset F1 50 ms", "entries used", "perplexity")
    table = Table(*columns, title="held out")
    for kind, clips in kinds.items():
        codes = encode(model, clips)
        for k in range(1, codes.shape[1] + 1):
            use, perplexity = codebook_use(codes[:, k - 1])
            row = (f"{use:.1%}", f"{perplexity:.0f}")
            table.add_row(kind, f"{k} codebook{'s' * (k > 1)}", *_scores(clips, decode(model, codes, k)), *row)
        twin = load_codec(CodecSettings(model="random:nano", device="cpu"))
        untrained = np.stack([twin.decode(twin.encode(clip)) for clip in clips])
        table.add_row(kind, "untrained twin", *_scores(clips, untrained), "", "")
        table.add_row(kind, "silence", f"{mel_distance(clips, np.zeros_like(clips)):.2f}", "", "", "", "")
        table.add_row(kind, "another clip", *_scores(clips, np.roll(clips, 1, axis=0)), "", "")
    return table


def _scores(clips: np.ndarray, made: np.ndarray) -> tuple[str, str, str]:
    ratio, onsets = si_sdr(clips, made), [onset_f1(a, b) for a, b in zip(clips, made, strict=True)]
    return f"{mel_distance(clips, made):.2f}", f"{ratio.mean():.1f}", f"{np.nanmean(onsets):.2f}"


def mel(audio: Tensor, window: int) -> Tensor:
    """[B, N] -> [B, bands, frames]: mean magnitude in each band, where a sine of amplitude 1 has magnitude 1."""
    shape, bands = _mel_bands(window)
    spectrum = torch.stft(audio, window, window // 4, window=shape, return_complex=True).abs()
    return bands @ (spectrum * (2 / shape.sum()))


@cache
def _mel_bands(window: int) -> tuple[Tensor, Tensor]:
    """A Hann window and [window / 16, window / 2 + 1] weights that sum to 1 in each band."""
    bands = melscale_fbanks(window // 2 + 1, 0.0, RATE / 2, window // 16, RATE).T
    return torch.hann_window(window), bands / bands.sum(1, keepdim=True).clamp(min=1e-6)


def mel_distance(clips: np.ndarray, made: np.ndarray) -> float:
    """Mean difference of log mel spectra in dB, over clips, `WINDOWS`, bands and frames; [B, N] each."""
    total = 0.0
    for pair in zip(made, clips, strict=True):  # one clip at a time: spectra of all of them don't fit any cache
        for window in WINDOWS:
            ours, theirs = (20 * (mel(torch.from_numpy(x[None]), window) + FLOOR).log10() for x in pair)
            total += float((ours - theirs).abs().mean())
    return total / len(WINDOWS) / len(clips)


def si_sdr(clips: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Scale-invariant SDR in dB (Le Roux et al., 2019, arXiv:1811.02508), [B, N] each -> [B]."""
    scale = (clips * made).sum(1, keepdims=True) / (np.square(clips).sum(1, keepdims=True) + 1e-9)
    wanted = scale * clips
    return 10 * np.log10((np.square(wanted).sum(1) + 1e-9) / (np.square(made - wanted).sum(1) + 1e-9))


def codebook_use(codes: Tensor) -> tuple[float, float]:
    """Share of 2048 entries that occur, and perplexity (2 to the entropy in bits) of how they are used."""
    share = torch.bincount(codes.flatten(), minlength=2048).double() / codes.numel()
    seen = share[share > 0]
    return len(seen) / 2048, float(torch.exp(-(seen * seen.log()).sum()))


def onset_f1(clip: np.ndarray, made: np.ndarray, *, within_s: float = 0.05) -> float:
    """F1 of librosa's onsets in what was made against those in the clip; each counts once. NaN where neither has any.

    Pairs are found from the left, the earliest first: on a line that is a largest matching.
    """
    import librosa

    wanted, found = (librosa.onset.onset_detect(y=x, sr=RATE, hop_length=320, units="time") for x in (clip, made))
    if not len(wanted) + len(found):
        return float("nan")
    hits = i = j = 0
    while i < len(wanted) and j < len(found):
        if abs(wanted[i] - found[j]) <= within_s:
            hits, i, j = hits + 1, i + 1, j + 1
        elif wanted[i] < found[j]:
            i += 1
        else:
            j += 1
    return 2 * hits / (len(wanted) + len(found))


def write_page(model: Any, clips: Sequence[tuple[str, np.ndarray]], folder: Path) -> Path:
    """`index.html` in the folder, with WAV files: each original beside what 4, 2 and 1 codebooks keep of it.

    Args:
        clips: captions and sounds [N] float32.
    """

    def row(clip: np.ndarray) -> list[np.ndarray]:
        codes = encode(model, clip[None])
        return [clip, *(decode(model, codes, k)[0] for k in (4, 2, 1))]

    parameters = sum(p.numel() for p in model.parameters())
    about = f"Held-out originals beside reconstructions; 50 frames a second; {parameters:,} parameters."
    columns = ("original", "4 codebooks", "2 codebooks", "1 codebook")
    rows = ((caption, row(clip)) for caption, clip in clips)
    return listening.write_page(folder, "The nano codec", about, columns, rows, RATE)
