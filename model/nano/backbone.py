"""Trains the nano backbone: MusicGen's decoder at toy width behind a toy T5 that reads captions.

    python -m model.nano.backbone --minutes 35 --out model/nano/backbone.safetensors

A first run renders its songs and encodes them (`material`; about ten minutes). Training goes on from the checkpoint
beside `--out` if there is one, stops when the minutes are used up, writes the weights and prints the held-out tables.
`--evaluate` prints the tables of weights that are there, `--samples FOLDER` writes a page of sounds to listen to. The
weights file is one of `checkpoints.save_backbone`, float16, with the T5 in it: `bundled:backbone` for decoder and T5 of
a preset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from transformers import ByT5Tokenizer, T5EncoderModel

from model.checkpoints import load_backbone, save_backbone
from model.decoder import GEOMETRIES, Decoder
from model.nano.material import TEST, TRAIN, Material, material
from model.semantic import Text, read_t5, t5_config
from model.settings import SemanticSettings
from pipeline.codec import load_codec
from pipeline.config import CodecSettings
from pipeline.nano import training
from pipeline.nano.card import show

LICENCE = "Apache-2.0"
GEOMETRY = "nano"
T5 = SemanticSettings(t5="bundled:backbone")
FRAME_RATE = 50
CROPS = ((10, 4, 0.7), (20, 2, 0.15), (30, 2, 0.15))
"""Seconds of a crop, crops in a step, and how often: longer ones keep late positions in training."""
NULL_SHARE = 0.2
"""Of captions replaced by the null condition, so that guidance has something to lead away from."""
RATES, WARM_UP, DECAY = (2e-3, 4e-5), 100, 0.05
TABLES = 4.0
"""The code tables start larger than audiocraft's by this factor, and learn faster: each row is met seldom, and beside
the positions, whose rows have a length of 8, one of length 1 is hardly seen in a run this short."""


class Batch(NamedTuple):
    """Crops and their captions: codes [B, K, T] int64, T5's tokens, and which captions are kept [B] bool."""

    codes: Tensor
    text: Text
    keep: Tensor


class Captioned(nn.Module):
    """The decoder behind a T5 encoder and MusicGen's projection, all of it trained."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder(GEOMETRIES[GEOMETRY])
        with torch.no_grad():
            self.decoder.embed.weight.mul_(TABLES)
        self.t5 = T5EncoderModel(t5_config(T5))
        self.projector = nn.Linear(self.t5.config.d_model, self.decoder.geometry.dim)

    @classmethod
    def read(cls, path: Path) -> Captioned:
        """The model in a file of `write`, in evaluation mode.

        Raises:
            MissingWeights: the file isn't there, is damaged, or holds no T5.
        """
        model, stored = cls(), load_backbone(str(path), GEOMETRY)
        model.decoder.load_state_dict(stored.decoder.state_dict())
        model.projector.load_state_dict(stored.projection)
        model.t5.load_state_dict(read_t5(str(path)))
        return model.eval()

    def write(self, path: Path, codec: str) -> None:
        """The weights as float16; the digest of the codec whose tokens they were trained on stands in the header."""
        t5 = {n: w for n, w in self.t5.state_dict().items() if n != "encoder.embed_tokens.weight"}  # tied to `shared`
        projection = self.projector.state_dict()
        save_backbone(path, self.decoder, projection, licence=LICENCE, t5=t5, half=True, codec=codec)

    def cross(self, text: Text, keep: Tensor | None = None) -> Tensor:
        """Cross-attention's keys and values [B, N, D]; exact zeros behind a caption's end, and where it isn't kept."""
        hidden = self.t5(input_ids=text.ids, attention_mask=text.present.long()).last_hidden_state
        used = text.present if keep is None else text.present & keep[:, None]
        return self.projector(hidden).masked_fill(~used[..., None], 0.0)

    def forward(self, batch: Batch) -> Tensor:
        """`decoder.loss` of each codebook [K], without the copies that aligned logits would cost."""
        cross, T = self.cross(batch.text, batch.keep), batch.codes.shape[-1]
        hidden = self.decoder.out_norm(self.decoder.hidden(batch.codes, cross))
        heads = self.decoder.heads.weight.chunk(self.decoder.geometry.codebooks)
        losses = []
        for k, head in enumerate(heads):  # step t + k predicts code t
            logits = F.linear(hidden[:, k:], head).flatten(0, 1)
            losses.append(F.cross_entropy(logits.float(), batch.codes[:, k, : T - k].flatten()))
        return torch.stack(losses)


def main() -> None:
    """The command line."""
    parser = training.options(__doc__ or "", __file__, minutes=35.0)
    parser.add_argument("--codec", default="bundled:codec", help="as in a profile's codec.model")
    parser.add_argument("--songs", type=int, default=TRAIN, help="how many to train on")
    parser.add_argument("--samples", type=Path, metavar="FOLDER", help="don't train; write a page of sounds there")
    options = parser.parse_args()
    from model.nano import held_out

    console = Console()
    torch.set_num_threads(1)
    codec = load_codec(CodecSettings(model=options.codec, device="cpu"))
    test = material("test", TEST, codec, options.threads)
    if options.samples:
        torch.set_num_threads(options.threads)
        console.print(str(held_out.write_samples(Captioned.read(options.out), codec, test, options.samples)))
        return
    learned = material("train", options.songs, codec, options.threads)
    if not options.evaluate:
        console.print(f"songs: {len(learned.codes)} to train on, {len(test.codes)} held out; codec {codec.id}")
        train(options.minutes, options.out, learned, test, codec.digest, options.seed, options.threads, console)
    torch.set_num_threads(options.threads)
    model = Captioned.read(options.out)
    tables = held_out.table(model, learned, test), held_out.accents_table(model, codec, test)
    show(console, Path(__file__), options.out, *tables)


def train(
    minutes: float,
    out: Path,
    learned: Material,
    held_out: Material,
    codec: str,
    seed: int,
    threads: int,
    console: Console,
) -> None:
    """Cross-entropy, mean of the codebooks; AdamW under a cosine over the minutes.

    Matrix products and attention run in bfloat16 (three times as fast on a CPU that has it); weights stay float32.
    """
    torch.manual_seed(seed)
    model = Captioned().train()
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(_groups(model), lr=RATES[0], betas=(0.9, 0.95), fused=True)
    watched = batch_of(held_out, [(i, 0) for i in range(min(8, len(held_out.codes)))], 10 * FRAME_RATE)

    def aside() -> str:
        with torch.no_grad():
            return ", held out " + " ".join(f"{loss:.3f}" for loss in model(watched).tolist())

    with ThreadPoolExecutor(threads) as pool:
        training.fit(
            out,
            model,
            optimiser,
            training.Schedule(minutes, RATES, WARM_UP, clip=1.0),
            console,
            batches=lambda step: (training_batch(learned, seed, number) for number in count(step)),
            gradients=lambda batch, *_: training.spread(
                pool, parameters, partial(_gradients, model), _split(batch, threads)
            ),
            write=lambda _: model.write(out, codec),
            losses=[f"codebook {k}" for k in range(1, 1 + model.decoder.geometry.codebooks)],
            aside=aside,
        )


def training_batch(learned: Material, seed: int, number: int) -> Batch:
    """Batch number n: random crops at any frame; depends on the seed and n alone."""
    rng = np.random.default_rng([seed, number])
    seconds, size, _ = CROPS[rng.choice(len(CROPS), p=[share for _, _, share in CROPS])]
    frames = seconds * FRAME_RATE
    at = rng.integers(0, (len(learned.codes), learned.codes.shape[-1] - frames + 1), (size, 2))
    batch = batch_of(learned, at.tolist(), frames)
    return batch._replace(keep=torch.from_numpy(rng.random(size) >= NULL_SHARE))


def batch_of(material: Material, at: Sequence[Sequence[int]], frames: int) -> Batch:
    """The crops of that many frames that begin at (song, frame), captions kept."""
    codes = np.stack([material.codes[song, :, first : first + frames] for song, first in at]).astype(np.int64)
    text = tokenize([material.captions[song] for song, _ in at])
    return Batch(torch.from_numpy(codes), text, torch.ones(len(codes), dtype=torch.bool))


def tokenize(captions: list[str]) -> Text:
    """Captions as bytes, as `Semantic.tokenize` reads prompts for this T5."""
    tokens = ByT5Tokenizer()(captions, padding=True, return_tensors="pt")
    return Text(tokens["input_ids"], tokens["attention_mask"].bool())


def _split(batch: Batch, parts: int) -> list[Batch]:
    """Equal shares of a batch."""
    size = math.ceil(len(batch.codes) / parts)
    shares = []
    for first in range(0, len(batch.codes), size):
        rows = slice(first, first + size)
        text = Text(batch.text.ids[rows], batch.text.present[rows])
        shares.append(Batch(batch.codes[rows], text, batch.keep[rows]))
    return shares


def _gradients(model: Captioned, batch: Batch) -> tuple[np.ndarray, tuple[Tensor, ...]]:
    """Losses of the codebooks [K], and the gradients of their mean in the order of the parameters."""
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    return losses.detach().numpy(), torch.autograd.grad(losses.mean(), list(model.parameters()))


def _groups(model: Captioned) -> list[dict[str, object]]:
    """Matrices decay; norms, biases and tables don't, and those of the codes learn faster."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        table = name in ("decoder.embed.weight", "t5.shared.weight")
        decay = DECAY if parameter.ndim > 1 and not table else 0.0
        groups.setdefault((decay, TABLES if name == "decoder.embed.weight" else 1.0), []).append(parameter)
    return [{"params": found, "weight_decay": decay, "faster": faster} for (decay, faster), found in groups.items()]


if __name__ == "__main__":
    main()
