"""A picture of a piece of music and of the video it was made for, on one time axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.generate.videos import Result
from model.rhythm import CURVE_RATE
from pipeline.config import MusicSettings, ShotSettings
from pipeline.media import audio_blocks

RATE = 22050  # Hz the sound is looked at
BARS = 2000  # of the waveform


def plot(result: Result, target: Path) -> None:
    """Draws the music's waveform and onset strength, the video's rhythm curve and its cuts.

    Args:
        result: of `generate`; both its files are read.
        target: a PNG, or whatever the suffix says.
    """
    from matplotlib.figure import Figure

    from pipeline.music.meters import Onsets
    from pipeline.shots import find_cuts

    settings, seconds = MusicSettings(), result.seconds
    onsets = Onsets(RATE, settings)
    lows, highs = [], []
    step_s = max(seconds / BARS, 1 / 1000)
    for block in audio_blocks(result.out, rate=RATE, channels=1, end_s=seconds, block_s=step_s):
        onsets.feed(block[0])
        lows.append(block.min())
        highs.append(block.max())
    strength = onsets.finish()
    cuts = find_cuts(result.video, ShotSettings())

    figure = Figure(figsize=(max(10.0, min(24.0, seconds / 3)), 6), layout="constrained")
    wave, onset, rhythm = figure.subplots(3, 1, sharex=True, height_ratios=[2, 2, 2])
    figure.suptitle(f"{result.out.name}: music for {result.video.name}")
    wave.fill_between((np.arange(len(lows)) + 0.5) * step_s, lows, highs, lw=0, color="0.4")
    wave.set_ylabel("waveform")
    wave.set_ylim(-1, 1)
    onset.plot(np.arange(len(strength)) * settings.onset_hop / settings.onset_rate, strength, lw=0.8)
    onset.set_ylabel("onset strength")
    curve = result.scene.curve.astype(np.float32)
    rhythm.plot(np.arange(len(curve)) / CURVE_RATE, curve, lw=0.8, color="C1", label="rhythm curve")
    rhythm.set_ylabel("rhythm curve")
    top = float(curve[1:].max(initial=1e-3))  # the first is 1 by definition
    rhythm.set_ylim(-0.03 * top, 1.1 * top)
    for axis in (wave, onset, rhythm):
        for number, cut in enumerate(cuts):
            axis.axvline(cut, color="black", lw=0.6, alpha=0.5, label="" if number else "cuts")
    rhythm.legend(loc="upper right", fontsize=8)
    rhythm.set_xlim(0, seconds)
    rhythm.set_xlabel("seconds")
    figure.savefig(target, dpi=110)
