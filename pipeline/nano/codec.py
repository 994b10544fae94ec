"""Trains the nano codec: audiocraft's EnCodec at toy width, 32 kHz mono, 50 frames a second, 4 codebooks.

    python -m pipeline.nano.codec --minutes 35 --out pipeline/nano/codec.safetensors

A first run renders its material (about two minutes). Training goes on from the checkpoint beside `--out` if there is
one, stops when the minutes are used up, writes the weights and prints the held-out table. `--evaluate` prints the
table of weights that are there; `--page FOLDER` writes a page with held-out originals beside reconstructions. The
weights file holds the averaged weights as float16 and, in its header, the `geometry` as JSON. With glibc, set the
`MALLOC_` variables that `data_cards/nano.md` names: without them half of the time goes into page faults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.codec import build_codec
from pipeline.media import audio_window
from pipeline.nano import training
from pipeline.nano.card import show
from pipeline.nano.codec_report import WINDOWS, held_out_table, load_model, mel, write_page
from pipeline.nano.geometry import CODEC
from pipeline.nano.mixtures.signals import Split
from pipeline.nano.packages import cache_folder, film
from pipeline.nano.songs import RATE, song
from pipeline.storage import Store, digest

LICENCE = "Apache-2.0"
VERSION = 1
"""Raised when the rendering changes, so that no stale cache is read."""
SONGS: dict[Split, tuple[int, int]] = {"train": (300, 20), "test": (48, 12)}
"""How many songs, and seconds each."""
FILM_S: dict[Split, tuple[float, float]] = {"train": (0.0, 447.0), "test": (447.0, 596.0)}
FILM_CREDIT = "Big Buck Bunny, (c) 2008 Blender Foundation, CC BY 3.0"
FILM_SHARE = 0.15
"""Of the crops that training draws."""

GEOMETRY = CODEC["nano"]
CROP_S, BATCH, RATES, WARM_UP = 0.8, 8, (1e-3, 2e-5), 100
UNQUANTISED, START_VECTORS = 0.08, 20_000
"""Share of the minutes in which the latent passes as it is, and how many latents codebooks then start from."""
_LOSSES, WEIGHTS = ("log mel", "mel", "wave", "commitment"), (0.4, 0.5, 1.0)
COMMITMENT = 0.5
"""Weight of the latent's distance from its codes, beside the decoder's wish."""
SOFT = 1e-3
"""Added to magnitudes before their logarithm in training, higher than the report's."""
CODEBOOK_DECAY = 0.995
FEWER = 0.25
"""Share of the crops that are decoded from the first one to three codebooks alone."""
RESTART_BELOW, RESTART_EVERY, RESTART_UNTIL = 0.1, 10, 0.85
"""An entry used less than this share of the average is moved, every so many steps, up to this share of the minutes."""
AVERAGE = 0.995
"""Decay of the running average of the weights, per step; shorter at the start."""


def main() -> None:
    """The command line."""
    parser = training.options(__doc__ or "", __file__, minutes=35.0)
    parser.add_argument(
        "--page", type=Path, metavar="FOLDER", help="don't train; write the page of the weights in --out"
    )
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(1)
    if not options.evaluate and options.page is None:
        train(options.minutes, options.out, options.seed, options.threads, console)
    model, clips, captions = load_model(options.out), *held_out_clips()
    if options.page is None:
        show(console, Path(__file__), options.out, held_out_table(model, clips))
    else:
        named = [*zip(captions, clips["songs"], strict=True), *((FILM_CREDIT, clip) for clip in clips["film"])]
        console.print(str(write_page(model, named[::4], options.page)))


# Material


@cache
def songs(split: Split) -> tuple[np.ndarray, tuple[str, ...]]:
    """The songs of a split, rendered if they aren't in the cache: [N, samples] int16 and their captions."""
    count, seconds = SONGS[split]
    store = Store(cache_folder() / "codec")
    name = f"{split}-{digest({'version': VERSION, 'n': count, 's': seconds})[:8]}"
    if not store.exists(f"{name}.npy"):
        drawn = (song(np.random.default_rng([split == "test", i]), split, seconds) for i in range(count))
        clips, captions = np.zeros((count, seconds * RATE), np.int16), []
        for i, made in enumerate(drawn):
            clips[i] = np.round(made.audio * 32767)
            captions.append(made.caption)
        store.write_text(f"{name}.json", json.dumps(captions))
        with store.write(f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, clips)
    captions = json.loads(store.read_text(f"{name}.json"))
    with store.read(f"{name}.npy") as path:
        return (np.load(path, mmap_mode="r") if store.is_local else np.load(path)), tuple(captions)


@cache
def film_sound(split: Split) -> np.ndarray:
    """The film's sound within `FILM_S`: [samples] float32, mono."""
    start_s, end_s = FILM_S[split]
    return audio_window(film(), rate=RATE, channels=1, start_s=start_s, end_s=end_s)[0]


def held_out_clips(seconds: int = 10) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """What no training crop comes from: the start of each test song and the film's end in pieces, and captions.

    [B, seconds * RATE] float32 of `songs` and `film`.
    """
    (clips, captions), sound, length = songs("test"), film_sound("test"), seconds * RATE
    pieces = sound[: len(sound) // length * length].reshape(-1, length)
    return {"songs": clips[:, :length] / np.float32(32767), "film": pieces}, captions


def _batches(seed: int, step: int) -> Iterator[Tensor]:
    """Endless batches [B, 1, N] of random crops at random levels; batch number n depends on the seed and n alone."""
    length = round(CROP_S * RATE)
    clips, sound = songs("train")[0], film_sound("train")

    def crop(rng: np.random.Generator) -> np.ndarray:
        source = sound if rng.random() < FILM_SHARE else clips[rng.integers(len(clips))]
        full = 1.0 if source is sound else 1 / 32767
        start = rng.integers(0, len(source) - length + 1)
        return source[start : start + length] * full * 10 ** (rng.uniform(-12, 1) / 20)

    while True:
        rng = np.random.default_rng([seed, step])
        yield torch.from_numpy(np.stack([crop(rng) for _ in range(BATCH)])[:, None]).float()
        step += 1


# Training


def train(minutes: float, out: Path, seed: int, threads: int, console: Console) -> None:
    """Adam under a cosine over the minutes; losses as `_gradients` balances them; codebooks follow by moving averages.

    Convolutions run in bfloat16; weights stay float32. Each thread takes its share of the batch through encoder and
    decoder alone; they meet twice a step, at the codebooks and at the gradients.
    """
    torch.manual_seed(seed)
    model = build_codec(GEOMETRY).train()
    networks = _networks(model, threads)
    _scale(model, next(_batches(seed, 0)))
    parameters = [*model.encoder.parameters(), *model.decoder.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=RATES[0], betas=(0.8, 0.99))
    average = training.Average(model, AVERAGE)

    def gradients(audio: Tensor, step: int, share: float) -> np.ndarray:
        quantised = share >= UNQUANTISED
        if quantised and not _started(model):
            _start_codebooks(model, _batches(seed, step + 10**6))
            for key in (k for k in average.state if k.startswith("quantizer")):
                average.state[key].copy_(model.state_dict()[key])
        shares = audio.chunk(threads)
        latents = list(pool.map(_encode, networks, shares))
        restart = share < RESTART_UNTIL and step % RESTART_EVERY == 0
        sums = _quantise(model, torch.cat(latents).detach(), restart) if quantised else None
        parts = [None] * len(shares) if sums is None else sums.split([len(s) for s in shares], dim=1)
        fewer = np.random.default_rng([seed, step, 1])
        used = [np.where(fewer.random(len(s)) < FEWER, fewer.integers(1, 4, len(s)), 4) for s in shares]
        return training.spread(pool, parameters, _gradients, networks, shares, latents, parts, used)

    with ThreadPoolExecutor(threads) as pool:
        training.fit(
            out,
            model,
            optimiser,
            training.Schedule(minutes, RATES, WARM_UP, clip=10.0),
            console,
            batches=lambda step: _batches(seed, step),
            gradients=gradients,
            write=lambda state: write_weights(state, out),
            losses=_LOSSES,
            average=average,
        )


def _encode(model: Any, audio: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return model.encoder(audio).float()


def _gradients(
    model: Any, audio: Tensor, latent: Tensor, sums: Tensor | None, used: np.ndarray
) -> tuple[np.ndarray, tuple[Tensor, ...]]:
    """Losses of a share of the batch, and gradients in the order of the encoder's and the decoder's parameters.

    Losses are balanced at the decoder's output (Defossez et al., 2022, arXiv:2210.13438, section 3.4), crop by crop:
    the gradient of each has the norm of its weight. Plain sums follow the log mel of quiet bands, and the waveform is
    never learnt. Commitment is balanced likewise, at the latent.

    Args:
        latent: [B, D, T], with its graph.
        sums: [K, B, D, T] of `_quantise`, or None: the latent passes as it is.
        used: [B], codebooks to decode from.
    """
    passed, error, committed = latent.detach(), torch.zeros_like(latent), 0.0
    if sums is not None:
        passed = sums[torch.from_numpy(used) - 1, torch.arange(len(used))]
        error = (latent.detach() - sums.mean(0)) / latent.detach().var((0, 2)).mean().sqrt()
        committed = float((latent.detach() - sums[-1]).square().mean() / latent.detach().var((0, 2)).mean())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        made = model.decoder(passed.requires_grad_()).float()
    output = made.detach().requires_grad_()
    losses = _losses(output, audio)
    wanted = torch.zeros_like(output)
    for loss, weight in zip(losses, WEIGHTS, strict=True):
        (gradient,) = torch.autograd.grad(loss.sum(), output, retain_graph=True)
        wanted += weight * gradient / (gradient.norm(dim=(1, 2), keepdim=True) + 1e-6) / len(audio)
    back, *decoder = torch.autograd.grad(made, [passed, *model.decoder.parameters()], wanted)
    # straight through the codebooks (van den Oord et al., 2017, arXiv:1711.00937)
    back = back + COMMITMENT * back.norm(dim=(1, 2), keepdim=True) * error / error[0].numel() ** 0.5
    encoder = torch.autograd.grad(latent, list(model.encoder.parameters()), back)
    return np.array([*(float(loss.detach().mean()) for loss in losses), committed]), (*encoder, *decoder)


def _losses(made: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L1 of log mel, of mel and of the waveform, [B, 1, N] each -> [B] each; the latter two relative to the crop's own.

    Mel at several scales, as Kumar et al. (2023, arXiv:2306.06546) have it.
    """
    log, linear = [], []
    for window in WINDOWS:
        ours, theirs = (mel(x[:, 0], window) for x in (made, audio))
        log.append(((ours + SOFT).log() - (theirs + SOFT).log()).abs().mean((1, 2)))
        linear.append((ours - theirs).abs().mean((1, 2)) / (theirs.mean((1, 2)) + 1e-3))
    wave = (made - audio).abs().mean((1, 2)) / (audio.abs().mean((1, 2)) + 3e-3)
    return torch.stack(log).mean(0), torch.stack(linear).mean(0), wave


@torch.no_grad()
def _quantise(model: Any, latent: Tensor, restart: bool) -> Tensor:
    """[B, D, T] -> [K, B, D, T]: the sum of the first codebooks' entries, for 1 to K; codebooks move towards it.

    The quantizer's own restart has no effect: the moving average overwrites the entry at once. So entries that are
    hardly used are set here, to vectors of this batch, with the average's state.
    """
    rest, sums = latent, []
    for layer in model.quantizer.vq.layers:
        entries = layer(rest)[0]
        if restart:
            book = layer._codebook
            mean = book.cluster_size.mean()
            dead = book.cluster_size < RESTART_BELOW * mean
            vectors = rest.transpose(1, 2).flatten(0, 1)
            fresh = vectors[torch.randint(len(vectors), (int(dead.sum()),))]
            book.embed[dead], book.embed_avg[dead], book.cluster_size[dead] = fresh, fresh * mean, mean
        rest = rest - entries
        sums.append(latent - rest)
    return torch.stack(sums)


def _started(model: Any) -> bool:
    """Whether the codebooks have their start: until then no entry has been used."""
    return bool(model.quantizer.vq.layers[0]._codebook.cluster_size.any())


@torch.no_grad()
def _start_codebooks(model: Any, batches: Iterator[Tensor], rounds: int = 8) -> None:
    """Lloyd's algorithm on latents of fresh batches, codebook after codebook; each starts from random vectors."""
    frames = BATCH * CROP_S * RATE / GEOMETRY.hop
    need = math.ceil(START_VECTORS / frames)
    rest = torch.cat([_encode(model, next(batches)).transpose(1, 2).flatten(0, 1) for _ in range(need)])
    for layer in model.quantizer.vq.layers:
        book = layer._codebook
        book.embed.copy_(rest[torch.randint(len(rest), (len(book.embed),))])
        for _ in range(rounds):
            nearest = book.quantize(rest)
            counts = torch.bincount(nearest, minlength=len(book.embed)).float()
            total = torch.zeros_like(book.embed).index_add_(0, nearest, rest)
            book.embed.copy_(torch.where(counts[:, None] > 0, total / counts[:, None].clamp(min=1), book.embed))
        book.cluster_size.copy_(counts * frames / len(rest))
        book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
        rest = rest - book.embed[book.quantize(rest)]


@torch.no_grad()
def _scale(model: Any, audio: Tensor) -> None:
    """Gives every convolution an output of variance 1 on a batch, the last one the batch's, and no bias.

    Without it the latent hardly depends on the input and training ends in a constant. The idea: Salimans and Kingma,
    2016, arXiv:1602.07868, section 3; here one factor for a layer, since a transposed convolution has no other.
    """

    def rescale(module: Any, _: Any, output: Tensor) -> Tensor:
        factor = (level if module is last else 1.0) / output.std()
        module.weight_g.mul_(factor)
        return output * factor

    level = audio.std()
    convolutions: list[Any] = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
    last = convolutions[-1]
    for module in convolutions:
        module.bias.zero_()
    hooks = [module.register_forward_hook(rescale) for module in convolutions]
    model.decoder(model.encoder(audio))
    for hook in hooks:
        hook.remove()


class _Elu(torch.autograd.Function):
    """ELU through `exp`, which torch vectorises on CPUs: ten times as fast as its `elu`, which was half of a step."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        result = torch.maximum(x, x.float().clamp(max=0).exp_().sub_(1).to(x.dtype))
        context.save_for_backward(result)
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (result,) = context.saved_tensors
        return torch.ops.aten.elu_backward(gradient, 1, 1, 1, True, result)


class _FastElu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Elu.apply(x)


def _networks(model: Any, threads: int) -> list[Any]:
    """The model for each thread, with the same parameters: its weight norm keeps each pass's weights in the modules."""
    networks = [model, *(build_codec(GEOMETRY).train() for _ in range(threads - 1))]
    for network in networks[1:]:
        for ours, theirs in zip(model.modules(), network.modules(), strict=True):
            theirs._parameters = ours._parameters
    for network in networks:
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ELU):
                    setattr(module, name, _FastElu())
    for layer in model.quantizer.vq.layers:
        layer._codebook.decay = CODEBOOK_DECAY
        layer._codebook.threshold_ema_dead_code = 0  # see `_quantise`
    return networks


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """The weights as float16, and the averages that training keeps of the codebooks replaced by the codebooks."""
    kept = dict(state)
    for key in [k for k in state if k.endswith(".embed_avg")]:
        kept[key] = state[key.replace("embed_avg", "embed")].clone()
        kept[key.replace("embed_avg", "cluster_size")] = torch.ones(len(kept[key]))
    header = {"geometry": json.dumps(asdict(GEOMETRY), sort_keys=True), "licence": LICENCE}
    with Store(path.parent).write(path.name) as temporary:
        save_file({k: v.half().contiguous() for k, v in kept.items()}, str(temporary), header)


if __name__ == "__main__":
    main()
