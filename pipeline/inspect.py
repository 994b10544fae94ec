"""What the pipeline would think of one file: every analysis, nothing stored."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.clips import Span, file_verdict
from pipeline.config import Profile
from pipeline.media import MediaInfo, audio_blocks, probe
from pipeline.process import clip_measures, decide
from pipeline.process.artefacts import STEM_RATE
from pipeline.reasons import CURVES, colour

if TYPE_CHECKING:
    from pipeline.music import Curves

PLOTTED = ("music", "speech", "singing", "voice_ratio", "silence")  # the curves that go into JSON and the plot


@dataclass(frozen=True)
class Inspection:
    """All analysis of one file.

    Attributes:
        name: what was looked at.
        info: container and streams.
        cuts_s: times of the shot boundaries, seconds.
        curves: per-second measurements; None without audio or picture.
        spans: partition of the file into clips and dropped stretches.
        clips: times and measures of the clips.
    """

    name: str
    info: MediaInfo
    cuts_s: tuple[float, ...]
    curves: Curves | None
    spans: list[Span]
    clips: list[dict[str, Any]]

    @property
    def verdict(self) -> tuple[str, str]:
        """`("keep", "")` if there is a clip, else `("drop", reason)` with the reason of most seconds."""
        return file_verdict(self.spans)

    def as_json(self) -> dict[str, Any]:
        """Plain values; curves are 1 Hz arrays from the start of the file, None where nothing was separated."""
        from pipeline.music.shown import numbers, shown, shown_stems

        verdict, reason = self.verdict
        curves = {} if self.curves is None else {n: numbers(shown(self.curves, n)) for n in PLOTTED}
        if self.curves is not None:
            curves |= {f"{n}_db": numbers(v) for n, v in shown_stems(self.curves).items()}
        return {
            "file": self.name,
            "duration_s": self.info.duration_ms / 1000,
            "container": self.info.container,
            "video": _plain(self.info.video),
            "audio": _plain(self.info.audio),
            "shots_s": list(self.cuts_s),
            "curves": curves,
            "verdict": verdict,
            "reason": reason,
            "clips": self.clips,
            "dropped": [
                {"start_s": s.start_ms / 1000, "end_s": s.end_ms / 1000, "reason": s.reason}
                for s in self.spans
                if s.reason
            ],
        }


def inspect_file(path: Path, profile: Profile, *, name: str = "") -> Inspection:
    """Runs shots, separation, curves, verdict and clips on one media file.

    Raises:
        SourceError: the file can't be read as media.
        MissingWeights: the profile's separator isn't here.
    """
    info = probe(path)
    cuts: tuple[float, ...] = ()
    curves = None
    if info.video is not None:
        from pipeline.shots import find_cuts

        cuts = find_cuts(path, profile.shots)
    if info.video is not None and info.audio is not None:
        from pipeline.music import measure
        from pipeline.separate import load_separator

        separator = load_separator(profile.separate)
        with tempfile.TemporaryDirectory() as scratch:
            stem = Path(scratch) / "stem.flac"
            end_ms = info.duration_ms
            curves = measure(path, 0, end_ms, separator, profile.music, stem_path=stem, stem_rate=STEM_RATE)
    decision = decide(profile, info.duration_ms, info.video is not None, cuts, curves, av_offset_ms=info.av_offset_ms)
    spans = decision.spans
    clips = []
    for span in spans:
        if not span.reason and curves is not None:
            times = {"start_s": span.start_ms / 1000, "end_s": span.end_ms / 1000}
            clips.append(times | clip_measures(profile, cuts, curves, span))
    return Inspection(name or path.name, info, cuts, curves, spans, clips)


def plot(inspection: Inspection, media: Path, target: Path) -> None:
    """Draws waveform, stems, curves, cuts and clips on one time axis, as a PNG or whatever the suffix says."""
    from matplotlib.figure import Figure

    from pipeline.music.shown import shown, shown_stems

    seconds = inspection.info.duration_ms / 1000
    figure = Figure(figsize=(max(10.0, min(24.0, seconds / 30)), 8), layout="constrained")
    wave, stems, curves, fate = figure.subplots(4, 1, sharex=True, height_ratios=[2, 2, 3, 1])
    verdict, reason = inspection.verdict
    figure.suptitle(f"{inspection.name}: {verdict}{f' ({reason})' if reason else ''}, {len(inspection.clips)} clips")

    if inspection.info.audio is not None:
        times, low, high = _envelope(media, seconds)
        wave.fill_between(times, low, high, lw=0, color="0.4")
    wave.set_ylabel("waveform")
    wave.set_ylim(-1, 1)
    if inspection.curves is not None:
        axis = np.arange(len(inspection.curves.music)) + 0.5
        point = {"lw": 1, "marker": ".", "ms": 2}  # so that one second between two gaps is seen
        for name, levels in shown_stems(inspection.curves).items():
            stems.plot(axis, np.maximum(levels, -80), label=name, **point)
        for name in PLOTTED:
            tint = colour(CURVES[name]) if name in CURVES else "black"
            curves.plot(axis, shown(inspection.curves, name), label=name.replace("_", " "), color=tint, **point)
        stems.legend(loc="lower right", fontsize=8, ncols=4)
        curves.legend(loc="center right", fontsize=8)
    stems.set_ylabel("stems, dBFS")
    curves.set_ylabel("per second")
    curves.set_ylim(-0.03, 1.03)

    seen: set[str] = set()
    for number, span in enumerate(inspection.spans):
        start, width = span.start_ms / 1000, (span.end_ms - span.start_ms) / 1000
        label = None if span.reason in seen else (span.reason or "clip (shades part neighbours)")
        seen.add(span.reason)
        shade = 0.6 if not span.reason and number % 2 else 1.0  # neighbouring clips stay apart
        tint = colour(span.reason)
        fate.barh(0, width, left=start, color=tint, alpha=shade, label=label, edgecolor="white", lw=0.5)
    fate.vlines(inspection.cuts_s, -0.6, -0.42, color="black", lw=0.6, label="cuts")
    fate.set_yticks([])
    fate.set_ylim(-0.65, 0.45)
    fate.set_xlim(0, seconds)
    fate.set_xlabel("seconds")
    fate.legend(loc="upper center", bbox_to_anchor=(0.5, -0.55), fontsize=8, ncols=8)
    figure.savefig(target, dpi=110)


def _envelope(path: Path, seconds: float, bins: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest and highest sample per bin of time, of the mono mix at 8 kHz."""
    audio = np.concatenate(list(audio_blocks(path, rate=8000, channels=1, end_s=seconds)), axis=1)[0]
    edges = np.unique(np.linspace(0, len(audio), bins + 1).astype(int)[:-1])
    times = edges / 8000
    return times, np.minimum.reduceat(audio, edges), np.maximum.reduceat(audio, edges)


def _plain(stream: Any) -> dict[str, Any] | None:
    if stream is None:
        return None
    return {k: float(v) if k == "rate" and v is not None else v for k, v in asdict(stream).items()}
