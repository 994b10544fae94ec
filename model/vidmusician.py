"""VidMusician: a frozen MusicGen decoder, the semantic part at its cross-attention, the rhythm part in its residuals.

Stage 1 trains the semantic part, stage 2 the rhythm part from a start that adds nothing, so that stage 2 begins exactly
where stage 1 ended. The null of either condition is exact zeros at the decoder, which is the frozen decoder's own null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from model import checkpoints, semantic
from model.decoder import GEOMETRIES, Decoder, Output
from model.primitives import kept_weights
from model.rhythm import CODE_RATE, Rhythm
from model.semantic import Semantic, Text
from model.settings import Preset
from pipeline.errors import SettingsError

Precision = Literal["fp32", "bf16"]


class Keep(NamedTuple):
    """Which samples keep which condition, [B] bool each; the others get its null."""

    semantic: Tensor
    rhythm: Tensor


def build(preset: Preset, *, checkpointing: bool = False) -> VidMusician:
    """The model of a preset with the weights of its frozen parts; what is trained is at its start.

    Args:
        preset: all settings.
        checkpointing: recompute the decoder's activations in the backward pass, layer by layer.

    Raises:
        MissingWeights: weights of MusicGen or T5 are neither on disk nor to be fetched.
        SettingsError: MusicGen's weights don't fit the preset.
    """
    backbone = checkpoints.load_backbone(preset.decoder.weights, preset.decoder.geometry)
    backbone.decoder.checkpointing = checkpointing
    model = VidMusician(preset, backbone.decoder)
    if not preset.decoder.weights.startswith("random:"):
        model.semantic.load_projection(backbone.projection)
    model.provenance = {
        "decoder": {"id": backbone.id, "digest": backbone.digest, "licence": backbone.licence},
        "t5": {
            "id": semantic.weights_id(preset.semantic),
            "digest": semantic.weights_digest(preset.semantic),
            "licence": semantic.weights_licence(preset.semantic),
        },
    }
    return model


class VidMusician(nn.Module):
    """The whole model.

    Args:
        preset: all settings; their semantic part names T5's weights, which are fetched if they aren't on disk.
        decoder: MusicGen's decoder in the preset's geometry; is frozen.

    Attributes:
        stage: what is trained and whether the rhythm part is used; see `set_stage`. The last stage at first.
        provenance: id, digest and licence of the frozen weights; filled by `build`.
    """

    def __init__(self, preset: Preset, decoder: Decoder) -> None:
        super().__init__()
        self.preset = preset
        self.provenance: dict[str, dict[str, str]] = {}
        geometry = decoder.geometry
        self.decoder = decoder.requires_grad_(False)
        self.semantic = Semantic(preset.semantic, geometry.dim)
        self.rhythm = None
        if preset.rhythm.kind != "none":
            self.rhythm = Rhythm(preset.rhythm, geometry.layers, geometry.dim)
        self._trainable = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        self.set_stage(preset.stages[-1])

    def forward(
        self,
        codes: Tensor,
        clip_global: Tensor,
        curve: Tensor | None,
        *,
        present: Tensor | None = None,
        valid: Tensor | None = None,
        text: Text | None = None,
        keep: Keep | None = None,
    ) -> Output:
        """Teacher-forced logits of codes [B, K, T] under the conditions; the rest is as in `conditions`."""
        cross, in_attention = self.conditions(
            clip_global, curve, codes.shape[-1], present=present, valid=valid, text=text, keep=keep
        )
        return self.decoder(codes, cross, in_attention=in_attention, padding=valid)

    def conditions(
        self,
        clip_global: Tensor,
        curve: Tensor | None,
        frames: int,
        *,
        present: Tensor | None = None,
        valid: Tensor | None = None,
        text: Text | None = None,
        keep: Keep | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """What the decoder is given: cross-attention's [B, N, D], and by layer the [B, T, D] of in-attention.

        Args:
            clip_global: [B, T1, clip_dim] global tokens, 1 Hz.
            curve: [B, T25] rhythm curve of the preset's reduction; None is the null of the rhythm condition.
            frames: code frames T, 50 Hz.
            present: [B, T1] bool, False behind a clip's end.
            valid: [B, T] bool, False behind a clip's end.
            text: prompts, see `Semantic.tokenize`.
            keep: what isn't dropped; see `coins`.
        """
        cross = self.semantic(clip_global, present=present, text=text, keep=keep.semantic if keep else None)
        if self.rhythm is None or curve is None or not self.uses_rhythm:
            return cross, {}
        return cross, self.rhythm(curve, frames, valid=valid, keep=keep.rhythm if keep else None)

    @property
    def uses_rhythm(self) -> bool:
        """Whether the curve is read: not without a rhythm part, and not yet in stage 1 of two."""
        return self.rhythm is not None and self.stage == self.preset.stages[-1]

    def set_stage(self, stage: int) -> None:
        """Makes exactly what `stage` trains trainable, and leaves the rhythm part out while it isn't trained yet.

        Raises:
            SettingsError: the preset has no such stage.
        """
        if stage not in self.preset.stages:
            raise SettingsError(
                f"Preset {self.preset.name} {self.preset.ablation} has no stage {stage}.".replace("  ", " "),
                hint=f"It is trained in stage {' and '.join(map(str, self.preset.stages))}.",
            )
        self.stage = stage
        trained = self.trainable_parameters(stage)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)
        self.train(self.training)

    def train(self, mode: bool = True) -> VidMusician:
        """As ever, but what isn't trained in this stage stays in evaluation mode (T5 may have dropout)."""
        super().train(mode)
        self.semantic.train(mode and self.stage == 1)
        return self

    def coins(self, samples: int, generator: torch.Generator) -> Keep:
        """Draws for each sample, and for each condition apart, whether it is kept in training."""
        drop = self.preset.drop
        draws = torch.rand(2, samples, generator=generator, device=generator.device)
        draws = draws.to(self.semantic.manager.weight.device)
        return Keep(draws[0] >= drop.semantic, draws[1] >= drop.rhythm)

    def trainable_parameters(self, stage: int | None = None) -> dict[str, nn.Parameter]:
        """What a stage trains, by name; without one what all stages train together."""
        parameters = dict(self.named_parameters())
        every = {name: parameters[name] for name in self._trainable}
        if stage is None or self.preset.stages == (1,):
            return every
        part = "semantic." if stage == 1 else "rhythm."
        return {name: parameter for name, parameter in every.items() if name.startswith(part)}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The stage's parameters for an optimiser. Only matrices of the semantic part decay.

        Decay would pull the Identity-Linears to zero and silence the deep injections, so it must not touch the rhythm.
        """
        parameters = self.trainable_parameters(self.stage)
        decayed = {n: p for n, p in parameters.items() if n.startswith("semantic.") and p.ndim > 1}
        plain = {n: p for n, p in parameters.items() if n not in decayed}
        groups = [
            {"params": list(decayed.values()), "weight_decay": weight_decay},
            {"params": list(plain.values()), "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def trained_state(self) -> dict[str, Tensor]:
        """The weights that training has made up to this stage: all a checkpoint needs beside the frozen models."""
        stages = [s for s in self.preset.stages if s <= self.stage]
        return {n: p.detach() for s in stages for n, p in self.trainable_parameters(s).items()}

    def load_trained(self, state: Mapping[str, Tensor]) -> int:
        """Takes over the weights of a checkpoint and returns the last stage they come from.

        After a stage 1 alone the rhythm part is left at its start.

        Raises:
            SettingsError: the checkpoint is of another preset; nothing is changed then.
        """
        wanted, stage = self.trainable_parameters(), self.preset.stages[-1]
        if not any(n.startswith("rhythm.") for n in state) and self.preset.stages == (1, 2):
            wanted, stage = self.trainable_parameters(1), 1
        shapes = {n: tuple(p.shape) for n, p in wanted.items()}
        given = {n: tuple(t.shape) for n, t in state.items()}
        if shapes != given:
            name = next(n for n in sorted(shapes.keys() | given.keys()) if shapes.get(n) != given.get(n))
            raise SettingsError(
                f"The checkpoint doesn't fit preset {self.preset.name}: {name} is {given.get(name, 'missing')} in it, "
                f"{shapes.get(name, 'unknown')} in the preset.",
                hint="Use the preset and ablation it was trained with.",
            )
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(state[name])
        return stage

    def count(self) -> dict[str, int]:
        """Parameters by part; `trainable` is what the stages train together, `total` everything."""
        parts = dict.fromkeys(("decoder", "t5", "lora", "manager", "projector", "zero_linear", "identity_linears"), 0)
        for name, parameter in self.named_parameters():
            parts[_part(name)] += parameter.numel()
        by_stage = {f"stage_{s}": _numbers(self.trainable_parameters(s)) for s in self.preset.stages}
        return {**parts, "total": sum(parts.values()), **by_stage, "trainable": _numbers(self.trainable_parameters())}


def describe(
    preset: Preset,
    batch: int,
    *,
    videos: int = 1,
    seconds: float = 30.0,
    precision: Precision = "bf16",
    checkpointing: bool = False,
    text_tokens: int = 0,
    device: str = "cuda",
) -> dict[str, Any]:
    """Geometry, parameters by part and memory of a preset, without its weights: what `dvmset model --json` prints.

    Args:
        preset: all settings.
        batch: samples in a training step.
        videos: decoded together.
        seconds: of a sample, and of a video.
        precision: of the frozen decoder and its activations; all else is fp32.
        checkpointing: as in `build`.
        text_tokens: of a prompt, beside the one global token per second.
        device: its type; bf16 training takes more on a "cpu".
    """
    weightless = preset.model_copy(
        update={"semantic": preset.semantic.model_copy(update={"t5": f"random:{preset.semantic.t5.split(':')[-1]}"})}
    )
    with torch.device("meta"):
        model = VidMusician(weightless, Decoder(GEOMETRIES[preset.decoder.geometry]))
    counts = model.count()
    shape = {"frames": round(seconds * CODE_RATE), "keys": round(seconds) + text_tokens}
    width = {"fp32": 4, "bf16": 2}[precision]
    kept = kept_weights(shape["frames"], shape["keys"]) if precision == "bf16" and device == "cpu" else 0
    training = _training_bytes(model, batch, **shape, width=width, checkpointing=checkpointing, kept=kept)
    return {
        "preset": preset.name,
        "ablation": preset.ablation,
        "settings_digest": preset.digest(),
        "models": {"decoder": preset.decoder.weights, "t5": semantic.weights_id(preset.semantic)},
        "geometry": asdict(model.decoder.geometry),
        "injection_layers": list(model.rhythm.layers) if model.rhythm else [],
        "stages": list(preset.stages),
        "parameters": counts,
        "trainable": counts["trainable"],
        "memory": {
            "batch": batch,
            "videos": videos,
            "seconds": seconds,
            "precision": precision,
            "checkpointing": checkpointing,
            "training_bytes": _with_sum(training),
            "decoding_bytes": _with_sum(_decoding_bytes(model, videos, **shape, width=width)),
        },
    }


def _training_bytes(
    model: VidMusician, batch: int, frames: int, keys: int, width: int, checkpointing: bool, kept: int
) -> dict[str, int]:
    """Peak of a training step; n = batch x frames steps go through the decoder.

    Optimiser: gradient and AdamW's two moments for the larger stage, fp32. Activations per step and layer: the inputs
    of three norms (D each, fp32 as autocast keeps them), q k v and output of self-attention (4 D), q and output of
    cross-attention (2 D), the input of GELU (FF); a frozen linear keeps nothing. Of each sample, head and layer also
    the `kept` attention weights. With checkpointing one D per layer and one whole layer. Rhythm: the input of each
    Identity-Linear, fp32. Logits: four fp32 copies at the loss's peak (measured: 3.7 to 3.9). T5: about 10 d + 2 ff per
    token and layer, fp32.
    """
    g, t5, n = model.decoder.geometry, model.semantic.t5.config, batch * frames
    layer = n * (3 * g.dim * 4 + (6 * g.dim + g.ff) * width) + batch * g.heads * kept * width
    layers = g.layers * n * g.dim * width + layer if checkpointing else g.layers * layer
    injections = len(model.rhythm.layers) if model.rhythm else 0
    largest = max(_numbers(model.trainable_parameters(s)) for s in model.preset.stages)
    return {
        "weights": _weight_bytes(model, width),
        "optimiser": 12 * largest,
        "decoder_activations": layers,
        "rhythm_activations": injections * n * g.dim * 4,
        "semantic_activations": batch * keys * t5.num_layers * (10 * t5.d_model + 2 * t5.d_ff) * 4,
        "logits": 4 * n * g.codebooks * g.cardinality * 4,
    }


def _decoding_bytes(model: VidMusician, batch: int, frames: int, keys: int, width: int) -> dict[str, int]:
    """Peak of decoding with plain guidance, two rows per video: keys and values of all steps and of the semantic
    tokens in every layer, and the rhythm tensors in fp32 and in the decoder's precision.
    """
    g, rows, steps = model.decoder.geometry, 2 * batch, frames + model.decoder.geometry.codebooks - 1
    injections = len(model.rhythm.layers) if model.rhythm else 0
    return {
        "weights": _weight_bytes(model, width),
        "cache": rows * g.layers * 2 * g.dim * (steps + keys) * width,
        "rhythm": injections * batch * frames * g.dim * (4 + width),
        "logits": 6 * rows * g.codebooks * g.cardinality * 4,
    }


def _weight_bytes(model: VidMusician, width: int) -> int:
    """The decoder in its precision, everything else in fp32."""
    counts = model.count()
    return counts["decoder"] * width + (counts["total"] - counts["decoder"]) * 4


def _with_sum(parts: dict[str, int]) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}


def _part(name: str) -> str:
    if "lora_" in name:
        return "lora"
    room, layer = name.split(".")[:2]
    if room == "rhythm":
        return "identity_linears" if layer == "chain" else "zero_linear"
    if room == "semantic":
        return "projector" if layer == "extra" else layer
    return room


def _numbers(parameters: Mapping[str, nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters.values())
