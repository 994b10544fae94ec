"""Presets and ablations: what they say, and the trainable counts of all published readings at full geometry."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from model.settings import ABLATIONS, PRESETS, load_preset
from model.vidmusician import describe
from pipeline.config import names_in
from pipeline.errors import SettingsError
from pipeline.nano.geometry import CODEC, VISION

# reference/paper.md 5.2: D, squares D x D, global token, projector trained, LoRA targets, rank, total
ROWS = {
    "small": (1024, 18, 768, None, ("q", "k", "v", "o", "wi", "wo"), 32, 24_793_856),
    "small_b": (1024, 18, 512, (768, 1024), ("q", "k", "v", "o"), 64, 24_794_880),
    "small_c": (1024, 18, 768, (768, 768), ("q", "k", "v", "o"), 64, 24_794_624),
    "medium": (1536, 9, 768, (768, 1536), ("q", "k", "v"), 32, 24_791_808),
    "medium_b": (1536, 10, 768, None, ("q", "v"), 16, 24_791_808),
}


@pytest.mark.parametrize("name", ROWS)
def test_trainable_parameters_are_the_published_number_to_the_last(name):
    dim, squares, clip, projector, targets, rank, total = ROWS[name]
    counts = describe(load_preset(name), batch=1)["parameters"]
    attention = 12 * rank * 2 * 768 * len([t for t in targets if len(t) == 1])
    assert counts["lora"] == attention + 12 * rank * (768 + 3072) * len([t for t in targets if len(t) == 2])
    assert counts["manager"] == clip * 768 + 768
    assert counts["zero_linear"] + counts["identity_linears"] == squares * (dim**2 + dim) + 2 * dim
    trained = (projector[0] + 1) * projector[1] if projector else 0
    assert counts["stage_1"] == counts["lora"] + counts["manager"] + trained
    assert counts["stage_2"] == counts["zero_linear"] + counts["identity_linears"]
    assert counts["trainable"] == counts["stage_1"] + counts["stage_2"] == total


def test_the_page_on_the_original_lists_every_reading():
    page = (Path(__file__).parents[2] / "data_cards/dvmset.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", page, re.MULTILINE)
    assert {name: int(total.replace(",", "")) for name, total in listed} == {
        name: row[-1] for name, row in ROWS.items()
    }


def test_frozen_parts_have_their_published_sizes():
    small = describe(load_preset("small"), batch=1)["parameters"]
    assert small["decoder"] == 24 * (16 * 1024**2 + 6 * 1024) + 4 * (2049 + 2048) * 1024 + 2 * 1024
    assert small["t5"] == 109_628_544  # t5-base's encoder and its token table
    assert small["projector"] == 768 * 1024 + 1024
    assert small["total"] == sum(
        small[p] for p in ("decoder", "t5", "lora", "manager", "projector", "zero_linear", "identity_linears")
    )


def test_description_says_whose_weights_are_taken_and_where_the_curve_enters():
    nano = describe(load_preset("nano"), batch=2)
    assert nano["models"] == {"decoder": "bundled:backbone", "t5": "bundled:backbone"}
    assert nano["injection_layers"] == [0, 1, 2, 3, 4, 5]
    assert nano["geometry"]["layers"] == 8
    medium = describe(load_preset("medium"), batch=2)
    assert medium["models"] == {"decoder": "facebook/musicgen-medium", "t5": "t5-base"}
    assert describe(load_preset("small", ablation="t5_scratch"), batch=2)["models"]["t5"] == "t5-base from scratch"
    assert medium["injection_layers"] == [0, 4, 8, 12, 16, 20, 24, 28, 32]


def test_memory_of_small_is_what_its_sizes_say():
    memory = describe(load_preset("small"), batch=4, videos=4, seconds=30.0, precision="bf16")["memory"]
    training, decoding = memory["training_bytes"], memory["decoding_bytes"]
    assert training["weights"] == 2 * 419_584_000 + 4 * (109_628_544 + 24_793_856 + 787_456)
    assert training["optimiser"] == 12 * 18_894_848  # stage 2 is the larger one
    assert training["decoder_activations"] == 24 * 4 * 1500 * 1024 * (3 * 4 + 10 * 2)
    assert decoding["cache"] == 2 * 4 * 24 * 2 * 1024 * (1503 + 30) * 2
    assert training["total"] == sum(v for k, v in training.items() if k != "total")
    assert training["total"] < 24e9  # four samples fit a common card
    less = describe(load_preset("small"), batch=4, checkpointing=True)["memory"]["training_bytes"]
    assert less["decoder_activations"] < training["decoder_activations"] / 8


def test_nano_has_the_shape_of_small():
    nano, small = load_preset("nano"), load_preset("small")
    assert nano.rhythm.model_copy(update={"ahead_s": 0.0}) == small.rhythm  # the paper's in all but the look-ahead
    assert nano.rhythm.ahead_s == 0.06
    assert nano.semantic.lora_targets == small.semantic.lora_targets
    assert nano.semantic.projector == small.semantic.projector


def test_presets_read_what_the_profiles_models_write():
    for profile, name in (("nano", "nano"), ("vit-b-32", "small")):
        assert load_preset(name).semantic.clip_dim == VISION[profile].width
    for profile, name in (("nano", "nano"), ("encodec-32khz", "small")):
        told = describe(load_preset(name), batch=1)["geometry"]
        assert (told["codebooks"], told["cardinality"]) == (CODEC[profile].codebooks, CODEC[profile].cardinality)


def test_ablations_are_the_authors_seven():
    assert set(ABLATIONS) == {
        "t5_scratch",
        "no_rhythm",
        "no_initial",
        "one_stage",
        "cls_sim",
        "musicongen_no_initial",
        "musicongen",
    }


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_lies_on_any_preset_and_changes_it(ablation):
    for name in names_in(PRESETS):
        preset = load_preset(name, ablation=ablation)
        assert preset.ablation == ablation
        assert preset.digest() != load_preset(name).digest()


@pytest.mark.parametrize(
    ("ablation", "stages", "layers", "zero_linear", "identity_linears"),
    [
        ("t5_scratch", [1, 2], [0, 1, 2, 3, 4, 5], 256, 99_072),
        ("no_rhythm", [1], [], 0, 0),
        ("no_initial", [1, 2], [0, 1, 2, 3, 4, 5], 256, 99_072),
        ("one_stage", [1], [0, 1, 2, 3, 4, 5], 256, 99_072),
        ("cls_sim", [1, 2], [0, 1, 2, 3, 4, 5], 256, 99_072),
        ("musicongen_no_initial", [1, 2], [0, 4], 256, 0),
        ("musicongen", [1, 2], [0, 4], 256, 0),
    ],
)
def test_ablations_change_what_they_are_named_for(ablation, stages, layers, zero_linear, identity_linears):
    told = describe(load_preset("nano", ablation=ablation), batch=1)
    parts = told["parameters"]
    assert (told["stages"], told["injection_layers"]) == (stages, layers)
    assert (parts["zero_linear"], parts["identity_linears"]) == (zero_linear, identity_linears)
    assert (parts["lora"] == 0) == (ablation == "t5_scratch")


def test_default_start_and_cls_curve_are_told_by_the_settings():
    assert load_preset("small", ablation="no_initial").rhythm.init == "default"
    assert load_preset("small", ablation="musicongen").rhythm.init == "zero_identity"
    assert load_preset("small", ablation="cls_sim").rhythm.reduction == "cls_distance"


def test_overrides_lie_on_top_of_the_ablation():
    preset = load_preset(
        "nano",
        ["rhythm.reduction=patch_distance_flat", "semantic.lora_targets=[q, v]", "one_stage=true"],
        ablation="cls_sim",
    )
    assert preset.rhythm.reduction == "patch_distance_flat"
    assert preset.semantic.lora_targets == ("q", "v")
    assert preset.stages == (1,)
    assert preset.semantic.lora_rank == load_preset("nano").semantic.lora_rank


def test_a_file_of_ones_own_is_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"rhythm": {"inject_fraction": 0.5}}))
    preset = load_preset(str(path))
    assert (preset.name, preset.rhythm.inject_fraction) == ("mine", 0.5)


def test_names_are_no_part_of_the_digest():
    preset = load_preset("nano")
    assert preset.model_copy(update={"name": "other"}).digest() == preset.digest()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=3"], "train.stepz: there is no such setting. Did you mean train.steps?"),
        (["rythm.kind=none"], "rythm: there is no such setting. Did you mean rhythm?"),
        (["rhythm.inject_fraction=2"], "rhythm.inject_fraction: Input should be less than or equal to 1"),
        (["semantic.t5=t5-huge"], "semantic.t5: Input should be"),
        (["semantic.t5_precision=fp16"], "semantic.t5_precision: Input should be 'fp32' or 'bf16'"),
        (["rhythm.kind=musicongen", "rhythm.lift=true"], "lift belongs to kind vidmusician"),
        (["rhythm.init"], "Can't read the setting 'rhythm.init'"),
        (["rhythm.init=["], "Can't read the value of"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(overrides, message):
    with pytest.raises(SettingsError) as caught:
        load_preset("nano", overrides)
    assert message in str(caught.value)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(SettingsError, match=r"No preset 'tiny'\. Use one of medium, medium_b, nano, small"):
        load_preset("tiny")
    with pytest.raises(SettingsError, match=r"No ablation 'no_t5'\. Use one of t5_scratch"):
        load_preset("nano", ablation="no_t5")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        load_preset(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(SettingsError, match="holds no settings"):
        load_preset(str(tmp_path / "list.yaml"))


def test_a_preset_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_preset("nano").rhythm.lift = True
