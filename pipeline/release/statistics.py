"""Distributions of what a release holds, counted shard by shard while the rows pass, and summed up for the manifest."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.shards import Row

NEAR_S = 0.1  # a shot boundary this close to a beat is called on the beat
CHANNELS = 1000  # listed per shard, those with the most seconds


@dataclass(frozen=True)
class Measure:
    """A number per clip, or per shot boundary, and the bins it is counted in.

    Attributes:
        edges: ascending; bin i holds values in [edges[i], edges[i + 1]). What lies outside goes into two bins more.
        of: the values of a row.
    """

    title: str
    unit: str
    edges: tuple[float, ...]
    of: Callable[[Row], Iterable[float]]


def _steps(start: float, stop: float, count: int) -> tuple[float, ...]:
    return tuple(round(start + (stop - start) * i / count, 4) for i in range(count + 1))


def beat_distances(row: Row) -> np.ndarray:
    """[shots] seconds from each shot boundary within the clip to the beat nearest to it; [0] if it has no beat."""
    shots, beats = np.asarray(row.shot_times_s, np.float64), np.asarray(row.beat_times_s, np.float64)
    if not len(shots) or not len(beats):
        return np.zeros(0)
    after = np.searchsorted(beats, shots)
    left, right = beats[np.maximum(after - 1, 0)], beats[np.minimum(after, len(beats) - 1)]
    return np.minimum(np.abs(shots - left), np.abs(right - shots))


MEASURES = {
    "seconds": Measure("Length", "s", _steps(0, 60, 20), lambda row: [row.seconds]),
    "lufs": Measure("Loudness of the music", "LUFS", _steps(-40, 0, 20), lambda row: [row.lufs]),
    "tempo_bpm": Measure("Tempo", "beats per minute", _steps(40, 240, 20), lambda row: [row.tempo_bpm]),
    "voice_ratio": Measure("Share of voice in the energy", "", _steps(0, 1, 20), lambda row: [row.voice_ratio]),
    "music_score": Measure("Music score", "", _steps(0, 1, 20), lambda row: [row.music_score]),
    "shots_per_minute": Measure(
        "Shot boundaries", "per minute", _steps(0, 80, 20), lambda row: [60 * len(row.shot_times_s) / row.seconds]
    ),
    "beat_distance_s": Measure("Shot boundary to the nearest beat", "s", _steps(0, 1, 20), beat_distances),
    "av_offset_ms": Measure("Sound after picture", "ms", _steps(-200, 200, 20), lambda row: [row.av_offset_ms]),
}


@dataclass
class _Histogram:
    counts: list[int]
    n: int = 0
    total: float = 0.0
    least: float = 0.0
    most: float = 0.0

    def add(self, value: float, edges: tuple[float, ...]) -> None:
        self.counts[bisect_right(edges, value)] += 1
        self.least = min(self.least, value) if self.n else value
        self.most = max(self.most, value) if self.n else value
        self.n += 1
        self.total += value

    def as_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "sum": round(self.total, 6),
            "min": round(self.least, 6),
            "max": round(self.most, 6),
            "counts": self.counts,
        }


def _histograms() -> dict[str, _Histogram]:
    return {name: _Histogram([0] * (len(measure.edges) + 1)) for name, measure in MEASURES.items()}


@dataclass
class Statistics:
    """Distributions of the rows of one shard; memory is that of its channels."""

    _measures: dict[str, _Histogram] = field(default_factory=_histograms)
    _channels: dict[str, int] = field(default_factory=dict)
    _reviewed: int = 0
    _near: int = 0
    _near_chance: float = 0.0

    def add(self, row: Row) -> None:
        """Counts a row."""
        for name, measure in MEASURES.items():
            for value in measure.of(row):
                self._measures[name].add(float(value), measure.edges)
        self._channels[row.channel] = self._channels.get(row.channel, 0) + round(row.seconds * 1000)
        self._reviewed += bool(row.reviewed)
        distances = beat_distances(row)
        self._near += int(np.count_nonzero(distances <= NEAR_S))
        if len(distances):
            times = np.concatenate([[0.0], np.asarray(row.beat_times_s, np.float64), [row.seconds]])
            gaps = times[1:] - times[:-1]
            covered = np.minimum(gaps[1:-1], 2 * NEAR_S).sum() + np.minimum(gaps[[0, -1]], NEAR_S).sum()
            self._near_chance += len(distances) * float(covered) / row.seconds

    def as_dict(self) -> dict[str, Any]:
        """For the shard's entry in the manifest."""
        most = sorted(self._channels.items(), key=lambda item: (-item[1], item[0]))
        return {
            "measures": {name: histogram.as_dict() for name, histogram in self._measures.items()},
            "channels": {name: ms / 1000 for name, ms in most[:CHANNELS]},
            "other_channels_s": sum(ms for _, ms in most[CHANNELS:]) / 1000,
            "reviewed": self._reviewed,
            "on_beat": {"shots": self._near, "chance": round(self._near_chance, 6)},
        }


@dataclass
class Stated:
    """What sites and lists state of the sources of a release, counted while their lines pass."""

    sources: int = 0
    credited: int = 0
    languages: dict[str, list[int]] = field(default_factory=dict)  # "" where none is stated: sources, milliseconds

    def add(self, source: Mapping[str, Any]) -> None:
        """Counts a line of `sources.jsonl`."""
        details = source.get("media", {}).get("details", {})
        self.sources += 1
        self.credited += bool(details.get("credits"))
        count = self.languages.setdefault(details.get("language", ""), [0, 0])
        count[0] += 1
        count[1] += sum(end - start for start, end in source.get("clips_ms", ()))

    def as_dict(self) -> dict[str, Any]:
        """For the manifest's provenance: seconds are those of clips, languages by falling share."""
        most = sorted(self.languages.items(), key=lambda item: (-item[1][1], item[0]))
        languages = {name: {"sources": n, "seconds": ms / 1000} for name, (n, ms) in most}
        return {"sources": self.sources, "credited": self.credited, "languages": languages}


def summed(shards: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The distributions of a release from the entries of its shards; None if one of them was made without.

    Returns:
        `measures`: per name title, unit, edges, n, mean, min, max and counts (the first and last of them outside the
        edges); `channels`: how many and the share of those with the most seconds; `reviewed`: clips;
        `on_beat`: shot boundaries within `NEAR_S` of a beat, as a share, and the share that would be by chance.
    """
    parts = [entry.get("statistics") for entry in shards]
    said = [part for part in parts if part is not None]
    if len(said) != len(parts):
        return None
    return {
        "measures": {name: _sum(measure, [p["measures"][name] for p in said]) for name, measure in MEASURES.items()},
        "channels": _concentration(said),
        "reviewed": sum(part["reviewed"] for part in said),
        "on_beat": _on_beat(said),
    }


def _sum(measure: Measure, parts: list[dict[str, Any]]) -> dict[str, Any]:
    filled = [part for part in parts if part["n"]]
    n = sum(part["n"] for part in filled)
    return {
        "title": measure.title,
        "unit": measure.unit,
        "edges": list(measure.edges),
        "n": n,
        "mean": round(sum(part["sum"] for part in filled) / n, 4) if n else None,
        "min": min((part["min"] for part in filled), default=None),
        "max": max((part["max"] for part in filled), default=None),
        "counts": [sum(counts) for counts in zip(*(part["counts"] for part in parts), strict=True)],
    }


def _concentration(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """`exact` is False where a shard has more channels than it lists: then the numbers are lower bounds."""
    channels: dict[str, float] = {}
    for part in parts:
        for name, seconds in part["channels"].items():
            channels[name] = channels.get(name, 0.0) + seconds
    unlisted = sum(part["other_channels_s"] for part in parts)
    whole = sum(channels.values()) + unlisted
    unknown = channels.pop("", 0.0)
    most = sorted(channels.items(), key=lambda item: (-item[1], item[0]))
    return {
        "channels": len(most),
        "exact": not unlisted,
        "unknown_s": round(unknown, 3),
        "largest": [{"name": name, "seconds": round(seconds, 3)} for name, seconds in most[:10]],
        "share_of_largest": round(most[0][1] / whole, 4) if most else None,
        "share_of_ten": round(sum(seconds for _, seconds in most[:10]) / whole, 4) if most else None,
    }


def _on_beat(parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    shots = sum(part["measures"]["beat_distance_s"]["n"] for part in parts)
    if not shots:
        return None
    return {
        "within_s": NEAR_S,
        "share": round(sum(part["on_beat"]["shots"] for part in parts) / shots, 4),
        "by_chance": round(sum(part["on_beat"]["chance"] for part in parts) / shots, 4),
    }
