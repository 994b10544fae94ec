"""Music for a video: watch it, compose codes window by window, decode them, bring the sound to its level, write it.

`generate(Path("film.mp4"), Path("scored.mp4"), load(checkpoint=run), Options(seed=1))`
"""

from model.generate.composing import Scene, compose, watch
from model.generate.models import Models, load
from model.generate.options import Options
from model.generate.plot import plot
from model.generate.videos import BATCH, LUFS, OnStep, Result, Task, check, generate, generate_batch

__all__ = [
    "BATCH",
    "LUFS",
    "Models",
    "OnStep",
    "Options",
    "Result",
    "Scene",
    "Task",
    "check",
    "compose",
    "generate",
    "generate_batch",
    "load",
    "plot",
    "watch",
]
