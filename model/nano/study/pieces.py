"""What the study does, piece by piece: training runs, compositions and their scores.

A piece is a pure function of what it names, and its file or folder carries the digest of all that: what is there is
never made again, and what is interrupted goes on (a run from its last checkpoint, all else from its start).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from model import checkpoints, evaluate, runs, semantic
from model.decoder import loss
from model.generate.composing import Scene, compose
from model.generate.models import PRECISIONS
from model.generate.options import Options
from model.nano.study.benchmark import Clips, Size, read_clips
from model.rhythm import CODE_RATE
from model.semantic import fixed_seed
from model.settings import Preset
from model.train import Job, train
from model.vidmusician import VidMusician, build
from pipeline.codec import load_codec
from pipeline.codec import weights_digest as codec_digest
from pipeline.config import Profile
from pipeline.nano.songs import RATE
from pipeline.storage import Store, digest

TOGETHER = 24  # videos composed for at a time
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
"""For glibc: freed memory isn't handed back. A step allocates its logits anew, and without this a third of its time
goes into fresh pages."""
Origin = Literal["reference", "reconstructed", "ignoring"]


class Piece(Protocol):
    """Something that is made once."""

    @property
    def title(self) -> str:
        """For people."""

    def done(self, work: Store) -> bool:
        """Whether the study's folder has it."""

    def make(self, work: Store) -> None:
        """Makes it there."""


@dataclass(frozen=True)
class Run:
    """A stage of training.

    Attributes:
        name: of the variant.
        preset: with the stage's own steps and learning rate.
        release: folder of the release, whose name carries its digest.
        start: the stage before.
    """

    name: str
    preset: Preset
    stage: int
    release: Path
    start: Run | None = None

    @property
    def title(self) -> str:
        """For people."""
        return f"train {self.name}, stage {self.stage}, seed {self.preset.train.seed}"

    @property
    def key(self) -> str:
        """SHA-256 over all that the weights depend on."""
        frozen = [
            checkpoints.weights_digest(self.preset.decoder.weights, self.preset.decoder.geometry),
            semantic.weights_digest(self.preset.semantic),
        ]
        settings = {n: v for n, v in self.preset.key().items() if n not in ("name", "ablation")}
        return digest([settings, self.stage, self.release.name, frozen, self.start.key if self.start else ""])

    @property
    def folder(self) -> str:
        """Within the study's folder."""
        return f"runs/{self.name}-{self.stage}-{self.preset.train.seed}-{self.key[:12]}"

    def done(self, work: Store) -> bool:
        """Whether it has come to its last step."""
        folder = Path(work.path(self.folder))
        return bool(runs.checkpoints(folder)) and runs.newest(folder).position.step >= self.preset.train.steps

    def make(self, work: Store) -> None:
        """Trains, from the last checkpoint if there is one."""
        folder = Path(work.path(self.folder))
        resume = bool(runs.checkpoints(folder))
        start = Path(work.path(self.start.folder)) if self.start and not resume else None
        outcome = train(Job(self.release, self.preset, self.stage, folder, start, resume, "rhythm study"))
        if not outcome.finished:
            raise KeyboardInterrupt

    def model(self, work: Store) -> VidMusician:
        """The trained model, in evaluation mode."""
        with fixed_seed():
            model = build(self.preset).eval()
        model.set_stage(model.load_trained(runs.newest(Path(work.path(self.folder))).weights()))
        model.decoder.to(PRECISIONS[self.preset.train.precision])
        return model


@dataclass(frozen=True)
class Composition:
    """Music by a trained model for the test videos.

    Attributes:
        swapped: each video is given the curve of the next one.
    """

    run: Run
    size: Size
    profile: Profile
    options: Options
    swapped: bool = False

    @property
    def title(self) -> str:
        """For people."""
        swapped = " with curves swapped" if self.swapped else ""
        return f"compose {self.run.name}, seed {self.run.preset.train.seed}{swapped}"

    @property
    def file(self) -> str:
        """Within the study's folder."""
        key = digest([self.run.key, self.size.test, self.options.drawing(), self.swapped])
        return f"music/{self.run.name}-{self.run.preset.train.seed}-{key[:12]}.npz"

    def done(self, work: Store) -> bool:
        """Whether it lies in the study's folder."""
        return work.exists(self.file)

    @torch.inference_mode()
    def make(self, work: Store) -> None:
        """Composes, and measures how well the model foretells each video's own music under the same conditions."""
        model = self.run.model(work)
        clips = read_clips(work, self.size, self.profile, "test")
        curves = clips.arrays[model.preset.rhythm.reduction]
        if self.swapped:
            curves = np.roll(curves, -1, axis=0)
        scenes = [
            Scene(self.size.seconds, seen, curve)
            for seen, curve in zip(clips.arrays["clip_global"], curves, strict=True)
        ]
        codes = [
            c
            for first in range(0, len(scenes), TOGETHER)
            for c in compose(scenes[first : first + TOGETHER], model, self.options, lambda *_: None)
        ]
        entropy = [
            _cross_entropy(model, scene, wanted)
            for scene, wanted in zip(scenes, clips.arrays["codes_follows"], strict=True)
        ]
        with work.write(self.file) as path, path.open("wb") as file:
            np.savez(file, codes=np.stack(codes), cross_entropy=np.array(entropy))


@dataclass(frozen=True)
class Score:
    """All metrics of some music for the test videos: a composition's, or what the set itself holds.

    Attributes:
        of: the composition; or the set's music that follows the cuts, the same through the codec, or the set's music
            that ignores the picture.
    """

    of: Composition | Origin
    size: Size
    profile: Profile
    set_key: str

    @property
    def title(self) -> str:
        """For people."""
        return f"score {self.of if isinstance(self.of, str) else self.of.title.removeprefix('compose ')}"

    @property
    def file(self) -> str:
        """Within the study's folder."""
        of = self.of if isinstance(self.of, str) else self.of.file
        key = digest([of, self.set_key, codec_digest(self.profile.codec), evaluate.DEFINITIONS])
        return f"scores/{Path(of).stem}-{key[:12]}.json"

    def done(self, work: Store) -> bool:
        """Whether it lies in the study's folder."""
        return work.exists(self.file)

    def make(self, work: Store) -> None:
        """Listens to the music and writes metric -> value of each video."""
        clips = read_clips(work, self.size, self.profile, "test")
        found: dict[str, list[float]] = {}
        for facts, heard, reference in zip(clips.facts, self._heard(work, clips), _references(clips), strict=True):
            for name, value in evaluate.follows(heard, facts["cuts_s"], reference).items():
                found.setdefault(name, []).append(value)
        if isinstance(self.of, Composition):
            with work.read(self.of.file) as path, np.load(path) as made:
                found["validation_ce"] = made["cross_entropy"].tolist()
        work.write_text(self.file, json.dumps(found) + "\n")

    def values(self, work: Store) -> dict[str, np.ndarray]:
        """Metric -> [videos], once made; NaN where a metric isn't defined."""
        return {name: np.array(values, float) for name, values in json.loads(work.read_text(self.file)).items()}

    def _heard(self, work: Store, clips: Clips) -> Iterator[evaluate.Heard]:
        if self.of == "reference":
            yield from _references(clips)
        elif self.of == "ignoring":
            yield from (evaluate.hear(_sound(audio), RATE) for audio in clips.arrays["audio_ignores"])
        else:
            codec = load_codec(self.profile.codec)
            codes = clips.arrays["codes_follows"]
            if isinstance(self.of, Composition):
                with work.read(self.of.file) as path, np.load(path) as made:
                    codes = made["codes"]
            yield from (evaluate.hear(codec.decode(c), codec.rate) for c in codes)


@contextmanager
def makers(jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes to make pieces in, of one thread each; None for one job, which is done in this process."""
    if jobs == 1:
        yield None
        return
    os.environ |= KEEP_MEMORY
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), partial(torch.set_num_threads, 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def make_all(
    pieces: Iterable[Piece], work: Store, pool: ProcessPoolExecutor | None, tell: Callable[[str], None]
) -> None:
    """Makes the pieces that aren't there yet; `tell` is given a line for each."""
    pieces = list(pieces)
    missing = [piece for piece in pieces if not piece.done(work)]
    if len(missing) < len(pieces):
        tell(f"{len(pieces) - len(missing)} of {len(pieces)} pieces are there already")
    for number, piece in enumerate(_made(missing, work, pool), start=1):
        tell(f"{number}/{len(missing)} {piece.title}")


def _made(pieces: list[Piece], work: Store, pool: ProcessPoolExecutor | None) -> Iterator[Piece]:
    """The pieces as they get done."""
    if pool is None:
        for piece in pieces:
            piece.make(work)
            yield piece
        return
    futures = {pool.submit(piece.make, work): piece for piece in pieces}
    for future in as_completed(futures):
        future.result()
        yield futures[future]


def _cross_entropy(model: VidMusician, scene: Scene, codes: np.ndarray) -> float:
    """Nats per code, mean of the codebooks, of a video's music under the scene's conditions."""
    wanted = torch.from_numpy(codes).long()[None]
    output = model(
        wanted,
        torch.from_numpy(scene.clip_global).float()[None],
        torch.from_numpy(scene.curve).float()[None],
        valid=torch.ones(1, CODE_RATE * scene.seconds, dtype=torch.bool),
    )
    return float(loss(output, wanted)[0])


def _references(clips: Clips) -> Iterator[evaluate.Heard]:
    yield from (evaluate.hear(_sound(audio), RATE) for audio in clips.arrays["audio_follows"])


def _sound(stored: np.ndarray) -> np.ndarray:
    return stored.astype(np.float32) / 32767
