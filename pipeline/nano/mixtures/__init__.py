"""Training and held-out material of the nano separator: music, voices and effects, rendered once, and mixtures of them.

Everything is made here from packages that pip brings: scores of music21's corpus through a free soundfont, speech of
eSpeak NG, singing made from that speech by a source-filter vocoder, and synthesised effects. Train and test share
neither a score nor a voice. Rendered clips lie as int16 arrays in the media cache, 22,050 Hz mono.
"""

from pipeline.nano.mixtures.compilations import (
    JOINS,
    TRACKS,
    Compilation,
    compilations,
    joined,
    track,
    training_track,
)
from pipeline.nano.mixtures.mixing import KINDS, Kind, Mixture, bank, render, test_mixture, training_mixture
from pipeline.nano.mixtures.signals import RATE, Split
from pipeline.nano.mixtures.voices import recordings, say

__all__ = [
    "JOINS",
    "KINDS",
    "RATE",
    "TRACKS",
    "Compilation",
    "Kind",
    "Mixture",
    "Split",
    "bank",
    "compilations",
    "joined",
    "recordings",
    "render",
    "say",
    "test_mixture",
    "track",
    "training_mixture",
    "training_track",
]
