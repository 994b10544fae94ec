"""Array columns read straight from a shard's bytes: as fast as memory can be read and its checksum computed.

`write_shard` leaves each array column of a row group as one page that is neither compressed nor encoded: a header, then
per value its length and its bytes. Such pages are checked and looked at in place, where pyarrow would copy them twice
and take thrice as long to check them. A page that isn't exactly so, because another program wrote the file or because
it is damaged, is left to pyarrow, which reads it or says what is wrong.

The format: Apache Parquet, parquet.thrift (PageHeader), in Thrift's compact protocol; encoding PLAIN for BYTE_ARRAY.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal.isal_zlib import crc32  # zlib's, at nine times its speed

from pipeline.shards.schema import COLUMNS, TIME, Blob

_MOST_HEADER = 64  # bytes; a header as pyarrow writes it has about 30
_I32, _STRUCT = 0x15, 0x1C  # the next field of a struct, by type
_PLAIN, _DATA_PAGE = 0, 0
_length = struct.Struct("<I").unpack_from

# Once a block of this size was freed, glibc keeps freed row groups for the next ones; else it gives each back to the
# system and asks for it anew, zeroed (mallopt(3), M_MMAP_THRESHOLD). That is a fifth of the time of shuffled reading.
np.empty((32 << 20) - (1 << 16), np.uint8)


class RawPages:
    """The array columns of one shard. Threads may share it.

    Args:
        path: of the shard.
        metadata: its `pyarrow.parquet.FileMetaData`.
        blobs: the array columns by name.
    """

    def __init__(self, path: Path, metadata: Any, blobs: Mapping[str, Blob]) -> None:
        self._metadata = metadata
        self._blobs = blobs
        self._leaf = {name: number for number, name in enumerate(COLUMNS)}  # lists have one leaf each, as all others do
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._bytes = os.fstat(self._file).st_size

    def read(self, group: int, names: list[str]) -> dict[str, list[np.ndarray]]:
        """Read-only views of the values of those columns that lie raw and pass their checksum.

        Args:
            group: index of the row group.
            names: the array columns wanted.

        Raises:
            OSError: the file can't be read.
        """
        rows = self._metadata.row_group(group)
        chunks = {name: _Chunk.of(rows.column(self._leaf[name])) for name in names}
        first, last = min(c.first for c in chunks.values()), max(c.last for c in chunks.values())
        if not 0 < first < last <= self._bytes:
            return {}
        largest = max(chunks.values(), key=lambda chunk: chunk.last - chunk.first)
        first -= (largest.last - first) % 2  # its values, whose bytes are even in number, then begin at an even place
        data = os.pread(self._file, last - first, first)  # array columns lie side by side
        found = {}
        for name, chunk in chunks.items():
            if page := _raw_page(data, chunk.first - first, chunk.last - first, rows.num_rows):
                found[name] = _values(data, page, rows.num_rows, self._blobs[name])
        return {name: values for name, values in found.items() if values is not None}


class _Chunk(NamedTuple):
    """Where a column of a row group lies in the file."""

    first: int
    last: int

    @classmethod
    def of(cls, column: Any) -> _Chunk:
        first = column.dictionary_page_offset or column.data_page_offset
        return cls(first, first + column.total_compressed_size)


def _raw_page(data: bytes, first: int, last: int, rows: int) -> range | None:
    """The bytes of the values in `data[first:last]`, if that is one whole, sound, raw page of so many values."""
    header = _Header(data[first : min(last, first + _MOST_HEADER)])
    try:
        kind, size, stored, crc = (header.number() for _ in range(4))
        header.expect(_STRUCT)
        values, encoding = header.number(), header.number()
        header.number(), header.number()  # encodings of levels, of which a column that isn't nullable has none
        header.expect(0)
        header.expect(0)
    except (IndexError, ValueError):
        return None
    page = range(first + header.at, first + header.at + size)
    sound = (kind, encoding, values, stored, page.stop) == (_DATA_PAGE, _PLAIN, rows, size, last) and last <= len(data)
    return page if sound and crc32(memoryview(data)[page.start : page.stop]) == crc & 0xFFFFFFFF else None


class _Header:
    """Fields of a page header, one after the other; ValueError or IndexError where others stand."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def expect(self, byte: int) -> None:
        if self.data[self.at] != byte:
            raise ValueError
        self.at += 1

    def number(self) -> int:
        """An i32 field: a varint, zigzag."""
        self.expect(_I32)
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value >> 1 ^ -(value & 1)


def _values(data: bytes, page: range, rows: int, blob: Blob) -> list[np.ndarray] | None:
    """The arrays of a page; None if they aren't of that form."""
    size = np.dtype(blob.dtype).itemsize
    if len(page) % size or 4 % size:
        return None
    flat = np.frombuffer(data, blob.dtype, len(page) // size, page.start)
    if not flat.flags.aligned:
        flat = flat.copy()
        flat.flags.writeable = False
    shaped, step = blob.shape != (TIME,), blob.step_bytes
    values, at = [], page.start
    for _ in range(rows):
        (length,) = _length(data, at)
        if length % step:
            return None
        first = (at + 4 - page.start) // size
        value = flat[first : first + length // size]
        values.append(value.reshape(blob.shape) if shaped else value)
        at += 4 + length
    return values if at == page.stop else None
