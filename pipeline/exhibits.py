"""What the report of a release shows of single stretches: kept and dropped ones, with curves and, if kept, sound."""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.clips import OUTSIDE, clip_id
from pipeline.review.view import view
from pipeline.review.windows import Window

if TYPE_CHECKING:
    from pipeline.ledger import MediaRow, SourceRow, SpanRow
    from pipeline.process import Desk

    _Place = tuple[SourceRow, MediaRow, SpanRow]

SOURCES = 50  # looked at, drawn by digests of their ids
KEPT, DROPPED = 8, 8  # stretches shown, of the latter at most `PER_REASON` of one reason
PER_REASON = 2
FAILED = 3  # failed sources named of one error class
LONGEST_MS = 20_000  # shown of one
SOUND_S, SOUND_RATE, SOUND_BITS = 12.0, 48_000, 32_000  # of a preview: length, samples and bits per second
BINS = 20  # of a threshold plot
JUDGED = {"music": "music_min", "speech": "speech_min", "voice_ratio": "voice_ratio_max"}  # curve -> its threshold


def exhibits(desk: Desk) -> dict[str, Any]:
    """Stretches and per-second scores of some sources, as plain values.

    Returns:
        `stretches`: dicts of source_id, url, title, category, start_s, end_s, reason ("" if kept), and where the curves
        are stored `view` (see `review.view`), `rhythm` ([n] at 25 Hz, kept ones only), `sound` and `stem` (data URIs:
        as published, and without voices; only where the profile keeps media);
        `shown`: of how many stretches and sources those are: pairs (shown, there are) for kept, dropped, sources;
        `failed`: addresses of failed sources by error class, at most `FAILED` of one;
        `scores`: per curve edges, threshold, and seconds kept and dropped per bin.
    """
    ready = list(desk.ledger.ready_ids())
    drawn = heapq.nsmallest(SOURCES, ready, key=_draw)
    found: list[_Place] = []
    scores = {name: np.zeros((2, BINS), int) for name in JUDGED}
    for source in map(desk.ledger.source, drawn):
        media = desk.ledger.media(source.source_id)
        if media is None:
            continue
        spans = desk.ledger.spans(source.source_id)
        found += [(source, media, span) for span in spans]
        if desk.store.exists(desk.files.curves(source, media)):
            _count(desk, source, media, spans, scores)
    settings = desk.profile.verdict.model_dump(mode="json")
    chosen = list(_chosen(found))
    kept, of_kept = (sum(not span.reason for _, _, span in places) for places in (chosen, found))
    return {
        "stretches": [_stretch(desk, *place) for place in chosen],
        "shown": {
            "kept": (kept, of_kept),
            "dropped": (len(chosen) - kept, len(found) - of_kept),
            "sources": (len(drawn), len(ready)),
        },
        "failed": _failed(desk),
        "scores": {
            name: {
                "edges": [i / BINS for i in range(BINS + 1)],
                "threshold": settings[JUDGED[name]],
                "setting": f"verdict.{JUDGED[name]}",
                "kept": counts[0].tolist(),
                "dropped": counts[1].tolist(),
            }
            for name, counts in scores.items()
            if counts.any()
        },
    }


def _failed(desk: Desk) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for failure in desk.ledger.failures():
        named = found.setdefault(failure.error_class, [])
        if not failure.keeps_clips and len(named) < FAILED:
            named.append(failure.url)
    return found


def _draw(source_id: str) -> bytes:
    return hashlib.sha256(source_id.encode()).digest()


def _count(desk: Desk, source: SourceRow, media: MediaRow, spans: list[SpanRow], scores: dict[str, np.ndarray]) -> None:
    """Adds a source's seconds to the bins: row 0 kept, row 1 dropped ones; without those not separated."""
    from pipeline.music.shown import shown

    curves = desk.files.read_curves(source, media)
    middles = curves.start_ms + 1000 * np.arange(len(curves.music)) + 500
    dropped = np.ones(len(middles), int)
    for span in spans:
        if not span.reason:
            dropped[(middles >= span.start_ms) & (middles < span.end_ms)] = 0
    for name, counts in scores.items():
        values = shown(curves, name)
        known = ~np.isnan(values)
        bins = np.clip((values[known] * BINS).astype(int), 0, BINS - 1)
        np.add.at(counts, (dropped[known], bins), 1)


def _chosen(found: list[_Place]) -> Iterator[_Place]:
    """Kept ones of as many sources as there are, and of the dropped ones the longest of each reason."""
    kept = [place for place in found if not place[2].reason]
    yield from (place for _, place in _ranked(kept, lambda p: p[0].source_id)[:KEPT])
    dropped = sorted((p for p in found if p[2].reason), key=lambda p: p[2].start_ms - p[2].end_ms)
    ranked = _ranked(dropped, lambda p: p[2].reason)
    yield from [place for rank, place in ranked if rank < PER_REASON][:DROPPED]


def _ranked(places: list[_Place], of: Callable[[_Place], str]) -> list[tuple[int, _Place]]:
    """The first of each kind, then the second of each, and so on, with their ranks."""
    ranks: dict[str, int] = {}
    found = []
    for place in places:
        rank = ranks[of(place)] = ranks.get(of(place), -1) + 1
        found.append((rank, place))
    return sorted(found, key=lambda item: item[0])


def _stretch(desk: Desk, source: SourceRow, media: MediaRow, span: SpanRow) -> dict[str, Any]:
    end_ms = min(span.end_ms, span.start_ms + LONGEST_MS) if span.reason else span.end_ms
    name = clip_id(source.source_id, span.start_ms, span.end_ms)
    shown: dict[str, Any] = {
        "name": name,
        "source_id": source.source_id,
        "url": source.url,
        "title": media.details.get("title") or source.url,
        "category": source.category,
        "start_s": span.start_ms / 1000,
        "end_s": span.end_ms / 1000,
        "reason": span.reason,
    }
    stored = desk.files.curves(source, media), desk.files.shots(media)
    if span.reason != OUTSIDE and all(map(desk.store.exists, stored)):  # nothing is measured outside the section
        window = Window(name, source.source_id, span.start_ms, end_ms, span.reason, 0.0)
        shown["view"] = view(desk, window)
    if not span.reason:
        clip = next((c for c in desk.ledger.clips(source.source_id) if c.clip_id == name), None)
        if clip is not None and clip.vision:
            features, _ = desk.files.read_arrays(clip.vision)
            shown["rhythm"] = [round(float(v), 3) for v in features["patch_distance"]]
    seen = shown.get("view", {})
    if desk.profile.fetch.keep_media and seen.get("media"):
        start_s, end_s = span.start_ms / 1000, min(end_ms / 1000, span.start_ms / 1000 + SOUND_S)
        with desk.store.read(media.name) as path:
            shown["sound"] = _sound(path, start_s, end_s)
        if seen["stem"]:
            with desk.store.read(desk.files.stem(source, media)) as path:
                shown["stem"] = _sound(path, start_s - seen["section_s"], end_s - seen["section_s"])
    return shown


def _sound(path: Path, start_s: float, end_s: float) -> str:
    """A preview as a data URI (Opus in Ogg); "" if the file has no sound."""
    import av

    from pipeline.media import audio_window, probe

    if probe(path).audio is None:
        return ""
    samples = audio_window(path, rate=SOUND_RATE, channels=1, start_s=start_s, end_s=end_s)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=SOUND_RATE, layout="mono", bit_rate=SOUND_BITS)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), format="flt", layout="mono")
        frame.sample_rate = SOUND_RATE
        for piece in (frame, None):
            for packet in stream.encode(piece):
                container.mux(packet)
    return "data:audio/ogg;base64," + base64.b64encode(buffer.getvalue()).decode()
