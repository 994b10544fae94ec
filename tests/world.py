"""A small web that changes from week to week, and stages fast enough to keep up with it.

    web = Web()
    web.replace_edges(monkeypatch)
    web.videos["https://a.example/1.mp4"] = "mmmmmmmmmmmmsss"  # a letter per second: m music, v voice, s silence

A video is a text file that says what is heard in each second; a digit is music with so many tenths of voice
energy. Downloads, shots, separation, features and codec are
replaced at their doors (`pipeline.fetch.fetch`, `pipeline.music.measure`, ...); verdicts, clips, ledger, artefacts and
releases are the real ones.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipeline import codec, fetch, music, separate, shots, vision
from pipeline.clips import samples
from pipeline.config import FetchSettings
from pipeline.errors import ErrorClass, SourceError
from pipeline.fetch import Fetched
from pipeline.media import MediaInfo
from pipeline.media.probe import AudioStream, VideoStream
from pipeline.music import Curves
from pipeline.process import Desk
from pipeline.sources import Source
from pipeline.storage import file_digest


@dataclass
class Web:
    """Videos by address.

    Attributes:
        videos: what is heard in each; refusals: the error class with which an address is refused, if it is.
        channels, languages, credits: of those that state them.
        downloads, probes: the addresses that were asked for, in order.
    """

    videos: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, ErrorClass] = field(default_factory=dict)
    channels: dict[str, str] = field(default_factory=dict)
    languages: dict[str, str] = field(default_factory=dict)
    credits: dict[str, dict[str, str]] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)

    def page(self, url: str) -> dict[str, Any]:
        """What the page of a video says."""
        if url in self.refusals:
            raise SourceError(f"Refused ({url}).", self.refusals[url])
        if url not in self.videos:
            raise SourceError(f"There is no such video ({url}).", "permanent")
        said = dict.fromkeys(("license", "upload_date", "format_id", "extractor"), "")
        revision = hashlib.sha256(self.videos[url].encode()).hexdigest()[:8]
        page = {"title": f"Title of {url}", "channel": self.channels.get(url, ""), "webpage_url": url}
        music = {"language": self.languages.get(url, ""), "credits": self.credits.get(url, {})}
        return {**said, **page, **music, "revision": revision}

    def probe(self, source: Source, _: FetchSettings) -> dict[str, Any]:
        """In place of `pipeline.fetch.probing.probe`."""
        self.probes.append(source.url)
        return self.page(source.url)

    def fetch(self, source: Source, folder: Path, _: FetchSettings, **__: Any) -> Fetched:
        """In place of `pipeline.fetch.fetch`."""
        self.downloads.append(source.url)
        page = self.page(source.url)
        path = folder / f"{source.source_id}.mp4"
        path.write_text(json.dumps(self.videos[source.url]))
        return Fetched(path, _info(path), file_digest(path), path.stat().st_size, **page)

    def replace_edges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Puts this web and the fast stages in place of the real ones."""
        monkeypatch.setattr(fetch, "fetch", self.fetch)
        monkeypatch.setattr(shots, "find_cuts", lambda path, _, **__: (10.0,) if _heard(path) else ())
        monkeypatch.setattr(separate, "load_separator", lambda _: _Separator())
        monkeypatch.setattr(music, "measure", _measure)
        monkeypatch.setattr(vision, "load_vision", lambda _: _Eyes())
        monkeypatch.setattr(codec, "load_codec", lambda _: _Codec())


def work(desk: Desk, source_ids: list[str]) -> None:
    """What the build flow does with sources, one after the other."""
    for source_id in source_ids:
        try:
            desk.acquire(source_id)
            desk.analyse(source_id)
            desk.encode(source_id)
        except SourceError:
            continue  # it is in the ledger


def _heard(path: Path) -> str:
    return str(json.loads(path.read_text()))


def _info(path: Path) -> MediaInfo:
    seconds = len(_heard(path))
    video = VideoStream("h264", 64, 36, 0, Fraction(25), 0.0, seconds, 25 * seconds, False)
    audio = AudioStream("aac", 44_100, 2, 0.0, seconds)
    return MediaInfo("mov,mp4", 1000 * seconds, path.stat().st_size, video, audio)


def _measure(path: Path, start_ms: int, end_ms: int, *_: Any, stem_path: Path, stem_rate: int, **__: Any) -> Curves:
    heard = _heard(path)[start_ms // 1000 : end_ms // 1000]
    draw = np.random.default_rng(len(heard))
    soundfile.write(stem_path, draw.uniform(-0.1, 0.1, len(heard) * stem_rate), stem_rate, format="FLAC")

    def share(letter: str) -> np.ndarray:
        return np.array([second == letter for second in heard], np.float32)

    speech, silence = share("v"), share("s")
    voice = np.array([int(s) / 10 if s.isdigit() else float(s == "v") for s in heard], np.float32)
    music = np.array([s == "m" or s.isdigit() for s in heard], np.float32)
    stems = {"vocals": 10 * np.log10(voice / 100 + 1e-8), "other": 10 * np.log10((1 - voice) / 100 + 1e-8)}
    levels = {name: level.astype(np.float32) for name, level in stems.items()}
    flat = np.full(len(heard), -20, np.float32)
    nothing = np.zeros(len(heard), np.float32)
    envelope = np.zeros(43 * len(heard) + 1, np.float32)
    return Curves(
        start_ms, end_ms, flat, levels, voice, silence, music, speech, nothing, nothing, nothing, envelope
    )


class _Separator:
    rate = 44_100


@dataclass(frozen=True)
class _Features:
    clip_global: np.ndarray
    patch_distance: np.ndarray
    patch_distance_flat: np.ndarray
    cls_distance: np.ndarray


class _Eyes:
    id, licence = "random:test", "none"

    def encode(self, path: Path, start_ms: int, end_ms: int) -> _Features:
        draw = np.random.default_rng(len(_heard(path)))
        curve = draw.random(samples(start_ms, end_ms, 25)).astype(np.float16)
        return _Features(draw.random((samples(start_ms, end_ms, 1), 4)).astype(np.float16), curve, curve, curve)


class _Codec:
    id, licence, rate, frame_rate, cardinality = "random:test", "none", 32_000, 50, 64

    def encode(self, audio: np.ndarray) -> np.ndarray:
        steps = audio.shape[-1] // (self.rate // self.frame_rate)
        return np.random.default_rng(steps).integers(0, 64, (4, steps), np.int16)
