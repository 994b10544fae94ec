"""The trainer: `prepare` refuses what can't work, `main` sets up, `fit` is the loop.

A run is a pure function of its settings and its release: every random draw is made from (seed, step), so that a run
that was killed and resumed ends bit for bit where an uninterrupted one does (on as many devices and threads; on GPUs as
far as their kernels give the same sums twice), and nothing but tensors and a position has to be saved. `model.runs`
says what lies in a run's folder.
"""

from model.train.job import Job, Plan, prepare
from model.train.log import Event, Listener
from model.train.loop import Outcome, learning_rate, train

__all__ = ["Event", "Job", "Listener", "Outcome", "Plan", "learning_rate", "prepare", "train"]
