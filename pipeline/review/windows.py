"""Which windows of a data folder a person is asked about, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.clips import OFF_BEAT, OUTSIDE, PARTIAL_SHOT, REVIEW, TOO_SHORT, clip_id
from pipeline.ledger import DUPLICATE, FAILED, PENDING, MediaRow, ReviewRow, SourceRow
from pipeline.review.rules import Closeness

if TYPE_CHECKING:
    from pipeline.process import Desk

LONGEST_MS = 30_000  # of a dropped window
SHORTEST_MS = 2_000
# Dropped for what isn't heard: no word of a person on the sound would change it.
UNHEARD = (
    OUTSIDE, PARTIAL_SHOT, OFF_BEAT, TOO_SHORT, REVIEW, DUPLICATE, FAILED, PENDING,
    "no_video", "no_audio", "out_of_sync",
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """A stretch of a source's media that a person listens to.

    Attributes:
        window_id: as a clip of these times would be called.
        rules: the reason for which the rules drop it; "" if they keep it.
        closeness: how far the thresholds would have to move to turn it, see `rules.Closeness`; 0 is nearest.
    """

    window_id: str
    source_id: str
    start_ms: int
    end_ms: int
    rules: str
    closeness: float


def windows(desk: Desk, *, sources: int, dropped: int) -> list[Window]:
    """The clips, a sample of what the rules drop, and all that somebody has spoken of already; the closest first.

    Both samples are drawn by digests of ids: the same in every call, and hardly another when sources come or go.

    Args:
        desk: of the data folder, with the profile that made the newest release.
        sources: at most so many are looked at.
        dropped: at most so many dropped windows are among them.
    """
    ready = [s for s in desk.ledger.sources() if s.state == "ready" and not s.withheld]
    clips: list[Window] = []
    refused: list[Window] = []
    for source in sorted(ready, key=lambda s: _draw(s.source_id))[:sources]:
        media = desk.ledger.media(source.source_id)
        if media is None or not desk.store.exists(desk.files.curves(source, media)):
            continue  # without sound or picture
        for window in _of_source(desk, source, media):
            (refused if window.rules else clips).append(window)
    sample = sorted(refused, key=lambda w: _draw(w.window_id))[:dropped]
    spoken = {review.window_id for review in desk.ledger.reviews()}
    chosen = {w.window_id: w for w in [*clips, *sample, *(w for w in refused if w.window_id in spoken)]}
    return sorted(chosen.values(), key=lambda w: (w.closeness, _draw(w.window_id)))


def halves(desk: Desk, review: ReviewRow) -> list[Window]:
    """The two windows that a split makes."""
    assert review.split_ms is not None
    source, media = desk.ledger.source(review.source_id), desk.ledger.media(review.source_id)
    assert media is not None
    close = Closeness(desk.files.read_curves(source, media), desk.profile.verdict)
    parts = ((review.start_ms, review.split_ms), (review.split_ms, review.end_ms))
    return [_window(close, source.source_id, start, end) for start, end in parts]


def _of_source(desk: Desk, source: SourceRow, media: MediaRow) -> Iterator[Window]:
    close = Closeness(desk.files.read_curves(source, media), desk.profile.verdict)
    spoken = {(r.start_ms, r.end_ms) for r in desk.ledger.reviews(source.source_id)}
    asked = set(spoken)
    for span in desk.ledger.spans(source.source_id):
        if not span.reason:
            asked.add((span.start_ms, span.end_ms))
        elif span.reason not in UNHEARD:
            asked.update(_parts(span.start_ms, span.end_ms))
    for start, end in sorted(asked):
        yield _window(close, source.source_id, start, end)


def _window(close: Closeness, source_id: str, start_ms: int, end_ms: int) -> Window:
    return Window(
        clip_id(source_id, start_ms, end_ms),
        source_id,
        start_ms,
        end_ms,
        close.reason(start_ms, end_ms),
        close.of(start_ms, end_ms),
    )


def _parts(start_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """A dropped stretch in equal parts of at most `LONGEST_MS`; none if it is too short to be judged."""
    length = end_ms - start_ms
    if length < SHORTEST_MS:
        return []
    count = -(-length // LONGEST_MS)
    edges = [start_ms + length * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def _draw(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
