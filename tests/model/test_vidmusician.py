"""The three parts together: stage 2's start, who learns what, nulls, checkpoints, memory."""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from model.checkpoints import load_backbone
from model.decoder import GEOMETRIES, Decoder, Geometry, loss
from model.settings import Preset, load_preset
from model.vidmusician import Keep, VidMusician, build, describe
from pipeline.errors import SettingsError

SECONDS = 2
FRAMES = 50 * SECONDS
CLIP = 192


class Batch(NamedTuple):
    """What a model is called with."""

    codes: Tensor
    clip_global: Tensor
    curve: Tensor


@cache
def decoder() -> Decoder:
    """The same for all models here: it is frozen."""
    return load_backbone("random:0", "nano").decoder


def model(*overrides: str, ablation: str = "", seed: int = 1) -> VidMusician:
    torch.manual_seed(seed)
    return VidMusician(load_preset("nano", overrides, ablation=ablation), decoder()).eval()


def batch(samples: int = 2) -> Batch:
    torch.manual_seed(99)
    codes = torch.randint(0, 2048, (samples, 4, FRAMES))
    return Batch(codes, torch.randn(samples, SECONDS, CLIP), torch.rand(samples, 25 * SECONDS))


def perturbed(module: VidMusician, by: float = 0.05) -> VidMusician:
    """As after some training of all stages."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in module.trainable_parameters().values():
            parameter.add_(by * torch.randn_like(parameter))
    return module


def logits(module: VidMusician, data: Batch, **kwargs) -> Tensor:
    """In the mode of training: without gradients other kernels may be taken."""
    output = module(*data, **kwargs)
    return output.logits[output.mask].detach()


def after_stage_1(*overrides: str, ablation: str = "") -> VidMusician:
    module = model(*overrides, ablation=ablation)
    module.set_stage(1)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in module.trainable_parameters(1).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def start_of_stage_2(first: VidMusician, *overrides: str, ablation: str = "") -> VidMusician:
    second = model(*overrides, ablation=ablation, seed=2)
    assert second.load_trained(first.trained_state()) == 1
    second.set_stage(2)
    return second.train()


@pytest.mark.parametrize(
    ("overrides", "ablation"),
    [
        ((), ""),
        ((), "t5_scratch"),
        ((), "musicongen"),
        (("semantic.t5_dropout=0.3",), ""),
        (("semantic.projector=trained", "rhythm.inject_every=4", "rhythm.lift=true"), ""),
    ],
)
def test_stage_2_begins_bit_for_bit_where_stage_1_ended(overrides, ablation):
    first = after_stage_1(*overrides, ablation=ablation)
    second = start_of_stage_2(first, *overrides, ablation=ablation)
    data = batch()
    assert second.uses_rhythm and not first.uses_rhythm
    assert torch.equal(logits(second, data), logits(first, data))


def test_stage_2_begins_bit_for_bit_as_the_model_without_rhythm():
    first = after_stage_1()
    without = model(ablation="no_rhythm", seed=3)
    without.load_trained(first.trained_state())
    data = batch()
    assert torch.equal(logits(start_of_stage_2(first), data), logits(without, data))


@pytest.mark.parametrize("ablation", ["no_initial", "musicongen_no_initial"])
def test_without_the_zero_start_stage_2_begins_elsewhere(ablation):
    first = after_stage_1(ablation=ablation)
    second = start_of_stage_2(first, ablation=ablation)
    assert (logits(second, batch()) - logits(first, batch())).abs().max() > 1e-2


def gradients(module: VidMusician, data: Batch, **kwargs) -> dict[str, Tensor]:
    loss(module(*data, **kwargs), data.codes)[0].backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def test_first_gradients_of_stage_2_reach_the_zero_linear_and_the_biases_only():
    second = start_of_stage_2(after_stage_1())
    grads = gradients(second, batch())
    assert set(grads) == set(second.trainable_parameters(2))
    for name, gradient in grads.items():
        identity = name.startswith("rhythm.chain") and name.endswith("weight")
        assert gradient.any() != identity, name  # exactly zero there: nothing flows into the identities yet


def test_gradients_of_stage_1_stay_in_the_semantic_part():
    module = after_stage_1().train()
    grads = gradients(module, batch())
    assert set(grads) == set(module.trainable_parameters(1))
    assert all(n.startswith("semantic.") and g.any() for n, g in grads.items())


def test_one_stage_trains_both_parts_at_once():
    module = perturbed(model(ablation="one_stage"))
    grads = gradients(module, batch())
    assert set(grads) == set(module.trainable_parameters(1)) == set(module.trainable_parameters())
    assert {n.split(".")[0] for n in grads} == {"semantic", "rhythm"}


def test_a_stage_the_preset_does_not_have_is_refused():
    with pytest.raises(SettingsError, match="Preset nano no_rhythm has no stage 2"):
        model(ablation="no_rhythm").set_stage(2)
    with pytest.raises(SettingsError, match="Preset nano has no stage 3"):
        model().set_stage(3)


def test_the_null_is_the_frozen_decoders_own():
    """Zeros in cross-attention and nothing added, whatever the biases; this is the null that guidance decodes with."""
    module, data = perturbed(model()), batch()
    nothing = torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        backbone = module.decoder(data.codes, torch.zeros(2, SECONDS, 128))
    assert torch.equal(logits(module, data, keep=Keep(nothing, nothing)), backbone.logits[backbone.mask])
    black = Batch(data.codes, torch.zeros_like(data.clip_global), torch.zeros_like(data.curve))
    assert (logits(module, black) - logits(module, data, keep=Keep(nothing, nothing))).abs().max() > 1e-2


def test_each_sample_and_each_condition_is_dropped_for_itself():
    module, data = perturbed(model()), batch(4)
    keep = Keep(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
    cross, injected = module.conditions(data.clip_global, data.curve, FRAMES, keep=keep)
    assert [bool(c.any()) for c in cross] == keep.semantic.tolist()
    assert all([bool(f.any()) for f in rows] == keep.rhythm.tolist() for rows in injected.values())
    full, _ = module.conditions(data.clip_global, data.curve, FRAMES)
    assert torch.equal(cross[0], full[0])


def test_a_sample_without_conditions_trains_nothing():
    module, data = perturbed(model()), batch(1)
    nothing = torch.zeros(1, dtype=torch.bool)
    assert not any(g.any() for g in gradients(module, data, keep=Keep(nothing, nothing)).values())


def test_coins_fall_apart_for_each_condition_and_as_often_as_set():
    module = model("drop.semantic=0.1", "drop.rhythm=0.5")
    keep = module.coins(20_000, torch.Generator().manual_seed(4))
    assert keep.semantic.float().mean() == pytest.approx(0.9, abs=0.01)
    assert keep.rhythm.float().mean() == pytest.approx(0.5, abs=0.01)
    assert (keep.semantic & keep.rhythm).float().mean() == pytest.approx(0.45, abs=0.015)
    again = module.coins(20_000, torch.Generator().manual_seed(4))
    assert torch.equal(keep.semantic, again.semantic) and torch.equal(keep.rhythm, again.rhythm)
    assert model("drop.semantic=0", "drop.rhythm=1").coins(5, torch.Generator()).semantic.all()


def test_a_padded_clip_gets_the_conditions_it_gets_alone():
    module, data = perturbed(model()), batch()
    clip_global = torch.cat([data.clip_global, torch.full((2, 2 * SECONDS, CLIP), 3.0)], 1)
    curve = torch.cat([data.curve, torch.full((2, 50 * SECONDS), 3.0)], 1)
    present = (torch.arange(3 * SECONDS) < SECONDS).expand(2, -1)
    valid = (torch.arange(3 * FRAMES) < FRAMES).expand(2, -1)
    cross, injected = module.conditions(clip_global, curve, 3 * FRAMES, present=present, valid=valid)
    alone_cross, alone = module.conditions(data.clip_global, data.curve, FRAMES)
    assert torch.allclose(cross[:, :SECONDS], alone_cross, atol=1e-5) and not cross[:, SECONDS:].any()
    for layer, rows in injected.items():
        assert torch.allclose(rows[:, :FRAMES], alone[layer], atol=1e-4) and not rows[:, FRAMES:].any()
    codes = torch.cat([data.codes, data.codes.repeat(1, 1, 2)], -1)
    assert not module(codes, clip_global, curve, present=present, valid=valid).mask[..., FRAMES:].any()


def test_decoding_takes_the_conditions_as_they_are():
    first = after_stage_1()
    second = start_of_stage_2(first).eval()
    data = batch()
    with torch.no_grad():
        one = first.conditions(data.clip_global, data.curve, 20)
        two = second.conditions(data.clip_global, data.curve[:, :10], 20)
        three = perturbed(second, 0.3).conditions(data.clip_global, data.curve[:, :10], 20)
    codes = [first.decoder.generate(cross, 20, in_attention=rows, greedy=True) for cross, rows in (one, two, three)]
    assert one[1] == {} and tuple(two[1]) == (0, 1, 2, 3, 4, 5)
    assert torch.equal(codes[0], codes[1])  # a rhythm part at its start adds nothing
    assert not torch.equal(codes[1], codes[2])


def test_both_stages_learn_a_batch():
    module, data = model(), batch()
    losses = []
    for stage in (1, 2):
        module.set_stage(stage)
        optimiser = torch.optim.AdamW(module.parameter_groups(0.01), lr=3e-3)
        for _ in range(6):
            optimiser.zero_grad()
            value, _ = loss(module(*data), data.codes)
            value.backward()
            optimiser.step()
            losses.append(value.item())
    assert losses[5] < losses[0] - 0.002
    assert losses[11] < losses[6] - 0.05
    assert losses[6] < losses[5]  # stage 2 goes on from there


def test_weight_decay_leaves_the_rhythm_part_and_all_biases_alone():
    module = perturbed(model(ablation="one_stage"))
    before = {n: p.detach().clone() for n, p in module.trainable_parameters().items()}
    optimiser = torch.optim.AdamW(module.parameter_groups(0.5), lr=0.1)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimiser.step()
    for name, parameter in module.trainable_parameters().items():
        decayed = name.startswith("semantic.") and parameter.ndim > 1
        assert torch.allclose(parameter, before[name] * (0.95 if decayed else 1.0)), name
    assert sum(len(g["params"]) for g in optimiser.param_groups) == len(before)


def test_parameter_groups_are_the_stages_own():
    module = model()
    for stage in (1, 2):
        module.set_stage(stage)
        grouped = {id(p) for g in module.parameter_groups(0.1) for p in g["params"]}
        assert grouped == {id(p) for p in module.trainable_parameters(stage).values()}
        assert grouped == {id(p) for p in module.parameters() if p.requires_grad}


def test_a_checkpoint_holds_the_trained_weights_and_nothing_else(tmp_path):
    module = perturbed(model())
    save_file(module.trained_state(), tmp_path / "trained.safetensors")
    state = load_file(tmp_path / "trained.safetensors")
    assert sum(t.numel() for t in state.values()) == module.count()["trainable"] == 120_896
    other = model(seed=5)
    assert other.load_trained(state) == 2
    assert torch.equal(logits(other, batch()), logits(module, batch()))


def test_a_checkpoint_of_stage_1_leaves_the_rhythm_part_at_its_start():
    module = model()
    module.set_stage(1)
    state = module.trained_state()
    assert all(n.startswith("semantic.") for n in state)
    other = model(seed=5)
    assert other.load_trained(state) == 1
    assert other.rhythm.deviations() == [0.0] * 6 and not other.rhythm.zero.weight.any()


@pytest.mark.parametrize(
    ("overrides", "ablation", "message"),
    [
        (("rhythm.inject_every=4",), "", r"rhythm.chain.2.bias is \(128,\) in it, unknown in the preset"),
        (("semantic.lora_rank=8",), "", r"lora_A.default.weight is \(4, 64\) in it, \(8, 64\) in the preset"),
        (("semantic.projector=trained",), "", r"semantic.projector.bias is missing in it, \(128,\) in the preset"),
        ((), "no_rhythm", r"rhythm.chain.0.bias is \(128,\) in it, unknown in the preset"),
    ],
)
def test_a_checkpoint_of_another_preset_is_refused_whole(overrides, ablation, message):
    state = perturbed(model()).trained_state()
    other = model(*overrides, ablation=ablation)
    before = {n: p.clone() for n, p in other.named_parameters()}
    with pytest.raises(SettingsError, match=message):
        other.load_trained(state)
    assert all(torch.equal(p, before[n]) for n, p in other.named_parameters())


def test_projection_comes_with_the_decoders_weights():
    module = model()
    state = {"weight": torch.randn(128, 64), "bias": torch.randn(128)}
    module.semantic.load_projection(state)
    assert torch.equal(module.semantic.projector.weight, state["weight"])
    with pytest.raises(SettingsError, match="hold the projection"):
        module.semantic.load_projection({"weight": torch.randn(128, 768), "bias": torch.randn(128)})
    with pytest.raises(SettingsError, match=r"the projection \{\}"):
        module.semantic.load_projection({})


def test_the_model_says_what_its_frozen_weights_are():
    provenance = build(load_preset("nano")).provenance
    assert [part["id"] for part in provenance.values()] == ["bundled:backbone", "bundled:backbone"]
    assert all(len(part["digest"]) == 64 and part["licence"] for part in provenance.values())


def test_the_decoder_may_be_bf16_while_what_is_trained_stays_fp32():
    module, data = perturbed(build(load_preset("nano"))), batch()
    plain = logits(module, data)
    module.decoder.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = gradients(module, data)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (logits(module, data) - plain).abs().mean() < 0.02 * plain.std()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_estimate_is_a_close_upper_bound_of_a_steps_peak(checkpointing):
    torch.manual_seed(1)
    preset: Preset = load_preset("nano")
    module = build(preset, checkpointing=checkpointing).train()
    codes, clip, curve = torch.randint(0, 2048, (2, 4, 500)), torch.randn(2, 10, CLIP), torch.rand(2, 250)
    peak = peak_of_step(module, codes, clip, curve)
    estimate = describe(preset, 2, seconds=10, precision="fp32", checkpointing=checkpointing, device="cpu")
    assert peak <= activations(estimate) <= 1.4 * peak


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_estimate_of_bf16_on_a_cpu_counts_the_attention_weights(monkeypatch, checkpointing):
    """Wide and few codes, so that the layers are all there is: logits would hide what is missing."""
    wide = Geometry(layers=2, dim=512, heads=16, ff=1024, cardinality=32)
    monkeypatch.setitem(GEOMETRIES, "nano", wide)
    preset = load_preset("nano", ["semantic.t5=random:nano"])
    module = VidMusician(preset, Decoder(wide, checkpointing=checkpointing)).train()
    module.decoder.to(torch.bfloat16)
    codes, clip, curve = torch.randint(0, 32, (2, 4, 1000)), torch.randn(2, 20, CLIP), torch.rand(2, 500)
    peak = peak_of_step(module, codes, clip, curve)
    options = {"seconds": 20, "precision": "bf16", "checkpointing": checkpointing}
    assert peak <= activations(describe(preset, 2, **options, device="cpu")) <= 1.5 * peak
    assert activations(describe(preset, 2, **options, device="cuda")) < peak


def peak_of_step(module: VidMusician, codes: Tensor, clip: Tensor, curve: Tensor) -> int:
    """Most bytes held at a time beyond what is there before, on a CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss(module(codes, clip, curve), codes)[0].backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def activations(described: dict) -> int:
    parts = described["memory"]["training_bytes"]
    return sum(v for name, v in parts.items() if name not in ("weights", "optimiser", "total"))


def test_frozen_parameters_are_the_rest():
    module = model()
    trainable = module.trainable_parameters()
    assert all(isinstance(p, nn.Parameter) for p in trainable.values())
    assert not any(n.startswith("decoder.") or n.startswith("semantic.projector") for n in trainable)
    assert module.count()["total"] == sum(p.numel() for p in module.parameters())
