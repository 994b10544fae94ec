"""What is heard in a source, second by second, and what is decided from it.

Measuring (`measure`) is one pass over the sound and costs time; deciding (`judge`) is a pure function of the stored
curves and the settings, so that a threshold is free to change.
"""

from pipeline.music.curves import Curves
from pipeline.music.measuring import measure
from pipeline.music.tempo import Beats, beats
from pipeline.music.tracks import changes_ms, novelty
from pipeline.music.verdict import REASONS, Verdict, judge, window_reason

__all__ = [
    "REASONS",
    "Beats",
    "Curves",
    "Verdict",
    "beats",
    "changes_ms",
    "judge",
    "measure",
    "novelty",
    "window_reason",
]
