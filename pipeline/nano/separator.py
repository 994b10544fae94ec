"""Trains the nano separator: a small HTDemucs that tells voices from everything else.

    python -m pipeline.nano.separator --minutes 30 --out pipeline/nano/separator.safetensors

A first run renders its material (`mixtures`; about half an hour, most of it for the tracks that `pipeline.nano.tracks`
needs, too). Training goes on from the checkpoint beside `--out` if there is one, stops when the minutes are used up,
writes the weights and prints the held-out table. `--evaluate` prints the table of weights that are there. The weights
file holds the averaged weights as float16 and, in its header, what demucs needs to build the model: `klass`, `args`
and `kwargs` as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demucs.htdemucs import HTDemucs
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config import SeparateSettings
from pipeline.nano import training
from pipeline.nano.card import show
from pipeline.nano.mixtures import KINDS, RATE, Mixture, bank, recordings, test_mixture, training_mixture
from pipeline.separate import Separator, load_weights
from pipeline.storage import Store

SOURCES = ("other", "vocals")
LICENCE = "Apache-2.0"
GEOMETRY: dict[str, Any] = {
    "sources": list(SOURCES),
    "audio_channels": 1,
    "samplerate": RATE,
    "segment": 3,
    "channels": 16,
    "depth": 4,
    "nfft": 2048,
    "t_layers": 2,
    "t_heads": 4,
}
BATCH, RATES, WARM_UP = 4, (1e-3, 2e-5), 40
RATIO_WEIGHT = 0.3
SILENCE = 1e-6  # mean square below which a second has no ratio
AVERAGE = 0.995
"""Decay of the running average of the weights, per step; shorter at the start."""


def main() -> None:
    """The command line."""
    options = training.options(__doc__ or "", __file__, minutes=30.0).parse_args()
    console = Console()
    if not options.evaluate:
        for split in ("train", "test"):
            for kind in KINDS:
                console.print(f"{split} {kind}: {len(bank(split, kind))} clips")
        torch.set_num_threads(1)
        train(options.minutes, options.out, options.seed, options.threads, console)
    torch.set_num_threads(options.threads)
    model = load_weights(options.out)
    settings = SeparateSettings(device="cpu")
    show(console, Path(__file__), options.out, held_out_table(Separator(model, "nano", "", settings)))


def train(minutes: float, out: Path, seed: int, threads: int, console: Console) -> None:
    """L1 plus RMS error of the stems plus error of the voice ratio; Adam under a cosine over the minutes.

    L1 alone, as demucs has it, rests for long on "all is other": its optimum is a median, and voices are seldom louder
    than the rest. The RMS has its optimum at a mean. The ratio is what the pipeline asks for; its weight makes a ratio
    off by a tenth cost about as much as the stems that make it so.

    Convolutions and attention run in bfloat16 (1.6 times as fast on a CPU that has it); weights stay float32.
    """
    torch.manual_seed(seed)
    model = HTDemucs(**GEOMETRY).train()
    parameters = list(model.parameters())
    optimiser = torch.optim.Adam(parameters, lr=RATES[0], betas=(0.9, 0.99))
    with ThreadPoolExecutor(threads) as pool:
        training.fit(
            out,
            model,
            optimiser,
            training.Schedule(minutes, RATES, WARM_UP, clip=1.0),
            console,
            batches=lambda step: training.ahead(partial(_batch, seed), step),
            gradients=lambda stems, *_: training.spread(
                pool, parameters, partial(_gradients, model), stems.chunk(threads)
            ),
            write=lambda state: write_weights(state, out),
            losses=("stems", "ratio"),
            average=training.Average(model, AVERAGE),
        )


def _gradients(model: HTDemucs, stems: Tensor) -> tuple[np.ndarray, tuple[Tensor, ...]]:
    """Losses of stems [B, S, 1, N] and the gradients of their sum, in the order of the parameters."""
    with torch.autocast("cpu", torch.bfloat16):
        estimate = model(stems.sum(1)).float()
    error = estimate - stems
    loss = error.abs().mean() + error.square().mean(-1).add(1e-8).sqrt().mean()
    true, sounding = _true_ratio(stems)
    wrong = (_voice_ratio(estimate) - true)[sounding].clamp(-1, 1).abs().mean()
    gradients = torch.autograd.grad(loss + RATIO_WEIGHT * wrong, list(model.parameters()))
    return np.array([loss.item(), wrong.item()]), gradients


def _per_second(audio: Tensor) -> Tensor:
    return audio[..., : audio.shape[-1] // RATE * RATE].unflatten(-1, (-1, RATE))


def _voice_ratio(stems: Tensor) -> Tensor:
    """Share of the last stem of [B, S, 1, N] in the sum, [B, seconds], as `pipeline.music` measures it."""
    vocals, both = _per_second(stems[:, -1, 0]), _per_second(stems.sum(1)[:, 0])
    return (vocals * both).sum(-1) / both.square().sum(-1).clamp_min(SILENCE * RATE)


def _true_ratio(stems: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of the last stem of [B, S, 1, N] over that of all, and where there is any: [B, seconds] each."""
    energy = _per_second(stems).square().sum((2, 4))
    return energy[:, -1] / energy.sum(1).clamp_min(SILENCE * RATE), energy.sum(1) > SILENCE * RATE


def _batch(seed: int, number: int) -> Tensor:
    """Batch number n, [B, S, 1, N] stems of mixtures; depends on the seed and n alone."""
    rng = np.random.default_rng([seed, number])
    examples = [training_mixture(rng, GEOMETRY["segment"]) for _ in range(BATCH)]
    return torch.from_numpy(np.stack([[getattr(e, name)[None] for name in SOURCES] for e in examples]))


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """The weights as float16; the header names the model's class and arguments, as in demucs' own hub files."""
    kwargs = json.dumps(GEOMETRY, sort_keys=True)
    header = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": kwargs, "licence": LICENCE}
    with Store(path.parent).write(path.name) as temporary:
        save_file({k: v.half().contiguous() for k, v in state.items()}, str(temporary), header)


# Held-out report

_CASES: tuple[tuple[str, str, float | None], ...] = (
    ("music alone", "music", None),
    *((f"speech over music {db:+d} dB", "music speech", float(db)) for db in (-20, -10, -5, 0, 5, 10)),
    ("speech alone", "speech", None),
    ("singing over music 0 dB", "music singing", 0.0),
    ("singing alone", "singing", None),
    ("effects alone", "effects", None),
    ("music and effects", "music effects", None),
    ("speech over effects 0 dB", "speech effects", 0.0),
)
_PER_CASE = 24


def held_out_table(separator: Separator) -> Table:
    """Scores of each case: mean voice ratio and error of it per second, SDR of both stems where they sound."""
    table = Table("case", "true ratio", "measured", "mean error", "SDR vocals", "SDR other", title="held out")
    rows = [(name, [test_mixture(case, i, db) for i in range(_PER_CASE)]) for name, case, db in _CASES]
    rows += [(f"recorded voice over music {db:+d} dB", list(_recorded_mixtures(db))) for db in (-10, 0, 10)]
    for name, mixtures in rows:
        scores = [score(separator, m) for m in mixtures]
        table.add_row(name, *(_mean(scores, i) for i in range(5)))
    return table


def _recorded_mixtures(snr_db: float) -> Iterator[Mixture]:
    """A real voice that training never met, over held-out music: eight-second pieces."""
    voice = recordings("test")[0]
    length = 8 * RATE
    for i in range(len(voice) // length):
        music = test_mixture("music", i, None).other
        piece = voice[i * length : (i + 1) * length]
        gain = np.sqrt(np.mean(music**2) / np.mean(piece**2)) * 10 ** (snr_db / 20)
        yield Mixture(music, (piece * gain).astype(np.float32))


def score(separator: Separator, mixture: Mixture) -> tuple[float, float, float, float, float]:
    """(true voice ratio, measured, mean absolute error per second, SDR of vocals, of other), SDR in dB.

    Ratio: share of the vocals in the energy, per second. SDR = 10 log10(|s|^2 / |s - e|^2), NaN where the stem is
    silent.
    """
    estimate = np.concatenate(list(separator.stream([mixture.mix[None]])), axis=-1)[:, 0]
    truth = np.stack([mixture.other, mixture.vocals])
    true, measured = _true_ratio(_stack(truth))[0].numpy(), _voice_ratio(_stack(estimate)).clamp(0, 1).numpy()
    error = float(np.abs(true - measured).mean())
    sdr_other, sdr_vocals = (_sdr(t, e) for t, e in zip(truth, estimate, strict=True))
    return float(true.mean()), float(measured.mean()), error, sdr_vocals, sdr_other


def _sdr(truth: np.ndarray, estimate: np.ndarray) -> float:
    if not truth.any():
        return math.nan
    return float(10 * np.log10(np.sum(truth**2) / np.sum((truth - estimate) ** 2)))


def _stack(stems: np.ndarray) -> Tensor:
    """[S, N] -> [1, S, 1, N]."""
    return torch.from_numpy(stems)[None, :, None]


def _mean(scores: Sequence[tuple[float, ...]], column: int) -> str:
    values = np.array([s[column] for s in scores])
    if np.isnan(values).all():
        return ""
    return f"{np.nanmean(values):.{1 if column > 2 else 3}f}"


if __name__ == "__main__":
    main()
