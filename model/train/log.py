"""What a run tells: metrics.jsonl, TensorBoard, a listener; and how fast it is."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from model.data import Loader
from pipeline.storage import Store

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Event:
    """Something a person may want to see.

    Attributes:
        kind: `begin`, `end` and `stopped` once a run; `train` and `validation` with their metrics; `skipped` for a step
            whose loss or gradient was not finite; `saved` for a checkpoint.
        step: steps done.
    """

    kind: Literal["begin", "train", "validation", "skipped", "saved", "stopped", "end"]
    step: int
    values: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


class Log:
    """The record of a run; keeps nothing of what a killed run wrote behind its last checkpoint.

    Args:
        run: its folder.
        step: that the run goes on at; None: it begins.
        listener: is told everything as well.
        writes: False in all processes but the first, which are silent.
    """

    def __init__(self, run: Path, step: int | None, listener: Listener, *, writes: bool) -> None:
        self.listener, self.path = listener, run / METRICS
        self.board = None
        if writes:
            _rewind(self.path, step)
            self.board = SummaryWriter(run / "tensorboard", purge_step=None if step is None else step + 1)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()

    def tell(self, event: Event) -> None:
        """To the listener only."""
        if self.board is not None:
            self.listener(event)

    def write(self, event: Event) -> None:
        """Metrics: to the files and the listener."""
        if self.board is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": event.kind, "step": event.step, **event.values}) + "\n")
        for name, value in _scalars(event.values):
            self.board.add_scalar(f"{event.kind}/{name}", value, event.step)
        self.board.flush()
        self.listener(event)


class Step(NamedTuple):
    """What a step came to, on the batches of all processes; the same in each of them.

    Attributes:
        losses: cross-entropy per codebook.
        norm: length of the gradient before clipping.
        tokens: codes trained on.
        stopping: whether a process has been asked to stop.
    """

    losses: list[float]
    norm: float
    tokens: int
    stopping: bool

    @property
    def finite(self) -> bool:
        """Whether the step is one to be made."""
        return math.isfinite(sum(self.losses) + self.norm)


class Meter:
    """Means and rates over the steps since they were last taken."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self._clear()
        self._go()

    def add(self, step: Step) -> None:
        """Counts a step; the means are those of finite ones."""
        self.steps += 1
        if step.finite:
            self.finite.append(step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is not counted."""
        self.seconds += time.perf_counter() - self.began
        self.waited += self.loader.waited_s - self.waited_before
        yield
        self._go()

    def take(self, left: int) -> dict[str, Any]:
        """The metrics, while paused, and the time that `left` more steps take; counts from nothing again."""
        n = len(self.finite)
        codebooks = [sum(values) / n for values in zip(*(s.losses for s in self.finite), strict=True)]
        found = {
            "loss": sum(codebooks) / len(codebooks) if n else None,
            "cross_entropy": codebooks,
            "grad_norm": sum(s.norm for s in self.finite) / n if n else None,
            "tokens_per_s": round(sum(s.tokens for s in self.finite) / self.seconds, 1),
            "waiting_share": round(self.waited / self.seconds, 4),
            "seconds_left": round(left * self.seconds / self.steps, 1),
        }
        self._clear()
        return found

    def _clear(self) -> None:
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self.finite: list[Step] = []

    def _go(self) -> None:
        self.began, self.waited_before = time.perf_counter(), self.loader.waited_s


def _rewind(path: Path, step: int | None) -> None:
    """Removes the lines of later steps, of all without one, and a last one that is cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if step is None or json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line)
    Store(path.parent).write_text(path.name, "".join(kept))


def _scalars(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float):
            yield name, value
        elif isinstance(value, list):
            yield from ((f"{name}/{i}", v) for i, v in enumerate(value))
