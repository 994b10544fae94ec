"""The loop that all nano models are trained in: for some minutes, under a cosine, on from the last checkpoint."""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.storage import Store

B = TypeVar("B")
SAVE_S = 120.0
LATELY = 100  # steps that a shown loss is the mean of


@dataclass(frozen=True)
class Schedule:
    """How a model is trained.

    Attributes:
        minutes: in all, over all runs.
        rates: highest and lowest learning rate; a group of parameters may multiply them by its `faster`.
        warm_up: steps in which the rate rises.
        clip: longest gradient; longer ones are shortened to it.
    """

    minutes: float
    rates: tuple[float, float]
    warm_up: int
    clip: float

    def rate(self, step: int, share: float) -> float:
        """The learning rate of a step at a share of the minutes."""
        high, low = self.rates
        return (low + (high - low) * (1 + math.cos(math.pi * share)) / 2) * min(1.0, (step + 1) / self.warm_up)


class Average:
    """A running average of a model's weights, per step; shorter at the start.

    Args:
        model: whose.
        decay: of the average, per step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.state = {name: weight.clone() for name, weight in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step."""
        share = 1 - min(self.decay, (step + 1) / (step + 10))
        for name, weight in self.model.state_dict().items():
            self.state[name].lerp_(weight, share)


def options(about: str, script: str, minutes: float) -> argparse.ArgumentParser:
    """The options that all nano scripts have; the weights lie beside the script if nothing else is said."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=minutes, help="training time in all, over all runs")
    parser.add_argument("--out", type=Path, default=Path(script).with_suffix(".safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="don't train; print the table of the weights in --out")
    return parser


def fit(
    out: Path,
    model: nn.Module,
    optimiser: Optimizer,
    schedule: Schedule,
    console: Console,
    *,
    batches: Callable[[int], Iterator[B]],
    gradients: Callable[[B, int, float], np.ndarray],
    write: Callable[[dict[str, Tensor]], None],
    losses: Sequence[str],
    average: Average | None = None,
    aside: Callable[[], str] = str,
) -> None:
    """Trains until the minutes are used up; every two of them it saves a checkpoint, writes the weights and says so.

    Args:
        out: file of the weights; the checkpoint, from which another run goes on, lies beside it.
        model: all of it is saved; the optimiser's parameters are trained.
        batches: batches from that step on; batch n depends on n alone, so that a run that goes on sees the same ones.
        gradients: of (batch, step, share of the minutes): sets the parameters' `grad`; gives the losses.
        write: is given the weights: the average's, if there is one, else the model's own.
        losses: what they are called.
        average: of the model's weights.
        aside: more to say with every checkpoint.
    """
    step, spent, lately = 0, 0.0, deque[np.ndarray](maxlen=LATELY)
    weights = average.state if average else model.state_dict()
    checkpoint = out.with_suffix(".checkpoint.pt")
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if average:
            average.state = weights = state["average"]
        step, spent = state["step"], state["spent"]
        console.print(f"going on from step {step}, {spent / 60:.1f} minutes in")

    def shown() -> str:
        means = np.mean(lately, axis=0) if lately else np.full(len(losses), np.nan)
        return "  ".join(f"{name} {value:.3f}" for name, value in zip(losses, means, strict=True))

    def save() -> None:
        state: dict[str, Any] = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
        with Store(out.parent).write(checkpoint.name) as path:
            torch.save({**state, "average": average and weights, "step": step, "spent": spent}, path)
        write(weights)
        console.print(f"step {step}, {spent / 60:.1f} min, {shown()}{aside()}", highlight=False)

    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=schedule.minutes * 60, completed=int(spent))
        began, saved = time.monotonic() - spent, time.monotonic()
        for batch in batches(step):
            share = spent / (schedule.minutes * 60)
            if share >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step, share) * group.get("faster", 1.0)
            lately.append(gradients(batch, step, share))
            nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimiser.step()
            step += 1
            if average:
                average.update(step)
            spent = time.monotonic() - began
            progress.update(bar, completed=spent, description=f"step {step}  {shown()}")
            if time.monotonic() - saved > SAVE_S:
                saved = time.monotonic()
                save()
    save()
    console.print(f"{step} steps in {spent / 60:.1f} minutes -> {out} ({out.stat().st_size / 1e6:.1f} MB)")


def spread(
    pool: Executor,
    parameters: Sequence[nn.Parameter],
    gradients: Callable[..., tuple[np.ndarray, Sequence[Tensor]]],
    *shares: Sequence[Any],
) -> np.ndarray:
    """Has each thread take its share of a batch through the model alone; sets the mean gradient, gives mean losses.

    They meet once a step: on a busy machine that is several times as fast as threads that meet at each operation.

    Args:
        pool: the threads.
        parameters: whose `grad` is set.
        gradients: losses and gradients, in the order of the parameters, of one share.
        shares: arguments of `gradients`, each a list over threads.
    """
    results = list(pool.map(gradients, *shares))
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.stack([found[i] for _, found in results]).mean(0)
    return np.mean([losses for losses, _ in results], axis=0)


def ahead(make: Callable[[int], B], first: int) -> Iterator[B]:
    """make(first), make(first + 1), ... without end, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make, first)
        while True:
            first += 1
            ready, coming = coming, pool.submit(make, first)
            yield ready.result()
