"""Setting up, and the loop."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from model import runs
from model.data import Batch, Loader
from model.decoder import Output, loss
from model.settings import TrainSettings
from model.train.job import Job, Plan, check_devices, check_frozen, describe_run, prepare
from model.train.log import Event, Listener, Log, Meter, Step
from model.train.validation import Validation
from model.vidmusician import Keep, VidMusician, build
from pipeline.errors import SettingsError


@dataclass(frozen=True)
class Outcome:
    """How a run ended: at its last step, or stopped by Ctrl-C or SIGTERM and saved; `run` is its folder."""

    run: Path
    step: int
    finished: bool


@dataclass
class State:
    """All that changes while a run goes on.

    Attributes:
        model: itself; `forward` is the same, wrapped so that gradients become the mean of all processes'.
    """

    model: VidMusician
    forward: nn.Module
    optimizer: Optimizer
    loader: Loader
    position: runs.Position


def train(job: Job, listener: Listener = lambda _: None) -> Outcome:
    """Does a job, on as many devices as its settings say.

    With several, Fabric starts this program again for each of the others, and all but one are silent.

    Args:
        job: what to do.
        listener: is told what happens.

    Raises:
        SettingsError: as `prepare` and `check_devices`; or the weights to start from don't fit, or are damaged.
        ShardError: a shard is damaged.
        MissingWeights: as `vidmusician.build`.
    """
    plan = prepare(job)
    settings = job.preset.train
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=settings.strategy,
            precision="32-true",  # of what is trained; the decoder has its own
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise SettingsError(
            f"No training on these devices: {error}", hint="Mend train.accelerator, devices, nodes or strategy."
        ) from error
    memory = check_devices(job.preset, _processes(fabric), fabric.device)
    fabric.launch()
    return main(fabric, plan, memory, listener)


def main(fabric: Fabric, plan: Plan, memory: Mapping[str, int], listener: Listener) -> Outcome:
    """Builds model, optimiser and loader, as they are at the start or as they were, and trains."""
    job, settings = plan.job, plan.job.preset.train
    torch.manual_seed(settings.seed)
    model = build(job.preset, checkpointing=settings.checkpointing)
    if plan.start:
        check_frozen(plan, model.provenance)
        model.load_trained(plan.start.weights())
    model.set_stage(job.stage)
    if settings.precision == "bf16":
        model.decoder.to(torch.bfloat16)
    optimizer: Any = AdamW(model.parameter_groups(settings.weight_decay), lr=settings.lr, betas=settings.betas)
    forward, wrapped = fabric.setup(model.train(), optimizer)
    loader = Loader(
        plan.training,
        settings.batch // fabric.world_size,
        seed=settings.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=settings.workers,
    )
    state = State(model, forward, wrapped, loader, runs.Position())
    if job.resume and plan.start:
        runs.restore_optimizer(optimizer, _names(model), plan.start.optimizer())
        state.position = plan.start.position
        loader.position = state.position.step
    begun_at = state.position.step
    if fabric.is_global_zero:
        devices = f"{fabric.world_size} x {fabric.device.type}"
        runs.write_run(job.out, describe_run(plan, model.provenance, model.count(), begun_at, devices))
    goes_on_at = begun_at if job.resume else None
    with Log(job.out, goes_on_at, listener, writes=fabric.is_global_zero) as log, stop_signals() as stop:
        log.tell(Event("begin", begun_at, _overview(plan, model, fabric, memory)))
        fit(fabric, plan, state, log, stop)
    return Outcome(job.out, state.position.step, finished=state.position.step >= settings.steps)


def fit(fabric: Fabric, plan: Plan, state: State, log: Log, stop: threading.Event) -> None:
    """The loop, from the state's position to the last step, or until `stop` is set in any process."""
    settings, position = plan.job.preset.train, state.position
    validation = Validation(plan.validation, plan, fabric, state.model.decoder) if plan.validation else None
    if not plan.job.resume:
        if validation:
            log.write(Event("validation", position.step, validation.measure(state.model)))
        _save(fabric, plan, state, log)
    if fabric.world_size > 1:  # after its first pass DDP sums gradients in another order, so none of ours is the first
        size = settings.batch // fabric.world_size
        some = plan.training.crops(np.arange(size) % len(plan.training), np.zeros(size))
        _backward(fabric, settings, state, some.to(fabric.device))
    meter, batches, stopped = Meter(state.loader), iter(state.loader), False
    while position.step < settings.steps and not stopped:
        batch = next(batches).to(fabric.device)
        rate = learning_rate(settings, position.step)
        done = _step(fabric, settings, state, batch, rate, stopping=stop.is_set())
        position.step += 1
        meter.add(done)
        if done.finite:
            position.tokens += done.tokens
        else:
            position.skipped += 1
            log.tell(Event("skipped", position.step, {"skipped": position.skipped}))
        stopped, last = done.stopping, position.step == settings.steps
        logs, evaluates, saves = (
            last or position.step % every == 0
            for every in (settings.log_every, settings.eval_every, settings.save_every)
        )
        if logs or evaluates or saves or stopped:
            with meter.paused():
                if logs or stopped:
                    metrics = meter.take(settings.steps - position.step)
                    metrics |= {"epoch": position.step * settings.batch / len(plan.training), "lr": rate}
                    log.write(Event("train", position.step, metrics | {"skipped": position.skipped}))
                if evaluates and validation:
                    log.write(Event("validation", position.step, validation.measure(state.model)))
                if saves or stopped:
                    _save(fabric, plan, state, log)
    log.tell(Event("stopped" if position.step < settings.steps else "end", position.step))


def learning_rate(settings: TrainSettings, step: int) -> float:
    """A line up to the highest over the warm-up, then half a cosine down to `min_lr` of it."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (settings.min_lr + (1 - settings.min_lr) * (1 + math.cos(math.pi * done)) / 2)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM, so that the run is saved; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals don't come here
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_: object) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


def _step(
    fabric: Fabric, settings: TrainSettings, state: State, batch: Batch, rate: float, *, stopping: bool
) -> Step:
    """A step on a global batch of which `batch` is this process's part. Changes nothing where it is not finite."""
    per_codebook, counts = _backward(fabric, settings, state, batch)
    norm: Any = fabric.clip_gradients(state.forward, state.optimizer, max_norm=settings.clip, error_if_nonfinite=False)
    shared: Any = fabric.all_reduce(torch.cat([per_codebook, per_codebook.new_tensor([stopping])]), reduce_op="mean")
    *losses, wish, length, codes = torch.cat([shared, norm.view(1), counts.sum().view(1)]).tolist()
    done = Step(losses, length, round(codes * fabric.world_size), wish > 0)
    if done.finite:
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
    return done


def _backward(fabric: Fabric, settings: TrainSettings, state: State, batch: Batch) -> tuple[Tensor, Tensor]:
    """The gradients of a global batch, in every process.

    Returns:
        Per codebook, the loss on this process's part, whose mean over the processes is that of the batch; and how many
        codes it is of, as the mean over the processes.
    """
    step, rank = state.position.step, fabric.global_rank
    coins = state.model.coins(settings.batch, torch.Generator().manual_seed(_seed(0, settings.seed, step)))
    mine = slice(rank * len(batch), (rank + 1) * len(batch))
    torch.manual_seed(_seed(1, settings.seed, step, rank))  # for T5's dropout
    state.optimizer.zero_grad()
    output: Output = state.forward(
        batch.codes,
        batch.clip_global,
        batch.curve,
        present=batch.present,
        valid=batch.valid,
        keep=Keep(coins.semantic[mine], coins.rhythm[mine]),
    )
    counts: Any = fabric.all_reduce(output.mask.sum((0, 2)).float(), reduce_op="mean")
    value, per_codebook = loss(output, batch.codes, counts)
    fabric.backward(value)
    return per_codebook, counts


def _save(fabric: Fabric, plan: Plan, state: State, log: Log) -> None:
    if fabric.is_global_zero:
        tensors = runs.optimizer_tensors(state.optimizer, _names(state.model))
        path = runs.save(plan.job.out, state.position, state.model.trained_state(), tensors)
        log.tell(Event("saved", state.position.step, {"path": str(path)}))
    fabric.barrier()


def _names(model: VidMusician) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in model.trainable_parameters(model.stage).items()}


def _seed(*numbers: int) -> int:
    """For a generator, from what its draws are a function of."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _processes(fabric: Fabric) -> int:
    """On all nodes; known before they are started."""
    strategy = fabric.strategy
    return strategy.num_nodes * strategy.num_processes if isinstance(strategy, DDPStrategy) else 1


def _overview(plan: Plan, model: VidMusician, fabric: Fabric, memory: Mapping[str, int]) -> dict[str, Any]:
    counts = model.count()
    return {
        "run": str(plan.job.out),
        "stage": plan.job.stage,
        "steps": plan.job.preset.train.steps,
        "trainable": counts[f"stage_{plan.job.stage}"],
        "total": counts["total"],
        "clips": len(plan.training),
        "validation_clips": len(plan.validation) if plan.validation else 0,
        "devices": f"{fabric.world_size} x {fabric.device.type}",
        "memory": dict(memory),
        "longest_clip_s": plan.training.longest_s(plan.job.preset.train.crop_s),
        "init_from": plan.init_from(),
    }
