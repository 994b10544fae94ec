"""Which windows of a source become clips: an exact partition of its milliseconds, each kept or dropped for one reason.

Loads nothing heavy: the shards and the features take the naming and the counting of samples from here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.config import ClipSettings, Profile
from pipeline.review.ruling import NOBODY, Ruling

if TYPE_CHECKING:
    from pipeline.music import Curves, Verdict

OUTSIDE = "outside_section"  # before or after the part that the list asks for
TOO_SHORT = "too_short"  # music, but no clip of the allowed length holds it
REVIEW = "review"  # a person has dropped it
OFF_BEAT = "off_beat"  # music before the first or after the last beat or bar that a clip was to begin or end with
PARTIAL_SHOT = "partial_shot"  # music at the edge of a stretch, in a shot that isn't in it whole


@dataclass(frozen=True)
class Span:
    """[start_ms, end_ms) of a source: a clip if `reason` is empty, else dropped for that reason."""

    start_ms: int
    end_ms: int
    reason: str


def clip_id(source_id: str, start_ms: int, end_ms: int) -> str:
    """The name of a clip: its source and its times."""
    return f"{source_id}-{start_ms:08d}-{end_ms:08d}"


def samples(start_ms: int, end_ms: int, rate: int) -> int:
    """How many samples at `rate` lie in [start_ms, end_ms): rounded once, halves up."""
    return ((end_ms - start_ms) * rate + 500) // 1000


def drop_all(duration_ms: int, reason: str) -> list[Span]:
    """The partition of a source without any clip."""
    return [Span(0, duration_ms, reason)] if duration_ms > 0 else []


def file_verdict(spans: Sequence[Span]) -> tuple[str, str]:
    """`("keep", "")` if there is a clip, else `("drop", reason)` with the reason of most time, the first of equals."""
    if any(not s.reason for s in spans):
        return "keep", ""
    dropped: Counter[str] = Counter()
    for span in spans:
        dropped[span.reason] += span.end_ms - span.start_ms
    return "drop", max(dropped, key=dropped.__getitem__, default=TOO_SHORT)


def cut_spans(
    verdict: Verdict,
    curves: Curves,
    cuts_s: Sequence[float],
    *,
    duration_ms: int,
    profile: Profile,
    ruling: Ruling = NOBODY,
) -> list[Span]:
    """Cuts a source into clips and dropped spans.

    A stretch is a run of kept seconds. Clips start and end on shot boundaries; the ends of the section count as such.
    Where no boundary lies within `snap_s` inwards of a stretch's edge, the edge itself is used, and so it is where
    boundaries alone leave no clip. A shot longer than `max_s` may be split, into equal parts.

    Among all ways to place clips of min_s..max_s on these points the one is taken that keeps most milliseconds; of
    those with the fewest clips; of those with the most even lengths, so that 70 s become 35 + 35 and not 60 + 10: a
    short clip is of little use to a trainer that takes crops of half a minute. A window that `music.window_reason`
    refuses is no clip. Nothing of a stretch but its own seconds gets into a clip, and clips never overlap.

    With `snap_to` each clip then ends with the last beat or bar within it, and begins with the first.

    No clip runs across a change of track or a gap, as `music.changes_ms` has them.

    People outrank all that: a window that they keep is a clip as it stands, or if it is too short or too long for one
    it is music to be cut; what they drop is dropped; no clip runs across a place where they split.

    Args:
        verdict: per second of the curves' section.
        curves: what the verdict was made from.
        cuts_s: shot boundaries, seconds from the start of the source.
        duration_ms: length of the source.
        profile: settings of clips and verdict.
        ruling: what people have said.

    Returns:
        Spans in order that together are exactly [0, duration_ms); neighbours with the same reason are one span.

    Raises:
        ValueError: the curves' section isn't within the source.
    """
    from pipeline.music import changes_ms, window_reason  # loads PyAV

    start, end = curves.start_ms, curves.end_ms
    if not 0 <= start <= end <= duration_ms:
        raise ValueError(f"The section from {start} to {end} ms is not within a source of {duration_ms} ms.")

    least, most = _limits(profile.clips)
    ruling = ruling.for_clips(least, most)

    def refuse(first: int, last: int) -> str:
        """What people keep is beyond reproach; the rest of a window must pass by itself."""
        rest = (window_reason(curves, verdict, a, b, profile.verdict) for a, b in ruling.rest(first, last))
        return next(filter(None, rest), "")

    ruling = ruling.splitting(changes_ms(curves, profile.clips))
    cuts = sorted({round(t * 1000) for t in cuts_s} | ruling.edges | {start, end})
    spans = [Span(0, start, OUTSIDE)]
    for span in _ruled(list(_stretches(verdict.reasons, start, end)), ruling):
        inside = [t for t in cuts if span.start_ms <= t <= span.end_ms]
        settled = span.reason or (span.start_ms, span.end_ms) in ruling.whole
        pieces = [span] if settled else _cut_stretch(span, inside, refuse, profile.clips)
        spans += pieces if settled else (part for piece in pieces for part in _on_beats(piece, curves, profile))
    return list(_merged([*spans, Span(end, duration_ms, OUTSIDE)]))


def _stretches(reasons: Sequence[str], start_ms: int, end_ms: int) -> Iterator[Span]:
    """Runs of seconds with the same reason; a run without one is a stretch of music."""
    first = 0
    for i in range(1, len(reasons) + 1):
        if i == len(reasons) or reasons[i] != reasons[first]:
            yield Span(start_ms + 1000 * first, min(start_ms + 1000 * i, end_ms), reasons[first])
            first = i


def _ruled(stretches: Sequence[Span], ruling: Ruling) -> Iterator[Span]:
    """The stretches as people want them."""
    if not ruling.edges or not stretches:
        yield from stretches
        return
    start, end = stretches[0].start_ms, stretches[-1].end_ms
    inside = {t for t in ruling.edges if start < t < end}
    edges = sorted(inside | {t for s in stretches for t in (s.start_ms, s.end_ms)})
    rules = iter(stretches)
    below = next(rules)
    held: Span | None = None
    for a, b in pairwise(edges):
        while below.end_ms <= a:
            below = next(rules)
        reason = "" if ruling.keeps(a, b) else REVIEW if ruling.drops(a, b) else below.reason
        if held and held.reason == reason and a not in ruling.walls:
            held = Span(held.start_ms, b, reason)
            continue
        if held:
            yield held
        held = Span(a, b, reason)
    if held:
        yield held


def _limits(settings: ClipSettings) -> tuple[int, int]:
    """Least and most milliseconds of a clip."""
    return round(settings.min_s * 1000), round(settings.max_s * 1000)


def _cut_stretch(
    stretch: Span, cuts: list[int], refuse: Callable[[int, int], str], settings: ClipSettings
) -> Iterator[Span]:
    """The partition of one stretch of music; `cuts` are the boundaries within it, both ends included."""
    start, end = stretch.start_ms, stretch.end_ms
    (least, most), snap = _limits(settings), round(settings.snap_s * 1000)
    far = {t for t in (start, end) if not any(abs(t - c) <= snap for c in cuts)}
    for points in (sorted({*cuts, *far}), sorted({*cuts, start, end})):
        clips = _place(_split_long(points, most), refuse, least, most)
        if clips:
            break
    yield Span(start, points[0], PARTIAL_SHOT)
    position = points[0]
    for first, last in [*clips, (points[-1], points[-1])]:
        if position < first:
            reason = TOO_SHORT if first - position < least else refuse(position, first) or TOO_SHORT
            yield Span(position, first, reason)
        yield Span(first, last, "")
        position = last
    yield Span(position, end, PARTIAL_SHOT)


def _on_beats(span: Span, curves: Curves, profile: Profile) -> Iterator[Span]:
    """A clip without what lies before its first and after its last beat or bar, if it is long enough without."""
    from pipeline.music import beats

    ticks: Sequence[float] = ()
    if profile.clips.snap_to != "shot" and not span.reason:
        found = beats(curves, span.start_ms, span.end_ms, profile.music)
        ticks = found.times_s if profile.clips.snap_to == "beat" else found.bars_s
    first, last = (span.start_ms + round(t * 1000) for t in (ticks[0], ticks[-1])) if ticks else (0, 0)
    if last - first < _limits(profile.clips)[0]:
        yield span
        return
    yield from (Span(span.start_ms, first, OFF_BEAT), Span(first, last, ""), Span(last, span.end_ms, OFF_BEAT))


def _split_long(points: list[int], most: int) -> list[int]:
    """Adds points where two neighbours are further apart than a clip may be long: at equal parts."""
    added = []
    for a, b in pairwise(points):
        parts = -((a - b) // most)
        added += [a + (b - a) * k // parts for k in range(parts)]
    return [*added, *points[-1:]]


def _place(points: list[int], refuse: Callable[[int, int], str], least: int, most: int) -> list[tuple[int, int]]:
    """Clips between ascending points at the least cost (dropped ms, clips, sum of squared lengths), compared in order.

    Dynamic programming over the points: the best way up to each is a skip from the one before or a clip from an
    earlier one. Of equal ways the first found is taken, so that the result is always the same.
    """
    best = [((0, 0, 0), -1, False)]  # per point: cost, the point before, whether a clip lies between
    for i in range(1, len(points)):
        dropped, count, uneven = best[i - 1][0]
        choice = ((dropped + points[i] - points[i - 1], count, uneven), i - 1, False)
        longest = bisect_left(points, points[i] - most)
        shortest = bisect_right(points, points[i] - least)
        for j in range(longest, shortest):  # the long ones are the likely ones, and `refuse` costs most
            dropped, count, uneven = best[j][0]
            cost = (dropped, count + 1, uneven + (points[i] - points[j]) ** 2)
            if cost < choice[0] and not refuse(points[j], points[i]):
                choice = (cost, j, True)
        best.append(choice)
    clips = []
    i = len(points) - 1
    while i > 0:
        _, j, is_clip = best[i]
        if is_clip:
            clips.append((points[j], points[i]))
        i = j
    return clips[::-1]


def _merged(spans: Sequence[Span]) -> Iterator[Span]:
    """Joins neighbours dropped for the same reason and leaves out empty spans; clips stay apart."""
    held: Span | None = None
    for span in (s for s in spans if s.start_ms < s.end_ms):
        if held and held.reason and held.reason == span.reason:
            held = Span(held.start_ms, span.end_ms, held.reason)
            continue
        if held:
            yield held
        held = span
    if held:
        yield held
