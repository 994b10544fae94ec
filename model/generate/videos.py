"""From video files to files with music: checked before the work begins, written whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model import runs
from model.generate.composing import Scene, compose, prompt_seconds, watch
from model.generate.models import Models
from model.generate.options import Options
from model.generate.sound import render
from pipeline import __version__
from pipeline.errors import DvmsetError, SourceError
from pipeline.loudness import Mastering, limited, master
from pipeline.media import check_integrity, check_mux, mux, write_wav
from pipeline.storage import Store

LUFS, PEAK_DB = -14.0, -1.0  # what streaming services play at; headroom for what AAC adds to a peak
HIGHEST_RATE = 48_000  # Hz; for an estimate of the room that the sound takes on disk
BATCH = 4

OnStep = Callable[[str, float, float], None]  # what is being done, seconds of video done, of how many


def quiet(*_: object) -> None:
    """The `OnStep` that tells nobody."""


@dataclass(frozen=True)
class Task:
    """A video, and the file to make of it."""

    video: Path
    out: Path


@dataclass(frozen=True)
class Result:
    """What was made.

    Attributes:
        video, out: as asked for.
        seconds: of the video's picture, from time zero to its end, and of the music.
        scene: what was seen.
        codes: [K, 50 S] int16 that were drawn.
        mastering: what was done to the sound's level.
        record: what stands in the output's metadata as JSON, under `comment`.
        took_s: seconds that each step took; a batch composes together, and each of it says the time for all.
    """

    video: Path
    out: Path
    seconds: float
    scene: Scene
    codes: np.ndarray
    mastering: Mastering
    record: dict[str, Any]
    took_s: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the arrays."""
        return {
            "video": str(self.video),
            "out": str(self.out),
            "seconds": self.seconds,
            "loudness": asdict(self.mastering),
            "took_s": {step: round(s, 3) for step, s in self.took_s.items()},
            "record": self.record,
        }


def generate(
    video: Path,
    out: Path,
    models: Models,
    options: Options = Options(),  # noqa: B008  (frozen)
    on_step: OnStep = quiet,
) -> Result:
    """Makes music for a video: an mp4 with its pictures as they are and new sound, or a WAV file.

    The music lasts from time zero to the end of the picture, to the sample; what the video's own sound has beyond that
    is cut off with it. The same seed gives the same file on the same machine with the same number of threads.

    Args:
        video: any file that `pipeline.media` reads, with a video stream.
        out: ends in `.mp4`, or in `.wav` with `audio_only`; its folder has to be there.
        models: what to make it with.
        options: how.
        on_step: told how far it is.

    Raises:
        DvmsetError: it can't be done; nothing is left behind then.
    """
    ((_, made),) = generate_batch([Task(video, out)], models, options, on_step=on_step)
    if isinstance(made, DvmsetError):
        raise made
    return made


def generate_batch(
    tasks: Sequence[Task],
    models: Models,
    options: Options,
    *,
    batch: int = BATCH,
    on_step: OnStep = quiet,
) -> Iterator[tuple[Task, Result | DvmsetError]]:
    """As `generate` for each of many videos, `batch` of them decoded at a time, the short ones first.

    Each comes out as it would alone: it has its own generator, and what its codes depend on is computed by itself. Only
    the decoder's matrix products are shared; where a library rounds those otherwise for another batch size (ours on a
    CPU don't), a draw may fall otherwise too.

    Yields:
        Each task with its result, or with why there is none; what fails first comes first.

    Raises:
        SettingsError: the options don't fit the model.
    """
    checked = []
    for task in tasks:
        try:
            checked.append((check(task, options), task))
        except DvmsetError as error:
            yield task, error
    window_s = models.musician.preset.train.crop_s
    if options.prompt_s is not None:
        prompt_seconds(window_s, options.prompt_s)
    checked.sort(key=lambda pair: pair[0])
    for first in range(0, len(checked), batch):
        yield from _together(checked[first : first + batch], models, options, on_step)


def check(task: Task, options: Options) -> float:
    """Looks at all that can be known before the work begins, without a model.

    Returns:
        Seconds of the picture, from time zero to its end.

    Raises:
        DvmsetError: there is no such video, or what is asked for can't be written.
    """
    video, out = task.video, task.out
    suffix = ".wav" if options.audio_only else ".mp4"
    if not video.is_file():
        raise DvmsetError(f"There is no file {video}.", hint="Give a video file.")
    if out.suffix.lower() != suffix:
        raise DvmsetError(
            f"{out} doesn't end in {suffix}.", hint="Pictures with music are an .mp4, --audio-only makes a .wav."
        )
    if out.exists() and out.samefile(video):
        raise DvmsetError(f"{out} is the video itself.", hint="Name another output.")
    if out.is_dir():
        raise DvmsetError(f"{out} is a folder.", hint="Name a file in it.")
    if out.exists() and not options.overwrite:
        raise DvmsetError(f"{out} is there already.", hint="Name another output, or replace it by --force.")
    with _as_error(video, "read"):
        found = check_integrity(video, sound=False).video
        if found is None:
            raise SourceError(f"{video.name} has no picture, only sound.", "unsupported", hint="Give a video file.")
        if not options.audio_only:
            check_mux(video)
    seconds = found.start_s + found.duration_s
    if seconds <= 0:
        raise SourceError(f"{video.name} is 0 s long.", "unsupported", hint="Give a video of some length.")
    with _as_error(out, "written"):
        tempfile.TemporaryFile(dir=out.parent).close()
        free = shutil.disk_usage(out.parent).free
    samples = seconds * HIGHEST_RATE
    needed = 4 * samples + (3 * samples if options.audio_only else video.stat().st_size + samples)
    if needed > free:
        raise DvmsetError(
            f"{out.parent} has {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed.", hint="Make room."
        )
    return seconds


def record(models: Models, options: Options) -> dict[str, Any]:
    """All that made a piece of music, for its file's metadata."""
    preset = models.musician.preset
    return {
        "made_by": f"dvmset {__version__}",
        "commit": runs.provenance()["commit"],
        "command": options.command,
        "options": options.drawing(),
        "preset": preset.name,
        "ablation": preset.ablation,
        "preset_digest": preset.digest(),
        "checkpoint": models.checkpoint,
        "models": models.digests(),
        "licences": models.licences(),
    }


def _together(
    group: Sequence[tuple[float, Task]], models: Models, options: Options, on_step: OnStep
) -> Iterator[tuple[Task, Result | DvmsetError]]:
    """Videos that are decoded in one batch."""
    watched = []
    for seconds, task in group:
        began, reduction = time.perf_counter(), models.musician.preset.rhythm.reduction
        told = partial(on_step, f"watching {task.video.name}")
        try:
            scene = watch(task.video, math.ceil(seconds), models.vision, reduction, told)
            watched.append((task, seconds, scene, time.perf_counter() - began))
        except DvmsetError as error:
            yield task, error
    if not watched:
        return
    began = time.perf_counter()
    whose = watched[0][0].video.name if len(watched) == 1 else f"for {len(watched)} videos"
    told = partial(on_step, f"composing {whose}")
    codes = compose([scene for _, _, scene, _ in watched], models.musician, options, told)
    composing_s = time.perf_counter() - began
    made_with = record(models, options)
    for (task, seconds, scene, watching_s), own in zip(watched, codes, strict=True):
        began = time.perf_counter()
        told = partial(on_step, f"writing {task.out.name}")
        try:
            mastering = _write(task, own, seconds, models, options, made_with, told)
        except DvmsetError as error:
            yield task, error
            continue
        took_s = {"watching": watching_s, "composing": composing_s, "writing": time.perf_counter() - began}
        yield task, Result(task.video, task.out, seconds, scene, own, mastering, made_with, took_s)


def _write(
    task: Task,
    codes: np.ndarray,
    seconds: float,
    models: Models,
    options: Options,
    made_with: dict[str, Any],
    on_part: Callable[[float, float], None],
) -> Mastering:
    rate, folder = models.codec.rate, task.out.parent
    metadata = {"comment": json.dumps(made_with)}
    with (
        _as_error(task.out, "written"),
        Store(folder).write(task.out.name) as path,
        tempfile.TemporaryFile(dir=folder) as raw,
    ):
        signal = render(codes, round(seconds * rate), models.codec, raw, on_part)
        mastering = master(signal, rate, lufs=LUFS, peak_db=PEAK_DB)
        blocks = (block[None] for block in limited(signal, rate, gain_db=mastering.gain_db, peak_db=PEAK_DB))
        if options.audio_only:
            write_wav(path, blocks, rate, metadata)
        else:
            mux(task.video, blocks, rate, path, metadata)
    return mastering


@contextmanager
def _as_error(path: Path, verb: str) -> Iterator[None]:
    """Faults of disks and folders as errors meant for a person."""
    try:
        yield
    except OSError as error:
        raise DvmsetError(
            f"{path} can't be {verb}: {error.strerror or error}.",
            hint="Check that its folder is there, its rights, and the room on its disk.",
        ) from error
