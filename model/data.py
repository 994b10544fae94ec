"""Shards to batches: exact, resumable, the same whatever the number of workers and ranks.

The order of training samples is a pure function of a seed: sample n of the endless sequence lies in epoch n // rows,
and an epoch shuffles shards, then row groups, then the rows of a buffer of row groups. Global batch b is samples
[b B, (b + 1) B) of that sequence and each rank takes its slice of it, so no sample is seen twice, a position is one
number, and two ranks train on what one would with the doubled batch. Workers only read ahead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from model.settings import Reduction
from pipeline.errors import SettingsError, ShardError
from pipeline.shards import Shard, Spec

BUFFER_GROUPS = 32  # row groups whose rows are mixed: about a thousand rows, 64 MB


@dataclass(frozen=True)
class Batch:
    """Crops of clips, from whole seconds on, so that the three rates stay aligned.

    Attributes:
        codes: [B, K, T50] int64; 0 behind a clip's end.
        clip_global: [B, T1, D] float32; zeros behind a clip's end.
        curve: [B, T25] float32 rhythm curve; zeros behind a clip's end.
        present: [B, T1] bool, False behind a clip's end.
        valid: [B, T50] bool, the same for codes.
    """

    codes: Tensor
    clip_global: Tensor
    curve: Tensor
    present: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        return type(self)(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.codes)


class Clips:
    """The clips of one split of a release, by row number.

    Args:
        release: folder of the release.
        split: train, validation or test.
        crop_s: seconds of a crop; a shorter clip is padded.
        reduction: which rhythm curve is read.

    Raises:
        ShardError: no such split, a damaged shard, or shards that differ in what they hold.
    """

    def __init__(self, release: str | Path, split: str, *, crop_s: int, reduction: Reduction) -> None:
        paths = sorted(Path(release).glob(f"{split}-*.parquet"))
        if not paths:
            raise ShardError(f"{release} has no shard of split {split}.", hint="Name the folder of a release.")
        shards = [Shard(path) for path in paths]
        self.spec: Spec = shards[0].spec
        for shard in shards:
            if shard.spec != self.spec:
                raise ShardError(f"{shard.path} was made with other models or settings than {paths[0]}.")
        self.crop_s = crop_s
        self.groups = [(shard, group) for shard in shards for group in range(shard.row_groups)]
        self.first = np.cumsum([0, *(shard.group_rows(group) for shard, group in self.groups)])
        self.columns = ("clip_global", reduction, "codes")
        self._read = lru_cache(maxsize=2 * BUFFER_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return int(self.first[-1])

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Row numbers [N] in the order of a training epoch."""
        rng = np.random.default_rng([seed, epoch])
        of_shard: dict[Path, list[int]] = {}
        for number, (shard, _) in enumerate(self.groups):
            of_shard.setdefault(shard.path, []).append(number)
        shards = list(of_shard.values())
        groups = [g for s in rng.permutation(len(shards)) for g in rng.permutation(shards[s])]
        rows = []
        for begin in range(0, len(groups), BUFFER_GROUPS):
            buffer = [np.arange(self.first[g], self.first[g + 1]) for g in groups[begin : begin + BUFFER_GROUPS]]
            rows.append(rng.permutation(np.concatenate(buffer)))
        return np.concatenate(rows)

    def batch(self, rows: Sequence[int], offsets: Sequence[float]) -> Batch:
        """Crops of the given rows.

        Args:
            rows: row numbers.
            offsets: where each crop begins, as a share in [0, 1) of the whole seconds it could begin at.

        Raises:
            ShardError: a page that doesn't match its checksum.
        """
        spec, seconds = self.spec, self.crop_s
        size = len(rows)
        codes = np.zeros((size, spec.codebooks, seconds * spec.code_hz), np.int64)
        clip_global = np.zeros((size, seconds * spec.global_hz, spec.vision_dim), np.float32)
        curve = np.zeros((size, seconds * spec.curve_hz), np.float32)
        present = np.zeros(clip_global.shape[:2], bool)
        valid = np.zeros((size, codes.shape[2]), bool)
        for i, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
            clip = self._row(row)
            whole = clip["codes"].shape[1] // spec.code_hz
            start = int(offset * max(1, whole - seconds + 1))
            for target, source, rate in (
                (codes[i].T, clip["codes"].T, spec.code_hz),
                (clip_global[i], clip["clip_global"], spec.global_hz),
                (curve[i], clip[self.columns[1]], spec.curve_hz),
            ):
                piece = source[start * rate : (start + seconds) * rate]
                target[: len(piece)] = piece
            present[i, : clip["clip_global"].shape[0] - start * spec.global_hz] = True
            valid[i, : clip["codes"].shape[1] - start * spec.code_hz] = True
        return Batch(*map(torch.from_numpy, (codes, clip_global, curve, present, valid)))

    def _row(self, row: int) -> dict[str, Any]:
        group = int(np.searchsorted(self.first, row, side="right")) - 1
        return self._read(group)[row - int(self.first[group])]

    def _read_group(self, number: int) -> list[dict[str, Any]]:
        shard, group = self.groups[number]
        return shard.read(group, self.columns)


class Loader:
    """An endless stream of training batches, read ahead by threads.

    Args:
        clips: what to read.
        batch: samples per rank and step.
        seed: of order and crops.
        rank, world: which slice of each global batch is wanted.
        workers: threads that read ahead; what comes out doesn't depend on them.

    Attributes:
        position: number of the next global batch; set it to go on from there.
        waited_s: seconds that `next` has waited so far.

    Raises:
        SettingsError: there is nothing to train on.
    """

    def __init__(
        self, clips: Clips, batch: int, *, seed: int, rank: int = 0, world: int = 1, workers: int = 2
    ) -> None:
        if not len(clips):
            raise SettingsError("The split has no clips to train on.", hint="Build with more sources.")
        self.clips, self.size, self.seed = clips, batch, seed
        self.rank, self.world, self.workers = rank, world, workers
        self.position = 0
        self.waited_s = 0.0
        self._order = lru_cache(maxsize=2)(clips.order)

    def __iter__(self) -> Iterator[Batch]:
        pending: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for ahead in count(self.position):
                    pending.append(pool.submit(self.read, ahead))
                    if len(pending) > 2 * self.workers:
                        began = time.perf_counter()
                        batch = pending.popleft().result()
                        self.waited_s += time.perf_counter() - began
                        self.position += 1
                        yield batch
            finally:
                for future in pending:
                    future.cancel()

    def read(self, position: int) -> Batch:
        """This rank's part of global batch number `position`."""
        first = (position * self.world + self.rank) * self.size
        samples = range(first, first + self.size)
        rows = [int(self._order(self.seed, n // len(self.clips))[n % len(self.clips)]) for n in samples]
        offsets = [float(np.random.default_rng([self.seed, n, 1]).random()) for n in samples]
        return self.clips.batch(rows, offsets)


def in_order(clips: Clips, batch: int, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """Every clip once, its first crop, for validation; ranks take turns."""
    for first in range(rank * batch, len(clips), world * batch):
        rows = range(first, min(first + batch, len(clips)))
        yield clips.batch(rows, [0.0] * len(rows))
