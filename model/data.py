"""Shards to batches: exact, resumable, the same whatever the number of workers and ranks.

The order of training samples is a pure function of a seed: sample n of the endless sequence lies in epoch n // rows,
and an epoch shuffles shards, then row groups, then the rows of a buffer of row groups. Global batch b is samples
[b B, (b + 1) B) of that sequence and each rank takes its slice of it, so no sample is seen twice in an epoch, a
position is one number, and two ranks train on what one would with the doubled batch. Workers only read ahead.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from model.settings import Reduction
from pipeline.errors import SettingsError, ShardError
from pipeline.shards import Shard, Spec
from pipeline.shards.validator import MANIFEST, release_digest

BUFFER_GROUPS = 32  # row groups whose rows are mixed: about a thousand rows, 64 MB


@dataclass(frozen=True)
class Release:
    """What the manifest of a release says.

    Attributes:
        digest: SHA-256 over the shards' digests and the settings'; the id is its beginning.
        shards: by split, the files.
    """

    path: Path
    id: str
    digest: str
    shards: dict[str, list[Path]]


def open_release(folder: str | Path) -> Release:
    """The release in a folder.

    Raises:
        ShardError: the folder holds none, or a shard is missing or cut short.
    """
    folder = Path(folder)
    hint = "Name a folder under releases/ of a data folder; `dvmset validate` checks it."
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        digest = release_digest((entry["sha256"] for entry in manifest["shards"]), manifest["settings"]["digest"])
        sizes = {(entry["split"], folder / Path(entry["name"]).name): entry["bytes"] for entry in manifest["shards"]}
        release = Release(folder, manifest["id"], digest, {})
    except FileNotFoundError:
        raise ShardError(f"{folder} is not a release: it has no {MANIFEST}.", hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{folder / MANIFEST} can't be read: {error!r}.", hint=hint) from error
    for (split, path), size in sizes.items():
        if not path.is_file() or path.stat().st_size != size:
            raise ShardError(f"{path} is missing or not of {size} bytes, as the manifest has it.", hint=hint)
        release.shards.setdefault(split, []).append(path)
    return release


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
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.codes)


class Order(NamedTuple):
    """An epoch: row numbers [N], and where each row's crop begins [N], a share of the seconds it could begin at."""

    rows: np.ndarray
    offsets: np.ndarray


class Clips:
    """The clips of some shards, by row number. Threads may share it.

    Args:
        paths: the shards of a split.
        crop_s: seconds of a crop; a shorter clip is padded.
        reduction: which rhythm curve is read.

    Raises:
        ShardError: a shard that can't be opened, or shards that differ in what they hold.
    """

    def __init__(self, paths: Sequence[Path], *, crop_s: int, reduction: Reduction) -> None:
        shards = [Shard(path) for path in sorted(paths)]
        if not shards:
            raise ShardError("There are no shards to read.", hint="Give the shards of a release.")
        self.spec: Spec = shards[0].spec
        for shard in shards:
            if shard.spec != self.spec:
                raise ShardError(
                    f"{shard.path} was made with other models or settings than {shards[0].path}.",
                    hint="Take the shards of one release; `dvmset validate` checks it.",
                )
        self.crop_s, self.reduction = crop_s, reduction
        self.groups = [(shard, group) for shard in shards for group in range(shard.row_groups)]
        self.first = np.cumsum([0, *(shard.group_rows(group) for shard, group in self.groups)])
        self._locks = [Lock() for _ in self.groups]
        self._read = lru_cache(maxsize=2 * BUFFER_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return int(self.first[-1])

    def order(self, seed: int, epoch: int) -> Order:
        """The rows in the order of a training epoch."""
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
        return Order(np.concatenate(rows), rng.random(len(self)))

    def batch(self, rows: Sequence[int] | np.ndarray, offsets: Sequence[float] | np.ndarray) -> Batch:
        """Crops of the given rows.

        Args:
            rows: row numbers [B].
            offsets: [B] where each crop begins, as a share in [0, 1) of the whole seconds it could begin at.

        Raises:
            ShardError: a page that doesn't match its checksum.
        """
        spec, size, seconds = self.spec, len(rows), self.crop_s
        # Made by torch for its alignment, on which the last bits of a product may depend.
        codes = torch.zeros(size, spec.codebooks, seconds * spec.code_hz, dtype=torch.int16)
        clip_global = torch.zeros(size, seconds * spec.global_hz, spec.vision_dim, dtype=torch.float16)
        curve = torch.zeros(size, seconds * spec.curve_hz, dtype=torch.float16)
        present = torch.zeros(size, seconds * spec.global_hz, dtype=torch.bool)
        valid = torch.zeros(size, seconds * spec.code_hz, dtype=torch.bool)
        targets = [tensor.numpy() for tensor in (codes, clip_global, curve, present, valid)]
        for row, offset, c, g, d, p, v in zip(rows, offsets, *targets, strict=True):
            clip = self._row(row)
            whole = clip["codes"].shape[1] // spec.code_hz
            start = int(offset * max(1, whole - seconds + 1))
            piece = clip["codes"][:, start * spec.code_hz : (start + seconds) * spec.code_hz]
            c[:, : piece.shape[1]] = piece
            v[: piece.shape[1]] = True
            piece = clip["clip_global"][start * spec.global_hz : (start + seconds) * spec.global_hz]
            g[: len(piece)] = piece
            p[: len(piece)] = True
            piece = clip[self.reduction][start * spec.curve_hz : (start + seconds) * spec.curve_hz]
            d[: len(piece)] = piece
        return Batch(codes.long(), clip_global.float(), curve.float(), present, valid)

    def _row(self, row: int) -> dict[str, Any]:
        group = int(np.searchsorted(self.first, row, side="right")) - 1
        with self._locks[group]:  # whoever wants the same group waits, instead of reading it again
            return self._read(group)[row - int(self.first[group])]

    def _read_group(self, number: int) -> list[dict[str, Any]]:
        shard, group = self.groups[number]
        return shard.read(group, ("clip_global", self.reduction, "codes"))


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
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as pool:
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
        """This rank's part of global batch number `position`.

        Raises:
            ShardError: as `Clips.batch`.
        """
        first = (position * self.world + self.rank) * self.size
        picked = [(self._order(self.seed, n // len(self.clips)), n) for n in range(first, first + self.size)]
        rows = [int(order.rows[n % len(self.clips)]) for order, n in picked]
        offsets = [float(order.offsets[n % len(self.clips)]) for order, n in picked]
        return self.clips.batch(rows, offsets)


def in_order(clips: Clips, batch: int, *, most: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The first crop of each clip for validation, or of `most` clips spread over the split; ranks take turns."""
    number = min(most, len(clips))
    rows = np.arange(number) * len(clips) // max(1, number)
    for first in range(rank * batch, number, world * batch):
        part = rows[first : first + batch]
        yield clips.batch(part, np.zeros(len(part)))
