"""Groups of sources that share sound, picture, file or video: what has to lie on one side of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.storage import digest


@dataclass(frozen=True)
class Pair:
    """Two sources and how much they share.

    Attributes:
        first, second: ids, in ascending order.
        sound_s: seconds of sound that they share, stretches added up; picture_s: of picture.
    """

    first: str
    second: str
    sound_s: float
    picture_s: float

    @property
    def kind(self) -> str:
        """`both`, or what they don't share for a tenth of the time: `same_sound` or `same_picture`."""
        if self.picture_s < self.sound_s / 10:
            return "same_sound"
        return "same_picture" if self.sound_s < self.picture_s / 10 else "both"

    def joins(self, shared_s: float) -> bool:
        """Whether they are one group, if `shared_s` seconds of either make one."""
        return max(self.sound_s, self.picture_s) >= shared_s


class Groups:
    """Connected groups of videos, given one link at a time (union-find, the earliest video standing for all)."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}  # of those that are not the first of their group
        self._order: dict[str, int] = {}

    def add(self, key: str) -> None:
        """Takes a video by its key; those that come first name the groups they are in."""
        if key not in self._order:
            self._order[key] = len(self._order)

    def join(self, one: str, other: str) -> None:
        """Notes that two videos that were added belong together."""
        first, last = sorted((self.first(one), self.first(other)), key=self._order.__getitem__)
        if first != last:
            self._above[last] = first

    def first(self, key: str) -> str:
        """The first video of a video's group."""
        while (above := self._above.get(key)) is not None:
            self._above[key] = self._above.get(above, above)
            key = above
        return key

    def id(self, key: str) -> str:
        """The id of a video's group, also of one that was never added: it stays while no earlier video joins it."""
        return digest(self.first(key))[:16]


class GroupIds(Mapping[str, str]):
    """The group of each source, 32 bytes a source: a dict of a million takes 230 MB.

    Args:
        pairs: ids of a source and of its group, 16 ASCII characters each.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        rows = ((source.encode(), group.encode()) for source, group in pairs)
        found = np.fromiter(rows, [("source", "S16"), ("group", "S16")])
        found.sort(order="source")
        self._sources, self._groups = found["source"], found["group"]

    def __getitem__(self, source_id: str) -> str:
        wanted = source_id.encode()
        i = self._sources.searchsorted(wanted)
        if i == len(self._sources) or self._sources[i] != wanted:
            raise KeyError(source_id)
        return str(self._groups[i].decode())

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._sources)

    def __len__(self) -> int:
        return len(self._sources)


@dataclass(frozen=True)
class Leakage:
    """Pairs of sources that share something and whose splits differ; seconds are those they share."""

    pairs: int
    apart: int
    apart_s: float


def leakage(pairs: Iterable[Pair], split: Callable[[str], str]) -> Leakage:
    """What splits of sources tear apart.

    Args:
        pairs: that share something.
        split: of a source.
    """
    count = apart = 0
    seconds = 0.0
    for pair in pairs:
        count += 1
        if split(pair.first) != split(pair.second):
            apart += 1
            seconds += max(pair.sound_s, pair.picture_s)
    return Leakage(count, apart, round(seconds, 3))
