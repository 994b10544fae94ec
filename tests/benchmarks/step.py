"""A training step of a whole preset: `python -m tests.benchmarks.step [--json] [--preset small] [--precision ...]`.

All of the preset at its full size, with random weights (the decoder's and T5's are frozen: their values cost the same),
on a made-up release of its widths: stage 1, then stage 2 from it, some optimiser steps each, by the trainer itself as
`dvmset train` runs it. Seconds are of the steps alone; the first also waits for the loader. Peak memory is what Linux
reports as VmHWM, models and libraries included; `estimate_mb` is what the trainer says a step takes beforehand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.decoder import GEOMETRIES
from model.settings import load_preset
from model.train import Event, Job, train
from tests.benchmarks.stages import peak_mb
from tests.model.releases import release_of
from tests.rows import SPEC, make_row

TRAINED_ON = "source 2"  # a name that the draw of splits puts into train, so that nothing is validated


def measure(preset: str, precisions: Sequence[str], *, batch: int, seconds: int, steps: int) -> dict[str, Any]:
    """Trains both stages in each precision, in temporary folders."""
    plain = load_preset(preset)
    shape = GEOMETRIES[plain.decoder.geometry]
    spec = dataclasses.replace(SPEC, vision_dim=plain.semantic.clip_dim, cardinality=shape.cardinality)
    every = [f"train.{name}={steps}" for name in ("steps", "eval_every", "save_every")]
    settings = (
        "decoder.weights=random:0", f"semantic.t5=random:{'t5-base' if plain.semantic.t5 == 't5-base' else 'nano'}",
        f"train.batch={batch}", f"train.crop_s={seconds}", *every, "train.log_every=1", "train.warmup=0",
        "train.accelerator=cpu", "train.devices=1", "drop.semantic=0", "drop.rhythm=0",  # a dropped clip trains nothing
    )  # fmt: skip
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        spans = [(60_000 * i, 60_000 * i + 1000 * seconds) for i in range(2 * batch)]
        release = release_of(folder, [make_row(TRAINED_ON, *span, spec=spec) for span in spans], spec)
        for precision in precisions:
            chosen = load_preset(preset, (*settings, f"train.precision={precision}"))
            before: Path | None = None
            for stage in chosen.stages:
                run = folder / precision / f"stage{stage}"
                found.append({"precision": precision, **_stage(Job(release, chosen, stage, run, init_from=before))})
                before = run
    return {
        "preset": preset,
        "trainable": sum(part["trainable"] for part in found if part["precision"] == precisions[0]),
        "batch": batch,
        "seconds": seconds,
        "steps": steps,
        "stages": found,
        "checkpointing": plain.train.checkpointing,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def _stage(job: Job) -> dict[str, Any]:
    begun: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []

    def listen(event: Event) -> None:
        if event.kind == "begin":
            begun.update(event.values)
        elif event.kind == "train":
            lines.append(event.values)

    Path("/proc/self/clear_refs").write_text("5")
    train(job, listen)
    state = json.loads(max(job.out.rglob("state.json")).read_text())["position"]
    tokens = state["tokens"] / state["step"]  # all steps are alike
    return {
        "stage": job.stage,
        "trainable": begun["trainable"],
        "s_per_step": [round(tokens / line["tokens_per_s"], 2) for line in lines],
        "tokens_per_s": max(line["tokens_per_s"] for line in lines),
        "loss": [line["loss"] for line in lines],
        "grad_norm": [line["grad_norm"] for line in lines],
        "finite": state["skipped"] == 0,  # the trainer skips a step whose loss or gradient isn't
        "peak_mb": round(peak_mb()),
        "estimate_mb": round(begun["memory"]["needed"] / 1e6),
    }


def main() -> None:
    """Prints the figures: as one JSON object with `--json`, else in words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=1, help="clips in a step")
    parser.add_argument("--seconds", type=int, default=30, help="of a clip")
    parser.add_argument("--steps", type=int, default=2, help="of each stage")
    asked = parser.parse_args()
    found = measure(asked.preset, asked.precision, batch=asked.batch, seconds=asked.seconds, steps=asked.steps)
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{found['preset']}: {found['trainable']:,} trainable, {asked.batch} x {asked.seconds} s a step")
    print(f"{'':14}{'trained':>12}{'s/step':>9}{'peak MB':>9}{'estimate':>10}{'loss':>8}{'gradient':>10}")
    for part in found["stages"]:
        print(
            f"{part['precision']} stage {part['stage']:<2}{part['trainable']:>14,}{min(part['s_per_step']):>9.2f}"
            f"{part['peak_mb']:>9,}{part['estimate_mb']:>10,}{part['loss'][-1]:>8.3f}{part['grad_norm'][-1]:>10.3g}"
            f"{'' if part['finite'] else '  NOT FINITE'}"
        )


if __name__ == "__main__":
    main()
