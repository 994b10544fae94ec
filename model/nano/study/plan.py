"""What is compared, at which size, with which settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.generate.options import Options
from model.nano.study.benchmark import Music, Size
from model.nano.study.pieces import Composition, Origin, Run, Score
from model.settings import Preset, load_preset
from pipeline.config import Profile, load_profile


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        about: what it is, for the page.
        settings: laid on the preset, beside the ablation of the same name if there is one.
        seeds: training seeds 0 ... seeds - 1.
        music: what it is trained on.
        fast: what is trained in one stage has stage 2's rate.
        of: the variant whose models it takes, to give them each video's neighbour's curve.
        origin: music of the set itself; nothing is trained then.
    """

    name: str
    about: str
    ablation: str = ""
    settings: tuple[str, ...] = ()
    seeds: int = 1
    music: Music = "follows"
    fast: bool = False
    of: str = ""
    origin: Origin | None = None


VARIANTS = (
    Variant("full", "both stages; the curve 60 ms ahead of the music", seeds=3),
    Variant("no_look_ahead", "the curve in step, as the paper has it", settings=("rhythm.ahead_s=0",), seeds=3),
    Variant("no_rhythm", "the semantic part alone, as many steps, all at stage 1's rate", "no_rhythm", seeds=3),
    Variant("no_rhythm_fast", "the same at stage 2's rate", "no_rhythm", fast=True),
    Variant("shuffled", "the models of full, each video with the curve of another", of="full", seeds=3),
    Variant("cls_sim", "curve of [CLS] instead of patches", "cls_sim", seeds=3),
    Variant("no_initial", "rhythm part from PyTorch's random start", "no_initial"),
    Variant("one_stage", "semantic and rhythm part trained together, all at stage 1's rate", "one_stage"),
    Variant("one_stage_fast", "the same at stage 2's rate", "one_stage", fast=True),
    Variant("musicongen_no_initial", "MusiConGen's in-attention, random start", "musicongen_no_initial"),
    Variant("musicongen", "MusiConGen's in-attention, zero start", "musicongen"),
    Variant("t5_scratch", "T5 from scratch, no LoRA", "t5_scratch"),
    Variant("standardised", "curve to mean 0 and deviation 1 in each clip", settings=("rhythm.standardise=true",)),
    Variant("flat", "curve of all patches as one vector", settings=("rhythm.reduction=patch_distance_flat",)),
    Variant("all_layers", "curve before every layer, not the first 3/4", settings=("rhythm.inject_fraction=1",)),
    Variant("unrelated", "stage 2 of full trained where music ignores the picture", music="ignores"),
    Variant("ground_truth", "the set's own music: the ceiling", origin="reference"),
    Variant("ground_truth_codec", "the same through the codec", origin="reconstructed"),
    Variant("ground_truth_unrelated", "the set's music that ignores the picture: the floor", origin="ignoring"),
)


@dataclass(frozen=True)
class Study:
    """A size of the whole study.

    Attributes:
        steps: of stage 1 and stage 2; what is trained in one stage takes as many as both.
        rates: highest learning rates of the two; what is trained in one stage has the first, or the second as a row of
            its own.
        settings: laid on preset `nano` in all runs.
        seeds: most seeds of a variant.
        options: how music is drawn; the same for all variants.
        only: names of the variants wanted beside the set's own music; none named is all.
    """

    size: Size
    profile: Profile
    steps: tuple[int, int]
    rates: tuple[float, float]
    settings: tuple[str, ...]
    seeds: int
    options: Options
    only: tuple[str, ...] = ()

    def variants(self) -> Iterator[tuple[Variant, int]]:
        """Each variant with its number of seeds."""
        for variant in VARIANTS:
            if not self.only or variant.origin or variant.name in self.only:
                yield variant, min(self.seeds, variant.seeds)

    def runs(self, variant: Variant, seed: int, releases: dict[Music, Path]) -> list[Run]:
        """The stages of a variant; those that train the same thing are one and the same."""
        if variant.origin:
            return []
        if variant.of:
            return self.runs(next(v for v in VARIANTS if v.name == variant.of), seed, releases)
        preset = self._preset(variant.ablation, seed, *variant.settings)
        follows = releases["follows"]
        if preset.one_stage or preset.rhythm.kind == "none":
            rate = self.rates[1 if variant.fast else 0]
            whole = self._preset(variant.ablation, seed, *variant.settings, steps=sum(self.steps), rate=rate)
            return [Run(variant.name, whole, 1, follows)]
        if preset.semantic.t5_from_scratch:
            first = Run(variant.name, self._preset(variant.ablation, seed, stage=1), 1, follows)
        else:
            first = Run("semantic", self._preset("no_rhythm", seed, stage=1), 1, follows)
        return [first, Run(variant.name, preset, 2, releases[variant.music], first)]

    def score(self, variant: Variant, seed: int, releases: dict[Music, Path]) -> Score:
        """What the table needs of a variant and seed."""
        key = releases["follows"].name
        if variant.origin:
            return Score(variant.origin, self.size, self.profile, key)
        run = self.runs(variant, seed, releases)[-1]
        return Score(
            Composition(run, self.size, self.profile, self.options, swapped=bool(variant.of)),
            self.size,
            self.profile,
            key,
        )

    def _preset(self, ablation: str, seed: int, *more: str, stage: int = 2, steps: int = 0, rate: float = 0) -> Preset:
        steps, rate = steps or self.steps[stage - 1], rate or self.rates[stage - 1]
        own = (
            f"train.seed={seed}", f"train.crop_s={self.size.seconds}", f"train.steps={steps}", f"train.lr={rate}",
            f"train.warmup={max(1, steps // 10)}", f"train.eval_every={steps}", "train.accelerator=cpu",
            "train.devices=1", "train.workers=1",
        )  # fmt: skip
        return load_preset("nano", (*self.settings, *more, *own), ablation=ablation)


def full_study() -> Study:
    """The study as its table is published."""
    return Study(
        size=Size(10, train=256, validation=16, test=48, train_s=(10, 380), test_s=(400, 485)),
        profile=load_profile("nano"),
        steps=(80, 300),
        rates=(1e-3, 1e-2),
        settings=("train.batch=4", "train.precision=bf16", "train.save_every=50", "train.eval_clips=8"),
        seeds=3,
        options=Options(),
    )


def quick_study() -> Study:
    """The same on random weights, so small that it only shows that everything runs."""
    random = ("vision.model=random:nano", "codec.model=random:nano")
    return Study(
        size=Size(2, train=4, validation=2, test=2, train_s=(20, 26), test_s=(410, 416)),
        profile=load_profile("nano", random),
        steps=(1, 2),
        rates=(1e-3, 2e-3),
        settings=("decoder.weights=random:0", "semantic.t5=random:nano", "train.batch=2", "train.eval_clips=2"),
        seeds=1,
        options=Options(),
    )
