"""The loop of the nano trainings: the same steps with or without a stop, its rates, its shares of a batch."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from pipeline.nano import training


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A clock that goes on by a second whenever it is looked at."""
    seconds = itertools.count()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    return seconds


def fitted(out: Path, minutes: float) -> tuple[dict[str, Tensor], list[int], str]:
    """Trains a line through some points: its averaged weights, which batches it saw, and what was said."""
    torch.manual_seed(0)
    model, log, seen = nn.Linear(2, 1), io.StringIO(), list[int]()
    optimiser = torch.optim.Adam(model.parameters())
    written: dict[str, Tensor] = {}

    def gradients(batch: Tensor, step: int, share: float) -> np.ndarray:
        assert 0 <= share < 1
        seen.append(step)
        optimiser.zero_grad()
        loss = (model(batch).squeeze() - batch.sum(1)).square().mean()
        loss.backward()
        return np.array([loss.item()])

    def write(state: dict[str, Tensor]) -> None:
        written.update({name: weight.clone() for name, weight in state.items()})
        out.touch()

    training.fit(
        out,
        model,
        optimiser,
        training.Schedule(minutes, (0.1, 0.01), 2, 1.0),
        Console(file=log, width=200),
        batches=lambda first: (torch.ones(4, 2) * number for number in itertools.count(first)),
        gradients=gradients,
        write=write,
        losses=("distance",),
        average=training.Average(model, 0.9),
        aside=lambda: ", and so on",
    )
    return written, seen, log.getvalue()


def test_a_run_goes_on_with_the_next_batch_and_says_what_it_did(clock: Iterator[int], tmp_path: Path) -> None:
    _, first, said = fitted(tmp_path / "w.safetensors", 0.05)
    assert first == list(range(len(first))) and "and so on" in said
    _, second, said = fitted(tmp_path / "w.safetensors", 0.2)
    assert f"going on from step {len(first)}" in said
    assert [*first, *second] == list(range(len(first) + len(second)))
    assert f"{second[-1] + 1} steps in 0.2 minutes" in said


def test_what_is_written_is_the_average_also_after_a_stop(clock: Iterator[int], tmp_path: Path) -> None:
    fitted(tmp_path / "w.safetensors", 0.05)
    written, *_ = fitted(tmp_path / "w.safetensors", 0.2)
    state = torch.load(tmp_path / "w.checkpoint.pt", weights_only=True)
    for name, weight in written.items():
        assert torch.equal(weight, state["average"][name]) and not torch.equal(weight, state["model"][name])


def test_the_rate_rises_and_falls_to_its_lowest() -> None:
    schedule = training.Schedule(1, (1.0, 0.1), 10, 1.0)
    assert [schedule.rate(step, 0.0) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [schedule.rate(50, share) for share in (0.5, 1.0)] == pytest.approx([0.55, 0.1])


def test_shares_give_the_mean_gradient() -> None:
    model = nn.Linear(3, 1)
    x = torch.randn(8, 3)

    def gradients(part: Tensor) -> tuple[np.ndarray, tuple[Tensor, ...]]:
        loss = model(part).square().mean()
        return np.array([loss.item()]), torch.autograd.grad(loss, list(model.parameters()))

    (_, wanted), parameters = gradients(x), list(model.parameters())
    with ThreadPoolExecutor(2) as pool:
        losses = training.spread(pool, parameters, gradients, x.chunk(2))
    assert losses == pytest.approx([model(x).square().mean().item()])
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_what_is_made_ahead_comes_in_order() -> None:
    assert list(itertools.islice(training.ahead(lambda n: n * n, 3), 4)) == [9, 16, 25, 36]
