"""The models that music is made with: what belongs together, and what says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model import runs
from model.rhythm import CODE_RATE
from model.semantic import fixed_seed
from model.settings import Preset, load_preset
from model.vidmusician import VidMusician, build
from pipeline import DEFAULT_PROFILE, weights
from pipeline.codec import Codec, load_codec
from pipeline.config import PROFILES, Profile, load_profile, names_in
from pipeline.errors import SettingsError
from pipeline.vision import VisionEncoder, load_vision

BUNDLED = Path(__file__).parents[1] / "nano" / "checkpoint"
"""Both stages of preset `nano`, trained by `model.nano.adapters`: makes the music where no checkpoint is named."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Models:
    """VidMusician and the two models around it.

    Attributes:
        musician: in evaluation mode, on its device, its decoder in the precision to compute in.
        vision: reads the video.
        codec: turns codes into sound.
        checkpoint: where the trained weights come from; None: they are at their start.

    Raises:
        SettingsError: the models don't fit together.
    """

    musician: VidMusician
    vision: VisionEncoder
    codec: Codec
    checkpoint: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        preset, geometry = self.musician.preset, self.musician.decoder.geometry
        codec = (self.codec.codebooks, self.codec.cardinality, self.codec.frame_rate)
        if self.vision.dim != preset.semantic.clip_dim:
            raise SettingsError(
                f"{self.vision.id} gives global tokens {self.vision.dim} wide, preset {preset.name} reads "
                f"{preset.semantic.clip_dim}.",
                hint="Give the --profile with the vision model that the preset was made for.",
            )
        if codec != (geometry.codebooks, geometry.cardinality, CODE_RATE):
            raise SettingsError(
                "{} has {} codebooks of {} entries at {} Hz, ".format(self.codec.id, *codec)
                + f"preset {preset.name} writes {geometry.codebooks} of {geometry.cardinality} at {CODE_RATE} Hz.",
                hint="Give the --profile with the codec that the preset was made for.",
            )

    def digests(self) -> dict[str, dict[str, str]]:
        """Id and digest of all frozen weights, by part."""
        frozen = {part: {"id": m["id"], "digest": m["digest"]} for part, m in self.musician.provenance.items()}
        around: dict[str, VisionEncoder | Codec] = {"vision": self.vision, "codec": self.codec}
        return frozen | {part: {"id": m.id, "digest": m.digest} for part, m in around.items()}

    def licences(self) -> dict[str, str]:
        """Licence of all frozen weights, by part."""
        frozen = {part: m["licence"] for part, m in self.musician.provenance.items()}
        return frozen | {"vision": self.vision.licence, "codec": self.codec.licence}

    def caveats(self) -> list[str]:
        """Why the music won't be music, in sentences; nothing where all models are trained."""
        found = []
        if self.checkpoint is None:
            found.append("No checkpoint: VidMusician is untrained and doesn't follow the video.")
        elif self.checkpoint["run"] == str(BUNDLED):
            found.append("No checkpoint: the bundled nano one makes this music, a toy (data_cards/nano.md).")
        elif self.musician.rhythm is not None and not self.musician.uses_rhythm:
            found.append("The checkpoint is of stage 1: the music doesn't follow the video's rhythm yet.")
        if random := [part for part, m in self.digests().items() if m["id"].startswith("random")]:
            found.append(f"Random, untrained weights in: {', '.join(random)}. The result is noise, to try things out.")
        return found


def load(
    *,
    checkpoint: Path | None = None,
    preset: str = "",
    ablation: str = "",
    profile: str = "",
    device: str = "auto",
) -> Models:
    """Loads what belongs together.

    Args:
        checkpoint: folder of a training run, or of both stages, of which the last is taken; None: the bundled one if no
            preset is named either, else untrained weights.
        preset: name or file; by default the checkpoint's.
        ablation: laid on the preset.
        profile: whose vision encoder and codec are used; by default those the checkpoint was trained with, without one
            those of the preset's name or else the default profile.
        device: of VidMusician; the profile names the others'.

    Raises:
        SettingsError: the checkpoint is damaged, or of other models than those asked for.
        MissingWeights: frozen weights are neither here nor to be fetched.
    """
    if checkpoint is None and not preset:
        checkpoint = BUNDLED
    if checkpoint is None:
        settings = load_preset(preset, ablation=ablation)
        around = load_profile(profile or (settings.name if settings.name in names_in(PROFILES) else DEFAULT_PROFILE))
        return _models(settings, around, device)
    run = last_stage(checkpoint)
    described, found = runs.read_run(run), runs.newest(run)
    settings = runs.preset_of_run(described)
    if preset or ablation:
        _check_preset(run, settings, load_preset(preset or settings.name, ablation=ablation))
    trained = found.weights()
    around = load_profile(profile) if profile else _profile_of(run, described["data_models"])
    models = _models(settings, around, device)
    musician = models.musician
    frozen = {**described["models"], **described["data_models"]}
    _check_frozen(run, frozen, models.digests())
    musician.set_stage(musician.load_trained(trained))
    return Models(
        musician,
        models.vision,
        models.codec,
        {
            "run": str(checkpoint),
            "preset": settings.name,
            "ablation": settings.ablation,
            "stage": musician.stage,
            "step": found.position.step,
            "weights_sha256": found.digests[runs.WEIGHTS],
        },
    )


def last_stage(folder: Path) -> Path:
    """The run in a folder: the folder itself, or the later stage that `dvmset train --stage both` has made in it."""
    stages = [folder / name for name in ("stage2", "stage1")]
    return next((run for run in (folder, *stages) if runs.is_run(run)), folder)


def _models(settings: Preset, profile: Profile, device: str) -> Models:
    device = weights.device(device)
    vision, codec = load_vision(profile.vision), load_codec(profile.codec)
    with fixed_seed():  # what no checkpoint fills is the same in every run
        musician = build(settings).eval().to(device)
    musician.decoder.to(PRECISIONS[settings.train.precision])
    return Models(musician, vision, codec)


def _check_preset(run: Path, found: Preset, asked: Preset) -> None:
    if found.digest() != asked.digest():
        names = [" ".join(filter(None, (preset.name, preset.ablation))) for preset in (found, asked)]
        raise SettingsError(
            f"{run} is a checkpoint of preset {names[0]}, not of {names[1]}.",
            hint="Leave --preset and --ablation out: the run knows its own.",
        )


def _check_frozen(run: Path, wanted: Mapping[str, Any], found: Mapping[str, Mapping[str, str]]) -> None:
    if wrong := [part for part, model in found.items() if model["digest"] != wanted[part]["digest"]]:
        differ = "; ".join(f"{part} {_named(wanted[part])} in training, {_named(found[part])} here" for part in wrong)
        raise SettingsError(
            f"{run} was trained beside other weights: {differ}.",
            hint="Take the same files and --profile; random weights also depend on the libraries' versions.",
        )


def _named(model: Mapping[str, str]) -> str:
    return f"{model['id']}, digest {model['digest'][:8]}"


def _profile_of(run: Path, wanted: Mapping[str, Mapping[str, str]]) -> Profile:
    """The bundled profile that names the vision encoder and the codec that a run was trained with."""
    vision, codec = wanted["vision"]["id"], wanted["codec"]["id"]
    for profile in map(load_profile, names_in(PROFILES)):
        if profile.vision.model in vision and profile.codec.model in codec:
            return profile
    raise SettingsError(
        f"{run} was trained with vision {vision} and codec {codec}, which no profile names.",
        hint="Give the --profile that its release was built with.",
    )
