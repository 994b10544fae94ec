"""What several people's words on one source come to. Pure; it outranks the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

Window = tuple[int, int]  # [start_ms, end_ms) of the media


class Word(Protocol):
    """A row of the ledger's reviews, as far as it is needed here."""

    reviewer: str
    start_ms: int
    end_ms: int
    decision: str
    split_ms: int | None


@dataclass(frozen=True)
class Ruling:
    """What people want of a source.

    Attributes:
        kept: what somebody keeps and nobody drops, joined where it touches; ascending.
        dropped: what somebody drops and nobody keeps; ascending.
        whole: the windows within `kept` that were judged as they are, none of which overlap.
        splits: where one piece of music ends and the next begins; ascending.
    """

    kept: tuple[Window, ...] = ()
    dropped: tuple[Window, ...] = ()
    whole: tuple[Window, ...] = ()
    splits: tuple[int, ...] = ()

    def keeps(self, start_ms: int, end_ms: int) -> bool:
        """Whether people keep all of a window."""
        return _within(self.kept, start_ms, end_ms)

    def drops(self, start_ms: int, end_ms: int) -> bool:
        """Whether people drop all of it."""
        return _within(self.dropped, start_ms, end_ms)

    def splitting(self, times_ms: Iterable[int]) -> Ruling:
        """With more splits, such as the rules find, but where people have judged a window as it is."""
        more = {t for t in times_ms if not any(a < t < b for a, b in self.whole)}
        return replace(self, splits=tuple(sorted({*self.splits, *more})))

    def rest(self, start_ms: int, end_ms: int) -> list[Window]:
        """What of a window nobody keeps."""
        rest, at = [], start_ms
        for a, b in self.kept:
            if at < min(a, end_ms):
                rest.append((at, min(a, end_ms)))
            at = max(at, b)
        return [*rest, (at, end_ms)] if at < end_ms else rest

    def for_clips(self, least_ms: int, most_ms: int) -> Ruling:
        """The same where only windows of such lengths can be clips as they stand."""
        return replace(self, whole=tuple((a, b) for a, b in self.whole if least_ms <= b - a <= most_ms))

    @cached_property
    def walls(self) -> frozenset[int]:
        """Times that no clip may run across."""
        return frozenset(self.splits) | {t for window in self.whole for t in window}

    @cached_property
    def edges(self) -> frozenset[int]:
        """Times at which people's will changes; clips may begin and end there."""
        return self.walls | {t for window in self.kept + self.dropped for t in window}


NOBODY = Ruling()


def ruling_of(words: Iterable[Word]) -> Ruling:
    """What the words that stand come to, oldest first.

    Where one person's words overlap, the later one counts. Where people disagree, and where all are unsure, nobody
    outranks the rules.
    """
    people: dict[str, list[Word]] = defaultdict(list)
    for word in words:
        people[word.reviewer].append(word)
    painted = [piece for said in people.values() for piece in _painted(said)]
    edges = sorted({t for start, end, _ in painted for t in (start, end)})
    fate: dict[str, list[Window]] = {"keep": [], "drop": []}
    for a, b in pairwise(edges):
        said = {decision for start, end, decision in painted if start <= a and b <= end} & fate.keys()
        if len(said) == 1:
            fate[said.pop()].append((a, b))
    kept, dropped = _joined(fate["keep"]), _joined(fate["drop"])
    splits = sorted({t for said in people.values() for t in _splits(said)})
    windows = [word for said in people.values() for word in said if word.decision == "keep"]
    return Ruling(kept, dropped, _whole(windows, kept, splits), tuple(splits))


def _painted(words: Sequence[Word]) -> list[tuple[int, int, str]]:
    """One person's words in order, each over what it leaves of the earlier ones."""
    pieces: list[tuple[int, int, str]] = []
    for word in words:
        a, b = word.start_ms, word.end_ms
        left = [(start, min(end, a), said) for start, end, said in pieces if start < a]
        right = [(max(start, b), end, said) for start, end, said in pieces if end > b]
        pieces = [*left, *right, (a, b, word.decision)]
    return pieces


def _splits(words: Sequence[Word]) -> Iterator[int]:
    """One person's splits; a later word on a window that runs across one takes it back."""
    for number, word in enumerate(words):
        t = word.split_ms
        if t is not None and not any(later.start_ms < t < later.end_ms for later in words[number + 1 :]):
            yield t


def _whole(words: Sequence[Word], kept: Sequence[Window], splits: Sequence[int]) -> tuple[Window, ...]:
    chosen: list[Window] = []
    for word in reversed(words):
        a, b = word.start_ms, word.end_ms
        free = all(b <= start or end <= a for start, end in chosen)
        if free and _within(kept, a, b) and not any(a < t < b for t in splits):
            chosen.append((a, b))
    return tuple(sorted(chosen))


def _within(windows: Sequence[Window], start_ms: int, end_ms: int) -> bool:
    return any(a <= start_ms and end_ms <= b for a, b in windows)


def _joined(windows: Sequence[Window]) -> tuple[Window, ...]:
    joined: list[Window] = []
    for a, b in windows:
        if joined and joined[-1][1] == a:
            a = joined.pop()[0]
        joined.append((a, b))
    return tuple(joined)
