"""Tempo and beats of a stretch, from the stored onset envelope."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.config import MusicSettings
from pipeline.music.curves import Curves

LATENCY_S = 0.02  # how late librosa's envelope shows an onset: 17 ms on clicks, 25 ms on a rendered band, at hop 512

BAR = 4  # beats


@dataclass(frozen=True)
class Beats:
    """Tempo and beats of a stretch.

    Attributes:
        tempo_bpm: 0 where nothing beats.
        times_s: of the beats, in seconds from the start of the stretch.
        bars_s: of every fourth beat, from the one on that makes them the strongest: bars, where the metre is four.
    """

    tempo_bpm: float
    times_s: tuple[float, ...]
    bars_s: tuple[float, ...] = ()


def beats(curves: Curves, start_ms: int, end_ms: int, settings: MusicSettings) -> Beats:
    """Tracks the beats of [start_ms, end_ms) by dynamic programming.

    Ellis, "Beat tracking by dynamic programming", Journal of New Music Research 36(1), 2007, as librosa has it. The
    result depends on nothing outside the stretch.
    """
    import librosa

    frame_s = settings.onset_hop / settings.onset_rate
    offset_s = (start_ms - curves.start_ms) / 1000
    first = int(np.ceil(offset_s / frame_s))
    last = int(np.ceil((end_ms - curves.start_ms) / 1000 / frame_s))
    envelope = curves.onset_envelope[first:last]
    if not len(envelope) or np.ptp(envelope) == 0:
        return Beats(0.0, ())
    tempo, frames = librosa.beat.beat_track(
        onset_envelope=envelope, sr=settings.onset_rate, hop_length=settings.onset_hop
    )
    times = np.maximum((first + np.asarray(frames)) * frame_s - offset_s - LATENCY_S, 0.0)
    strength = [envelope[frames[phase::BAR]].mean() if len(frames) > phase else 0.0 for phase in range(BAR)]
    bars = times[int(np.argmax(strength)) :: BAR]
    return Beats(float(np.atleast_1d(tempo)[0]), tuple(times.tolist()), tuple(bars.tolist()))
