"""Shards to batches: exact, resumable, the same whatever the number of workers and ranks.

The order of training samples is a pure function of a seed: sample n of the endless sequence lies in epoch n // rows,
and an epoch shuffles shards, then row groups, then the rows of a buffer of row groups. Global batch b is samples
[b B, (b + 1) B) of that sequence and each rank takes its slice of it, so no sample is seen twice in an epoch, a
position is one number, and two ranks train on what one would with the doubled batch. Workers only read ahead: a row
group is read once an epoch, and its crops are put where the order has them.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from model.settings import Reduction
from pipeline.errors import SettingsError, ShardError
from pipeline.shards import GROUP_ROWS, Shard, Spec, release_folder
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
    """The release in a folder, or the one that `releases/latest` names.

    Raises:
        ShardError: the folder holds none, or a shard is missing or cut short.
    """
    folder = Path(release_folder(folder))
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
        curve: [B, T25] float32 rhythm curve; its last value behind a clip's end.
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


class Crops:
    """Room for crops, which threads fill and batches are copied from. Reused: fresh memory costs more than reading.

    Args:
        spec: of the shards.
        seconds: of a crop.
        size: number of crops.
    """

    def __init__(self, spec: Spec, seconds: int, size: int) -> None:
        self.codes = np.empty((size, spec.codebooks, seconds * spec.code_hz), np.int16)
        self.clip_global = np.empty((size, seconds * spec.global_hz, spec.vision_dim), np.float16)
        self.curve = np.empty((size, seconds * spec.curve_hz), np.float16)
        self.seconds = np.empty((size, 1), np.int64)
        self.frames = np.empty((size, 1), np.int64)

    def put(self, place: int, codes: np.ndarray, clip_global: np.ndarray, curve: np.ndarray) -> None:
        """Fills one place with arrays that are at most as long as a crop."""
        frames, seconds, samples = codes.shape[1], len(clip_global), len(curve)
        self.codes[place, :, :frames], self.codes[place, :, frames:] = codes, 0
        self.clip_global[place, :seconds], self.clip_global[place, seconds:] = clip_global, 0
        self.curve[place, :samples], self.curve[place, samples:] = curve, curve[-1]  # T50 may be 2 T25 + 1
        self.frames[place], self.seconds[place] = frames, seconds

    def batch(self, first: int, last: int) -> Batch:
        """A copy of the crops at `first` to `last` - 1."""
        return Batch(
            codes=torch.from_numpy(self.codes[first:last]).long(),
            clip_global=torch.from_numpy(self.clip_global[first:last]).float(),
            curve=torch.from_numpy(self.curve[first:last]).float(),
            present=torch.from_numpy(np.arange(self.clip_global.shape[1]) < self.seconds[first:last]),
            valid=torch.from_numpy(np.arange(self.codes.shape[2]) < self.frames[first:last]),
        )


class Order(NamedTuple):
    """An epoch.

    Attributes:
        rows: [N] row numbers.
        offsets: [N] where each row's crop begins, as a share in [0, 1) of the whole seconds it could begin at.
        ends: where the buffers end, that is places in `rows` behind which no row group occurs again; the last is N.
    """

    rows: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray


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

    def __len__(self) -> int:
        return int(self.first[-1])

    def longest_s(self, enough: float) -> float:
        """Seconds of the longest clip, or of the first that is found to have `enough`; raises as `fill`."""
        longest = 0.0
        for shard, group in self.groups:
            longest = max([longest, *(row["seconds"] for row in shard.read(group, ("seconds",)))])
            if longest >= enough:
                break
        return longest

    def order(self, seed: int, epoch: int) -> Order:
        """The rows in the order of a training epoch."""
        rng = np.random.default_rng([seed, epoch])
        of_shard: dict[Path, list[int]] = {}
        for number, (shard, _) in enumerate(self.groups):
            of_shard.setdefault(shard.path, []).append(number)
        shards = list(of_shard.values())
        groups = [g for s in rng.permutation(len(shards)) for g in rng.permutation(shards[s])]
        buffers = []
        for begin in range(0, len(groups), BUFFER_GROUPS):
            rows = [np.arange(self.first[g], self.first[g + 1]) for g in groups[begin : begin + BUFFER_GROUPS]]
            buffers.append(rng.permutation(np.concatenate(rows)))
        return Order(np.concatenate(buffers), rng.random(len(self)), np.cumsum([len(rows) for rows in buffers]))

    def crops(self, rows: np.ndarray, offsets: np.ndarray) -> Batch:
        """Crops of the given rows, in that order; raises as `fill`."""
        room = Crops(self.spec, self.crop_s, len(rows))
        for task in self.tasks(room, rows, offsets):
            task()
        return room.batch(0, len(rows))

    def tasks(self, room: Crops, rows: np.ndarray, offsets: np.ndarray) -> list[Callable[[], None]]:
        """What is to be done, in any order, so that the crop of `rows[i]` stands at place i: a call per row group."""
        groups = np.searchsorted(self.first, rows, side="right") - 1
        places = {int(group): np.flatnonzero(groups == group) for group in dict.fromkeys(groups)}
        return [partial(self.fill, room, group, where, rows, offsets) for group, where in places.items()]

    def fill(self, room: Crops, group: int, places: np.ndarray, rows: np.ndarray, offsets: np.ndarray) -> None:
        """Reads a row group and puts its crops where they belong.

        Raises:
            ShardError: a page that doesn't match its checksum.
        """
        spec, seconds = self.spec, self.crop_s
        shard, number = self.groups[group]
        clips = shard.read(number, ("codes", "clip_global", self.reduction))
        for place in places:
            codes, clip_global, curve = clips[rows[place] - self.first[group]].values()
            start = int(offsets[place] * max(1, codes.shape[1] // spec.code_hz - seconds + 1))
            room.put(
                place,
                codes[:, start * spec.code_hz : (start + seconds) * spec.code_hz],
                clip_global[start * spec.global_hz : (start + seconds) * spec.global_hz],
                curve[start * spec.curve_hz : (start + seconds) * spec.curve_hz],
            )


class Loader:
    """An endless stream of training batches, read one buffer ahead by threads.

    Args:
        clips: what to read.
        batch: samples per rank and step.
        seed: of order and crops.
        rank, world: which slice of each global batch is wanted.
        workers: threads that read; what comes out doesn't depend on them.

    Attributes:
        position: number of the next global batch; set it, before iterating, to go on from there.
        waited_s: seconds that whoever took the batches has waited for them so far.

    Raises:
        SettingsError: there is nothing to train on.
    """

    def __init__(self, clips: Clips, batch: int, *, seed: int, rank: int = 0, world: int = 1, workers: int = 2) -> None:
        if not len(clips):
            raise SettingsError("The split has no clips to train on.", hint="Build with more sources.")
        self.clips, self.size, self.seed = clips, batch, seed
        self.rank, self.world, self.workers = rank, world, workers
        self.position = 0
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        try:
            began = time.perf_counter()
            for batch in self._batches(pool):
                self.waited_s += time.perf_counter() - began
                self.position += 1
                yield batch
                began = time.perf_counter()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        parts: list[Batch] = []
        missing = self.size
        for room, number, futures in self._read_ahead(pool):
            for future in futures:
                future.result()
            first = 0
            while first < number:
                last = min(number, first + missing)
                parts.append(room.batch(first, last))
                first, missing = last, missing - (last - first)
                if not missing:
                    yield parts[0] if len(parts) == 1 else joined(parts)
                    parts, missing = [], self.size

    def _read_ahead(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Crops, int, list[Future[None]]]]:
        """The rooms that buffers are read into, with the number of crops in each; two rooms take turns."""
        buffer = min(len(self.clips), BUFFER_GROUPS * GROUP_ROWS)
        size = buffer // self.world + self.size
        rooms = [Crops(self.clips.spec, self.clips.crop_s, size) for _ in range(2)]
        pending: deque[tuple[Crops, int, list[Future[None]]]] = deque()
        for room, (rows, offsets) in zip(cycle(rooms), self._buffers()):
            futures = [pool.submit(task) for task in self.clips.tasks(room, rows, offsets)]
            pending.append((room, len(rows), futures))
            if len(pending) == len(rooms):
                yield pending.popleft()

    def _buffers(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and offsets of this rank's samples, buffer by buffer, from the position on."""
        sample = self.position * self.world * self.size
        for epoch in count(sample // len(self.clips)):
            order = self.clips.order(self.seed, epoch)
            begin = epoch * len(self.clips)  # the sample that the epoch begins with
            for end in order.ends + begin:
                if end > sample:
                    samples = np.arange(sample, end)
                    mine = samples[samples // self.size % self.world == self.rank] - begin
                    yield order.rows[mine], order.offsets[mine]
                    sample = int(end)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch after another as one."""
    return Batch(**{f.name: torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(Batch)})


def in_order(clips: Clips, batch: int, *, most: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The first crop of each clip for validation, or of `most` clips spread over the split; ranks take turns."""
    number = min(most, len(clips))
    rows = np.arange(number) * len(clips) // max(1, number)
    for first in range(rank * batch, number, world * batch):
        part = rows[first : first + batch]
        yield clips.crops(part, np.zeros(len(part)))
