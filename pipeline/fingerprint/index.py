"""Which sources may share something with a new one: looked up in tables of hashed codes, never by comparing all pairs.

Locality-sensitive hashing by bit sampling (Indyk and Motwani, STOC 1998): each table knows codes by `KEY_BITS` of
their 64 bits, chosen once at random. Two codes that differ in 7 of 64 bits agree in at least one of the tables in half
of all cases, and unrelated ones almost never; a few seconds of copied sound or picture give a dozen such hits.

The index lies in segments that are never changed. New sources make a segment of their own, and segments of like size
are joined, so that a source is written again a logarithmic number of times at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from pipeline.fingerprint.codes import BITS, CROPS, UNUSABLE, Codes, distance, mirrored

TABLES = 8
KEY_BITS = 20
NEAR = 14  # bits by which two codes of a hit may differ
_STEP_S = {1: 0.5, len(CROPS): 1.0}  # between two indexed moments, by the number of columns: sound, picture
_INDEXED = {1: (0,), len(CROPS): (0, len(CROPS) - 1)}  # columns; with all columns asked for, any crop finds any other
_STILL = 3  # bits by which a picture must differ from the one indexed before it
_CROWD = 256  # postings of one key; a longer list is of something that says nothing, and is passed over


@dataclass(frozen=True, eq=False)
class Hits:
    """Moments of the source that was asked about, and moments of indexed sources, that look or sound alike.

    Attributes:
        source: [N] int64, position in `Segment.names`.
        asked: [N] int64, row of the codes that were asked about; mirror: [N] bool, whether they were turned round.
        found: [N] int64, row of the indexed source's codes.
    """

    source: np.ndarray
    asked: np.ndarray
    found: np.ndarray
    mirror: np.ndarray


@dataclass(frozen=True, eq=False)
class Questions:
    """All that is asked for some sources; one after the other, as a short one costs as much as a long one.

    Attributes:
        code: [N] uint64; row: [N] int64, of its source's codes; mirror: [N] bool, whether they were turned round.
        keys: [TABLES, N] uint32.
        ends: [sources], position behind the last question of each.
    """

    code: np.ndarray
    row: np.ndarray
    mirror: np.ndarray
    keys: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, sources: Sequence[Codes]) -> Questions:
        """Those of a few sources."""
        asked = [_questions(codes) for codes in sources]
        code, row, mirror = (np.concatenate(parts) for parts in zip(*asked, strict=True))
        return cls(code, row, mirror, _keys(code), np.cumsum([len(code) for code, _, _ in asked]))


@dataclass(frozen=True, eq=False)
class Segment:
    """Some sources' codes, by hash.

    Attributes:
        names: of the sources.
        code: [M] uint64; source: [M] uint32, its position in `names`; row: [M] uint32, of its codes.
        keys: [TABLES, M] uint32, ascending; places: [TABLES, M] uint32, the entries they belong to.
    """

    names: tuple[str, ...]
    code: np.ndarray
    source: np.ndarray
    row: np.ndarray
    keys: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, sources: Mapping[str, Codes]) -> Segment:
        """A segment of new sources."""
        picked = [_entries(codes) for codes in sources.values()]
        code = np.concatenate([code for code, _ in picked] or [np.zeros(0, np.uint64)])
        row = np.concatenate([row for _, row in picked] or [np.zeros(0, np.uint32)])
        source = np.repeat(np.arange(len(picked), dtype=np.uint32), [len(code) for code, _ in picked])
        return cls._sorted(tuple(sources), code, source, row)

    @classmethod
    def joined(cls, segments: Sequence[Segment], keep: Iterable[str]) -> Segment:
        """Those of the segments' sources that are in `keep`."""
        wanted = set(keep)
        names: list[str] = []
        parts: list[tuple[np.ndarray, ...]] = []
        for segment in segments:
            number = np.full(len(segment.names), -1, np.int64)
            for i, name in enumerate(segment.names):
                if name in wanted:
                    number[i] = len(names)
                    names.append(name)
            renamed = number[segment.source]
            kept = renamed >= 0
            parts.append((segment.code[kept], renamed[kept].astype(np.uint32), segment.row[kept]))
        return cls._sorted(tuple(names), *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    @classmethod
    def _sorted(cls, names: tuple[str, ...], code: np.ndarray, source: np.ndarray, row: np.ndarray) -> Segment:
        keys = _keys(code)
        places = np.argsort(keys, axis=1, kind="stable").astype(np.uint32)
        return cls(names, code, source, row, np.take_along_axis(keys, places.astype(np.int64), axis=1), places)

    @cached_property
    def id(self) -> str:
        """16 hex digits that tell its content: the names of sources tell what was made of them."""
        return hashlib.sha256("\n".join(sorted(self.names)).encode()).hexdigest()[:16]

    def ask(self, asked: Questions) -> list[Hits]:
        """For each source that was asked about, all moments of the segment that are near a moment of it."""
        code = asked.code
        questions, entries = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for table, keys in enumerate(asked.keys):
            first = self.keys[table].searchsorted(keys, side="left")
            count = self.keys[table].searchsorted(keys, side="right") - first
            count[count > _CROWD] = 0
            if not count.any():
                continue
            question = np.repeat(np.arange(len(keys)), count)
            within = np.arange(len(question)) - np.repeat(np.cumsum(count) - count, count)
            entry = self.places[table][np.repeat(first, count) + within].astype(np.int64)
            near = distance(code[question], self.code[entry]) <= NEAR
            questions.append(question[near])
            entries.append(entry[near])
        pairs = np.unique(np.concatenate(questions) * len(self.code) + np.concatenate(entries))
        question, entry = np.divmod(pairs, max(1, len(self.code)))
        source, found = self.source[entry].astype(np.int64), self.row[entry].astype(np.int64)
        columns = source, asked.row[question], found, asked.mirror[question]
        places = question.searchsorted(asked.ends)
        return [
            Hits(*(column[first:last] for column in columns)) for first, last in zip([0, *places], places, strict=False)
        ]

    def to_file(self, path: str | Path) -> None:
        """Writes an .npz archive."""
        arrays = {name: getattr(self, name) for name in ("code", "source", "row", "keys", "places")}
        with Path(path).open("wb") as file:
            np.savez(file, names=np.array(self.names, dtype=np.str_), **arrays)

    @classmethod
    def from_file(cls, path: str | Path) -> Segment:
        """Reads what `to_file` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return cls(names=tuple(map(str, arrays.pop("names"))), **arrays)


def _entries(codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    """(code, row) of the moments of a source that are indexed."""
    columns = codes.bits.shape[1]
    rows = np.arange(0, len(codes.bits), round(codes.hz * _STEP_S[columns]))
    rows = rows[codes.bits[rows, 0] != UNUSABLE]
    if columns > 1:
        rows = _changing(codes.bits[:, 0], rows)
    found = [(codes.bits[rows, column], rows) for column in _INDEXED[columns]]
    return np.concatenate([code for code, _ in found]), np.concatenate([row for _, row in found]).astype(np.uint32)


def _questions(codes: Codes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(code, row, mirror) of all that is asked for a source."""
    bits = codes.bits
    rows = np.flatnonzero(bits[:, 0] != UNUSABLE) if len(bits) else np.zeros(0, np.int64)
    if bits.shape[1] == 1:
        return bits[rows, 0], rows, np.zeros(len(rows), bool)
    rows = _changing(bits[:, 0], rows)
    seen = bits[rows].T.ravel()
    both = np.concatenate([seen, mirrored(seen)])
    return both, np.tile(rows, 2 * bits.shape[1]), np.repeat([False, True], len(seen))


def _changing(bits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those rows that differ from the last one taken: a picture that stands still says one thing, once."""
    taken: list[int] = []
    for row in rows:
        if not taken or distance(bits[row], bits[taken[-1]]) > _STILL:
            taken.append(int(row))
    return np.array(taken, np.int64)


def _keys(code: np.ndarray) -> np.ndarray:
    """[TABLES, N] uint32: for each table the chosen bits of codes [N]."""
    bits = np.unpackbits(np.ascontiguousarray(code).view(np.uint8).reshape(-1, BITS // 8), axis=1)
    weights = (1 << np.arange(KEY_BITS)).astype(np.uint32)
    return np.stack([bits[:, chosen].astype(np.uint32) @ weights for chosen in _chosen()])


@lru_cache
def _chosen() -> np.ndarray:
    """[TABLES, KEY_BITS]: which bits each table looks at, the same for ever."""
    random = np.random.default_rng(20261122)
    return np.stack([random.permutation(BITS)[:KEY_BITS] for _ in range(TABLES)])
