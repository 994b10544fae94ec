"""The index of a data folder: takes in the fingerprints that are new, and tells what they share with the others."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, islice

import numpy as np

from pipeline.fingerprint.codes import Codes
from pipeline.fingerprint.index import Hits, Questions, Segment
from pipeline.fingerprint.match import Match, candidates, match
from pipeline.storage import Store

FOLDER = "fingerprint_index"
KINDS = ("sound", "picture")
_AT_ONCE = 500  # sources whose codes are held
_ASKED = 2000  # rows of codes that are asked about at once, but for those of the last source


@dataclass(frozen=True)
class Shared:
    """A stretch of sound or picture that a source shares with another one.

    Attributes:
        kind: one of `KINDS`.
        source_id: the source that came later into the index; other_id: the one that was there.
        match: when, in each.
    """

    kind: str
    source_id: str
    other_id: str
    match: Match


class Catalogue:
    """The index of one kind of fingerprints.

    Args:
        store: the data folder.
        kind: one of `KINDS`.
    """

    def __init__(self, store: Store, kind: str) -> None:
        self.store = store
        self.kind = kind
        self._list = f"{FOLDER}/{kind}.json"
        listed = json.loads(store.read_text(self._list)) if store.exists(self._list) else []
        self._segments = [self._read(segment_id) for segment_id in listed]

    @property
    def names(self) -> set[str]:
        """Names of the fingerprints that it knows."""
        return {name for segment in self._segments for name in segment.names}

    def keep_only(self, names: Collection[str]) -> None:
        """Forgets all fingerprints but these; segments that hold others are written again without them."""
        wanted = set(names)
        kept = [s if wanted.issuperset(s.names) else Segment.joined([s], wanted) for s in self._segments]
        self._save([segment for segment in kept if segment.names])

    def take(self, names: Sequence[str]) -> Iterator[tuple[list[str], list[Shared]]]:
        """Takes in fingerprints that it doesn't know; for a few hundred at a time, yields what came of them.

        What is yielded is to be stored before the next is asked for: only then the index remembers them.

        Args:
            names: within the data folder; they begin with the id of their source.

        Yields:
            The ids of the sources, and all that each of them shares with those before it.
        """
        rest = iter(names)
        while chunk := list(islice(rest, _AT_ONCE)):
            codes = {name: self._codes(name) for name in chunk}
            segment = Segment.of(codes)
            segments = [*self._segments, segment]
            to_come = set(chunk)
            found: list[Shared] = []
            for name, hits in _asked(codes, segments):
                found += self._shared(name, codes, segments, hits, exclude=to_come)
                to_come.remove(name)
            yield [source_of(name) for name in chunk], found
            self._save(_compact(segments))

    def _shared(
        self,
        name: str,
        codes: Mapping[str, Codes],
        segments: Sequence[Segment],
        hits_of: Sequence[Hits],
        exclude: Collection[str],
    ) -> Iterator[Shared]:
        asked = codes[name]
        for segment, all_hits in zip(segments, hits_of, strict=True):
            for number, hits in candidates(all_hits):
                other = segment.names[number]
                if other in exclude or source_of(other) == source_of(name):
                    continue
                known = codes[other] if other in codes else self._codes(other)
                for stretch in match(asked, known, hits):
                    yield Shared(self.kind, source_of(name), source_of(other), stretch)

    @lru_cache(maxsize=256)  # noqa: B019  a catalogue lives as long as one update
    def _codes(self, name: str) -> Codes:
        with self.store.read(name) as path:
            return Codes.from_file(path)

    def _read(self, segment_id: str) -> Segment:
        with self.store.read(self._place(segment_id)) as path:
            return Segment.from_file(path)

    def _save(self, segments: list[Segment]) -> None:
        known = {segment.id for segment in self._segments}
        for segment in segments:
            if segment.id not in known:
                with self.store.write(self._place(segment.id)) as path:
                    segment.to_file(path)
        ids = [segment.id for segment in segments]
        if ids != [segment.id for segment in self._segments]:
            self.store.write_text(self._list, json.dumps(ids))
        self._segments = segments
        for name in self.store.names(FOLDER):  # those that are no longer listed
            if name.startswith(f"{self.kind}-") and name[len(self.kind) + 1 : -4] not in ids:
                self.store.remove(f"{FOLDER}/{name}")

    def _place(self, segment_id: str) -> str:
        return f"{FOLDER}/{self.kind}-{segment_id}.npz"


def source_of(name: str) -> str:
    """The id of the source whose fingerprint has that name."""
    return name.rsplit("/", 1)[-1][:16]


def forget(store: Store, source_ids: Collection[str]) -> None:
    """Leaves nothing of some sources in the index of a data folder."""
    gone = set(source_ids)
    for kind in KINDS:
        catalogue = Catalogue(store, kind)
        catalogue.keep_only([name for name in catalogue.names if source_of(name) not in gone])


def _asked(codes: Mapping[str, Codes], segments: Sequence[Segment]) -> Iterator[tuple[str, Sequence[Hits]]]:
    """The hits of each source in each of the segments."""
    rows = np.cumsum([len(c.bits) for c in codes.values()]) // _ASKED
    for _, part in groupby(zip(codes.items(), rows, strict=True), key=lambda item: item[1]):
        few = dict(named for named, _ in part)
        questions = Questions.of(list(few.values()))
        found = [segment.ask(questions) for segment in segments]
        yield from zip(few, zip(*found, strict=True), strict=True)


def _compact(segments: list[Segment]) -> list[Segment]:
    """Joins the last segments while one is less than twice the size of the next."""
    segments = list(segments)
    while len(segments) > 1 and len(segments[-2].code) < 2 * len(segments[-1].code):
        *segments, before, last = segments
        segments.append(Segment.joined([before, last], [*before.names, *last.names]))
    return segments
