"""Reading shards: one row group at a time, arrays as views of the bytes that were read."""

from __future__ import annotations

import random
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, chain, groupby, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ShardError
from pipeline.shards.pages import RawPages
from pipeline.shards.schema import COLUMNS, SCHEMA_VERSION, Blob, Spec, arrow_schema

_BROKEN = (OSError, ValueError, pa.ArrowException)  # what pyarrow raises for bytes that aren't what they should be
_AT_ONCE = 4  # row groups that are read together: more take more memory, and hardly less time
_REPLACE = "Fetch the file again, or delete it and run `dvmset release`: it is written anew from the features."


class Shard:
    """One shard, open for reading. Safe to share between threads; a process opens its own.

    Args:
        path: local path of the Parquet file.

    Attributes:
        spec: widths, rates, models and settings of the rows.
        rows: number of rows.
        row_groups: number of row groups; each but the last has `GROUP_ROWS` rows.

    Raises:
        ShardError: no such file, cut short, not one of ours, or of another schema version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            file = self._open()
        except FileNotFoundError:
            raise ShardError(f"There is no shard {self.path}.", hint=_REPLACE) from None
        except _BROKEN as error:
            raise ShardError(
                f"{self.path} can't be opened: it is cut short, damaged or no Parquet file ({error}).", hint=_REPLACE
            ) from error
        self._metadata = file.metadata
        self._local = threading.local()  # pyarrow's reader must not be used by two threads at a time
        self._local.file = file
        self.spec = _spec(self.path, file.schema_arrow, self._metadata.metadata or {})
        self._raw = RawPages(self.path, self._metadata, self.spec.blobs)
        self.rows: int = self._metadata.num_rows
        self.row_groups: int = self._metadata.num_row_groups

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for group in range(self.row_groups):
            yield from self.read(group)

    def group_rows(self, group: int) -> int:
        """Number of rows of a row group."""
        return int(self._metadata.row_group(group).num_rows)

    def first_row(self, group: int) -> int:
        """Index within the shard of a row group's first row."""
        return sum(self.group_rows(g) for g in range(group))

    def find(self, clip_id: str, columns: Sequence[str] | None = None) -> dict[str, Any] | None:
        """The row of a clip, if it is here; one row group is read, found by its statistics, since rows ascend.

        Raises:
            ShardError: as `read`.
        """
        at = list(COLUMNS).index("clip_id")
        last = lambda group: self._metadata.row_group(group).column(at).statistics.max  # noqa: E731
        group = bisect_left(range(self.row_groups), clip_id, key=last)
        if group == self.row_groups:
            return None
        names = list(columns or COLUMNS)
        for row in self.read(group, list(dict.fromkeys(["clip_id", *names]))):
            if row["clip_id"] == clip_id:
                return {name: row[name] for name in names}
        return None

    def read(self, group: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of one row group, page checksums verified; see `read_several`."""
        return self.read_several([group], columns)[0]

    def read_several(self, groups: Sequence[int], columns: Sequence[str] | None = None) -> list[list[dict[str, Any]]]:
        """The rows of each of some row groups, page checksums verified.

        Args:
            groups: indices of row groups, 0..row_groups - 1. The more, the less time each takes, and memory is theirs.
            columns: the columns wanted, all by default; what isn't asked for isn't read.

        Returns:
            Per row group one dict per row, as `Row(**row)` takes it if no column was left out. Arrays are views of the
            row group's memory in the shapes of `spec.blobs`: a row that is kept keeps the row group's arrays alive.

        Raises:
            ShardError: damage; the message names file, rows and column. Or an unknown column or group.
        """
        names = list(COLUMNS) if columns is None else list(columns)
        if unknown := [n for n in names if n not in COLUMNS]:
            raise ShardError(f"Shards have no column {', '.join(unknown)}.", hint=f"Use some of {', '.join(COLUMNS)}.")
        if beyond := [group for group in groups if not 0 <= group < self.row_groups]:
            raise ShardError(f"{self.path} has {self.row_groups} row groups; there is no group {beyond[0]}.")
        try:
            loaded = self._load(groups, names)
        except _BROKEN as error:
            if len(groups) > 1:  # which of them is it?
                return [self.read(group, columns) for group in groups]
            (group,) = groups
            first = self.first_row(group)
            which = ", ".join(f"{name} ({why})" for name, why in self.damage(group, names)) or f"? ({error})"
            raise ShardError(
                f"{self.path} is damaged in row group {group} (rows {first} to {first + self.group_rows(group) - 1}), "
                f"column {which}.",
                hint=_REPLACE,
            ) from error
        return [[dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)] for values in loaded]

    def damage(self, group: int, columns: Sequence[str] | None = None) -> list[tuple[str, str]]:
        """The columns of a row group that can't be read, as (column, why); empty if all is well."""
        found = []
        for name in columns or COLUMNS:
            try:
                self._load([group], [name])
            except _BROKEN as error:
                found.append((name, str(error).strip().splitlines()[0]))
        return found

    def _load(self, groups: Sequence[int], names: Sequence[str]) -> list[list[list[Any]]]:
        """The values of each column, row group by row group.

        Those of small columns are read first and at once: the bytes of arrays drive all that pyarrow works with out of
        the processor's caches, and after them it takes thrice as long.
        """
        blobs = [name for name in names if name in self.spec.blobs]
        loaded = self._decoded(groups, [name for name in names if name not in self.spec.blobs])
        for group, values in zip(groups, loaded, strict=True):
            values |= self._raw.read(group, blobs) if blobs else {}
            (others,) = self._decoded([group], [name for name in blobs if name not in values])
            values |= others
        return [[values[name] for name in names] for values in loaded]

    def _decoded(self, groups: Sequence[int], names: list[str]) -> list[dict[str, list[Any]]]:
        """The values of some columns as pyarrow reads them, row group by row group."""
        found: list[dict[str, list[Any]]] = [{} for _ in groups]
        if not names:
            return found
        table = self._file().read_row_groups(groups, columns=names, use_threads=False)
        ends = list(accumulate(map(self.group_rows, groups), initial=0))
        if table.num_rows != ends[-1]:
            raise ValueError(f"{table.num_rows} rows where the file says {ends[-1]}")
        for name in names:
            column = self._decode(name, table.column(name))
            for values, (first, last) in zip(found, pairwise(ends), strict=True):
                values[name] = column[first:last]
        return found

    def _open(self, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        # Without `pre_buffer`, bytes aren't handed from one of pyarrow's threads to another, which takes a third of the
        # time of small columns, and two thirds on a busy machine.
        return pq.ParquetFile(self.path, metadata=metadata, page_checksum_verification=True, pre_buffer=False)

    def _file(self) -> pq.ParquetFile:
        """This thread's reader."""
        if not hasattr(self._local, "file"):
            self._local.file = self._open(self._metadata)
        file: pq.ParquetFile = self._local.file
        return file

    def _decode(self, name: str, column: pa.ChunkedArray) -> list[Any]:
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        if name in self.spec.blobs:
            return _arrays(array, self.spec.blobs[name])
        if pa.types.is_list(array.type):
            bounds = np.asarray(array.offsets).tolist()
            flat = np.asarray(array.values)
            return [flat[a:b] for a, b in pairwise(bounds)]
        values: list[Any] = array.to_pylist()
        return values


_Place = tuple[Shard, int]  # a row group


def read_rows(
    paths: Iterable[str | Path], columns: Sequence[str] | None = None, *, threads: int = 2
) -> Iterator[dict[str, Any]]:
    """All rows of some shards, in order; read by `threads` threads, ahead of whoever takes the rows."""
    groups = ((shard, group) for shard in map(Shard, paths) for group in range(shard.row_groups))
    found = _read_ahead(_parts(groups), columns, threads)
    return chain.from_iterable(rows for part in found for rows in part.values())


def shuffled_rows(
    paths: Iterable[str | Path],
    seed: int,
    columns: Sequence[str] | None = None,
    *,
    block: int = 32,
    threads: int = 2,
) -> Iterator[dict[str, Any]]:
    """All rows of some shards in an order drawn from `seed`.

    The row groups of all shards are permuted and read in blocks; the rows of a block are permuted again. Unlike a
    buffer that rows trickle out of, a block holds no row group longer than it needs, so memory is `block` row groups.
    """
    order = random.Random(seed)
    groups = [(shard, group) for shard in map(Shard, paths) for group in range(shard.row_groups)]
    order.shuffle(groups)
    blocks = [groups[first : first + block] for first in range(0, len(groups), block)]
    parts = (part for drawn in blocks for part in _parts(sorted(drawn, key=lambda place: (place[0].path, place[1]))))
    ahead = _read_ahead(parts, columns, threads)
    for drawn in blocks:
        found: dict[_Place, list[dict[str, Any]]] = {}
        while len(found) < len(drawn):
            found |= next(ahead)
        rows = [row for place in drawn for row in found[place]]
        del found  # a row alone keeps what it needs
        order.shuffle(rows)
        yield from rows


def _parts(groups: Iterable[_Place]) -> Iterator[tuple[Shard, list[int]]]:
    """Row groups of one shard that come one after the other, a few at a time."""
    for shard, its in groupby(groups, key=lambda place: place[0]):
        while part := [group for _, group in islice(its, _AT_ONCE)]:
            yield shard, part


def _read_ahead(
    parts: Iterable[tuple[Shard, list[int]]], columns: Sequence[str] | None, threads: int
) -> Iterator[dict[_Place, list[dict[str, Any]]]]:
    """The rows of each row group, part by part; pyarrow lets go of the GIL, so threads do run side by side."""
    pending: deque[tuple[Shard, list[int], Future[list[list[dict[str, Any]]]]]] = deque()

    def first() -> dict[_Place, list[dict[str, Any]]]:
        shard, part, rows = pending.popleft()
        return {(shard, group): its for group, its in zip(part, rows.result(), strict=True)}

    with ThreadPoolExecutor(threads) as pool:
        for shard, part in parts:
            pending.append((shard, part, pool.submit(shard.read_several, part, columns)))
            if len(pending) > threads:
                yield first()
        while pending:
            yield first()


def _spec(path: Path, schema: pa.Schema, metadata: Mapping[bytes, bytes]) -> Spec:
    version = metadata.get(b"dvmset.schema_version")
    if version is None:
        raise ShardError(f"{path} is a Parquet file, but not a shard of dvmset.", hint="Name a shard of a release.")
    if version != str(SCHEMA_VERSION).encode():
        raise ShardError(
            f"{path} has schema version {version.decode()}; this dvmset reads version {SCHEMA_VERSION}.",
            hint="Use the dvmset that wrote it, or make the release anew with this one.",
        )
    try:
        spec = Spec.from_metadata(metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"The metadata of {path} can't be read: {error}.", hint=_REPLACE) from error
    expected = arrow_schema(spec)
    if missing := [n for n in expected.names if n not in schema.names]:
        raise ShardError(f"{path} lacks the column {', '.join(missing)}.", hint=_REPLACE)
    if not schema.equals(expected):
        pairs = zip(expected, schema, strict=False)
        other = (f"{a.name} is {_kind(b)}, not {_kind(a)}" for a, b in pairs if not a.equals(b))
        which = next(other, "a column too many")
        raise ShardError(f"{path} isn't laid out as schema version {SCHEMA_VERSION}: {which}.", hint=_REPLACE)
    return spec


def _kind(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"


def _arrays(array: pa.Array, blob: Blob) -> list[np.ndarray]:
    """A binary column as one view per row; ValueError if a cell can't have that shape."""
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(array) + 1, 4 * array.offset)
    sizes = np.diff(bounds)
    if np.any(odd := sizes % blob.step_bytes):
        raise ValueError(f"{sizes[np.argmax(odd > 0)]} bytes are no whole number of steps of {blob.step_bytes}")
    flat = np.frombuffer(data or b"", blob.dtype, bounds[-1] // np.dtype(blob.dtype).itemsize)
    ends = (bounds // np.dtype(blob.dtype).itemsize).tolist()
    return [flat[a:b].reshape(blob.shape) for a, b in pairwise(ends)]
