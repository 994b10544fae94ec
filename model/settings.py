"""Settings of the model: one frozen group per part, loaded from `presets/*.yaml`; the seven ablations lie on top.

The paper does not pin down backbone, LoRA, projector or injection rule, so all of them are settings; `small`,
`small_b`, `small_c`, `medium` and `medium_b` are the five readings that reach its 24.79 M trainable parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import Group, load_settings, nested, operational, settings_of
from pipeline.errors import SettingsError
from pipeline.storage import digest

PRESETS = Path(__file__).with_name("presets")

LoraTarget = Literal["q", "k", "v", "o", "wi", "wo"]
Reduction = Literal["patch_distance", "patch_distance_flat", "cls_distance"]

# The rows of the authors' ablation table, by the folder names of their demo pages. Each can be laid on any preset.
ABLATIONS: dict[str, dict[str, Any]] = {
    "t5_scratch": {"semantic": {"t5_from_scratch": True}},
    "no_rhythm": {"rhythm": {"kind": "none", "lift": False}},
    "no_initial": {"rhythm": {"init": "default"}},
    "one_stage": {"one_stage": True},
    "cls_sim": {"rhythm": {"reduction": "cls_distance"}},
    "musicongen_no_initial": {"rhythm": {"kind": "musicongen", "inject_every": 4, "lift": False, "init": "default"}},
    "musicongen": {"rhythm": {"kind": "musicongen", "inject_every": 4, "lift": False}},
}


class DecoderSettings(Group):
    """MusicGen's decoder; frozen in both stages."""

    geometry: Literal["nano", "small", "medium", "large"] = "small"
    weights: str = Field(
        "facebook/musicgen-small", description="what `checkpoints.load_backbone` takes; random:SEED for random weights"
    )


class SemanticSettings(Group):
    """Embedding manager, T5 encoder with LoRA, projector."""

    clip_dim: int = Field(768, ge=1, description="width of a global token: 768 before ViT-B's projection, 512 after it")
    t5: Literal["t5-base", "bundled:backbone", "random:t5-base", "random:nano"] = Field(
        "t5-base", description="random:NAME has seeded random weights in the shape of NAME"
    )
    t5_precision: Literal["fp32", "bf16"] = Field("fp32", description="never fp16: T5's activations overflow it")
    t5_dropout: float = Field(0.0, ge=0, lt=1, description="inside T5, while it is trained")
    t5_from_scratch: bool = Field(False, description="no pretrained weights and no LoRA: the whole encoder is trained")
    lora_rank: int = Field(32, ge=1)
    lora_scale: float = Field(1.0, gt=0, description="what LoRA's product is multiplied by (alpha / rank)")
    lora_targets: tuple[LoraTarget, ...] = Field(("q", "k", "v", "o", "wi", "wo"), min_length=1)
    projector: Literal["frozen", "trained", "extra"] = Field(
        "frozen",
        description="MusicGen's own, 768 -> D: frozen, trained on, or frozen behind a trained 768 -> 768",
    )


class RhythmSettings(Group):
    """In-attention: where and how the rhythm curve enters the decoder."""

    kind: Literal["vidmusician", "musicongen", "none"] = Field(
        "vidmusician", description="a chain with a tensor for each injection, one tensor for all of them, or no rhythm"
    )
    inject_every: int = Field(1, ge=1, description="layers per block; the curve enters before a block's first layer")
    inject_fraction: float = Field(0.75, gt=0, le=1, description="only into layers below this share of the depth")
    reduction: Reduction = Field("patch_distance", description="which curve of the shards is read")
    init: Literal["zero_identity", "default"] = Field("zero_identity", description="default: PyTorch's random start")
    lift: bool = Field(False, description="the Zero-Linear is D x D, behind a plain 1 -> D")
    standardise: bool = Field(False, description="curve to mean 0 and deviation 1 within each sequence")
    ahead_s: float = Field(0.0, ge=0, le=1, description="each step sees the curve of so many seconds later")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.lift and self.kind != "vidmusician":
            raise ValueError("lift belongs to kind vidmusician")
        return self


class DropSettings(Group):
    """How often a sample's condition is replaced by its null in training, each with a coin of its own.

    The null is the frozen backbone's own: a sample that loses all conditions trains nothing, it only thins the batch.
    """

    semantic: float = Field(0.2, ge=0, le=1)
    rhythm: float = Field(0.2, ge=0, le=1)


class TrainSettings(Group):
    """How a stage is trained. What the model is stands in the other groups, so these are no part of `Preset.digest`.

    The paper doesn't say how VidMusician was trained: these are usual values for adapters of this size, not found ones.
    """

    batch: int = Field(16, ge=1, description="clips in a step, over all devices")
    crop_s: int = Field(30, ge=1, description="seconds of a clip in a step; a shorter clip is padded")
    steps: int = Field(10_000, ge=1, description="steps of the stage; the learning rate ends there")
    lr: float = Field(3e-4, gt=0, description="highest learning rate")
    min_lr: float = Field(0.1, ge=0, le=1, description="the last learning rate, as a share of the highest")
    warmup: int = Field(500, ge=0, description="steps over which the learning rate rises")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, on matrices of the semantic part only")
    clip: float = Field(1.0, gt=0, description="longest gradient; longer ones are shortened to it")
    seed: int = Field(0, ge=0, description="of the start, the order of clips, crops and dropped conditions")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="of the frozen decoder; what is trained is fp32")
    checkpointing: bool = operational(False, description="less memory, a third more work: see `dvmset model`")
    workers: int = operational(2, ge=1, description="threads that read ahead")
    log_every: int = operational(10, ge=1, description="steps")
    eval_every: int = operational(500, ge=1, description="steps")
    eval_clips: int = operational(256, ge=1, description="clips of the validation split that are evaluated, at most")
    save_every: int = operational(500, ge=1, description="steps")
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = operational("auto")
    devices: int | Literal["auto"] = operational("auto", description="per node; on CPUs the number of processes")
    nodes: int = operational(1, ge=1)
    strategy: Literal["auto", "ddp"] = operational("auto", description="Lightning Fabric's; auto is ddp for several")


class Preset(Group):
    """All settings of a model, and of its training."""

    name: str
    ablation: str = Field("", description="the ablation laid on the preset, for the record")
    decoder: DecoderSettings = DecoderSettings()
    semantic: SemanticSettings = SemanticSettings()
    rhythm: RhythmSettings = RhythmSettings()
    drop: DropSettings = DropSettings()
    train: TrainSettings = TrainSettings()
    one_stage: bool = Field(False, description="train the semantic and the rhythm part together")

    @property
    def title(self) -> str:
        """The preset's name, and the ablation's if there is one."""
        return f"{self.name} {self.ablation}".rstrip()

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages there are to train: (1, 2), or (1,) where one stage trains everything."""
        return (1,) if self.one_stage or self.rhythm.kind == "none" else (1, 2)

    def digest(self) -> str:
        """SHA-256 over all settings that say what the model is: all but the names and how it is trained."""
        return digest({n: v for n, v in self.key().items() if n not in ("name", "ablation", "train")})


def load_preset(name: str, overrides: Iterable[str] = (), *, ablation: str = "") -> Preset:
    """A preset by name or by path of a YAML file; the ablation on top, then `group.field=value` overrides.

    Raises:
        SettingsError: no such preset or ablation, an unknown key, or a value out of range; the message names it.
    """
    if ablation and ablation not in ABLATIONS:
        raise SettingsError(f"No ablation {ablation!r}.", hint=f"Use one of {', '.join(ABLATIONS)}.")
    layers = [{"ablation": ablation, **ABLATIONS[ablation]}] if ablation else []
    return load_settings(Preset, "preset", PRESETS, name, [*layers, *map(nested, overrides)])


def preset_of(values: Mapping[str, Any], overrides: Iterable[str] = (), *, where: str) -> Preset:
    """The preset that a run wrote down, with `group.field=value` overrides on top; `where` names its place in an error.

    Raises:
        SettingsError: an unknown key, or a value out of range; the message names it.
    """
    return settings_of(Preset, values, map(nested, overrides), where=where)


def differences(old: Preset, new: Preset) -> list[str]:
    """The settings in which two presets differ, as `group.field: old -> new`; names and operational ones left out."""
    before, after = dict(_flat(old)), dict(_flat(new))
    names = sorted(before.keys() | after.keys())
    return [f"{n}: {before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n)]


def _flat(preset: Preset) -> Iterator[tuple[str, Any]]:
    for name, value in preset.key().items():
        if name in ("name", "ablation"):
            continue
        values = getattr(preset, name).key() if isinstance(value, dict) else {"": value}
        yield from ((f"{name}.{field}".rstrip("."), v) for field, v in values.items())
