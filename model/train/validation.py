"""Validation: cross-entropy per codebook on held-out clips, beside that of the untouched decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from model.data import Batch, Clips, in_order
from model.decoder import Decoder, Output, loss
from model.rhythm import magnitudes
from model.train.job import Plan
from model.vidmusician import VidMusician
from pipeline.storage import Store

BACKBONE = "backbone.json"


class Validation:
    """The validation clips of a run; all processes share the work.

    Args:
        clips: of the validation split.
        plan: of the run.
        fabric: of this process.
        decoder: the frozen one.

    Attributes:
        backbone: its cross-entropy per codebook without conditions, in nats: what there is to be improved on. Kept in
            the run.
    """

    def __init__(self, clips: Clips, plan: Plan, fabric: Fabric, decoder: Decoder) -> None:
        self.clips, self.fabric, self.settings = clips, fabric, plan.job.preset.train
        store = Store(plan.job.out)
        of = self.settings.model_dump(include={"eval_clips", "crop_s", "precision"})
        known = json.loads(store.read_text(BACKBONE)) if fabric.is_global_zero and store.exists(BACKBONE) else {}
        known = fabric.broadcast(known)
        if known.get("of") != of:
            nothing = torch.zeros(1, 1, decoder.geometry.dim, device=fabric.device)  # its null condition
            codebooks = self.cross_entropy(
                lambda batch: decoder(batch.codes, nothing.expand(len(batch), -1, -1), padding=batch.valid)
            )
            known = {"of": of, "cross_entropy": codebooks}
            if fabric.is_global_zero:
                store.write_text(BACKBONE, json.dumps(known) + "\n")
        self.backbone: list[float] = known["cross_entropy"]

    @torch.no_grad()
    def measure(self, model: VidMusician) -> dict[str, Any]:
        """The metrics of a model under all conditions; once there is a rhythm part, also how far it has come."""
        model.eval()
        codebooks = self.cross_entropy(
            lambda batch: model(
                batch.codes, batch.clip_global, batch.curve, present=batch.present, valid=batch.valid
            )
        )
        mean, untouched = (sum(values) / len(values) for values in (codebooks, self.backbone))
        metrics = {"loss": mean, "cross_entropy": codebooks, "backbone": self.backbone, "gain": untouched - mean}
        if model.rhythm is not None and model.uses_rhythm:
            batch = self.clips.crops(np.zeros(1, np.int64), np.zeros(1)).to(self.fabric.device)
            injected = model.rhythm(batch.curve, batch.codes.shape[-1], valid=batch.valid)
            metrics["identity_distance"] = model.rhythm.deviations()
            metrics["injected"] = list(magnitudes(injected).values())
        model.train()
        return metrics

    @torch.no_grad()
    def cross_entropy(self, answer: Callable[[Batch], Output]) -> list[float]:
        """Nats per codebook over the clips of all processes, each code counted once."""
        fabric, size = self.fabric, self.settings.batch // self.fabric.world_size
        sums = torch.zeros(2, self.clips.spec.codebooks, dtype=torch.float64)
        most, rank, world = self.settings.eval_clips, fabric.global_rank, fabric.world_size
        for batch in in_order(self.clips, size, most=most, rank=rank, world=world):
            moved = batch.to(fabric.device)
            output = answer(moved)
            counts = output.mask.sum((0, 2))
            sums += torch.stack([loss(output, moved.codes)[1] * counts, counts]).double().cpu()
        total: Any = fabric.all_reduce(sums.float().to(fabric.device), reduce_op="sum")
        values: list[float] = (total[0] / total[1].clamp(min=1)).tolist()
        return values
