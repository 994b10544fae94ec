"""In-attention: where it enters, when, and what it is worth at the start."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.rhythm import Rhythm, injection_layers, magnitudes, resample, standardised
from model.settings import RhythmSettings

LAYERS, DIM = 8, 16


def rhythm(**settings) -> Rhythm:
    torch.manual_seed(3)
    return Rhythm(RhythmSettings(**settings), LAYERS, DIM)


def perturbed(**settings) -> Rhythm:
    module = rhythm(**settings)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(
    ("every", "layers", "expected"),
    [
        (1, 24, tuple(range(18))),
        (4, 48, (0, 4, 8, 12, 16, 20, 24, 28, 32)),
        (4, 24, (0, 4, 8, 12, 16)),
        (1, 4, (0, 1, 2)),
    ],
)
def test_injection_covers_the_first_three_quarters_of_the_depth(every, layers, expected):
    assert injection_layers(RhythmSettings(inject_every=every), layers) == expected


def test_injection_fraction_is_a_setting():
    assert injection_layers(RhythmSettings(inject_fraction=0.5), 24) == tuple(range(12))
    assert injection_layers(RhythmSettings(inject_fraction=1.0), 24) == tuple(range(24))


def test_curve_goes_from_25_to_50_hz_by_timestamps():
    curve = torch.tensor([[1.0, 0.0, 0.5]])  # at 0, 40 and 80 ms
    expected = [[1.0, 0.5, 0.0, 0.25, 0.5, 0.5]]  # at 0, 20, .. 100 ms; the last value is held
    assert torch.equal(resample(curve, 6), torch.tensor(expected))


def test_a_step_can_be_given_what_is_seen_later():
    curve = torch.tensor([[1.0, 0.0, 0.5, 0.0]])
    assert torch.equal(resample(curve, 8, ahead_s=0.06), torch.tensor([[0.25, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]]))
    now, ahead = (perturbed(ahead_s=seconds)(curve, 8) for seconds in (0, 0.06))
    assert all(torch.allclose(now[layer][:, 3:], ahead[layer][:, :-3]) for layer in now)


@given(samples=st.integers(1, 40), extra=st.integers(-1, 1))
def test_resampling_keeps_every_sample_at_its_time(samples, extra):
    curve = torch.linspace(-1, 1, samples)[None] ** 3
    frames = max(1, 2 * samples + extra)  # T25 and T50 are rounded apart, so T50 may be off twice T25 by one
    out = resample(curve, frames)
    assert out.shape == (1, frames)
    assert torch.equal(out[:, ::2][:, :samples], curve[:, : (frames + 1) // 2])
    assert torch.allclose(out[:, 1 : 2 * samples - 2 : 2], (curve[:, :-1] + curve[:, 1:])[:, : (frames - 1) // 2] / 2)


def test_nothing_is_added_at_the_start():
    module = rhythm()
    injected = module(torch.rand(2, 25), 50)
    assert tuple(injected) == (0, 1, 2, 3, 4, 5)
    assert all(f.shape == (2, 50, DIM) and not f.any() for f in injected.values())


def test_random_start_adds_something_at_once():
    injected = rhythm(init="default")(torch.rand(2, 25), 50)
    assert all(f.abs().sum() > 0 for f in injected.values())


def test_chain_applies_the_linears_one_after_the_other():
    module = perturbed()
    curve = torch.rand(1, 3)
    injected = module(curve, 6)
    x = resample(curve, 6)[..., None] @ module.zero.weight.T + module.zero.bias
    for layer, linear in zip(range(6), module.identities(), strict=True):
        x = x @ linear.weight.T + linear.bias
        assert torch.allclose(injected[layer], x, atol=1e-5)


def test_frame_t_stands_in_row_t():
    module = perturbed(inject_fraction=0.1)  # F_1 alone, an affine function of the curve
    spike = torch.zeros(1, 25)
    spike[0, 7] = 1.0
    with_spike, without = (module(c, 50)[0][0] for c in (spike, torch.zeros(1, 25)))
    assert torch.nonzero((with_spike - without).abs().sum(-1)).flatten().tolist() == [13, 14, 15]


def test_null_is_exact_zeros_although_the_biases_are_not():
    module = perturbed()
    curve = torch.zeros(3, 25)
    injected = module(curve, 50, keep=torch.tensor([True, False, True]))
    for f in injected.values():
        assert f[0].any() and f[2].any()  # a flat curve is not the null: it adds the biases
        assert not f[1].any()


def test_frames_beyond_a_short_clip_get_zeros_and_leave_the_rest_as_it_is():
    module = perturbed(standardise=True)
    curve = torch.rand(1, 10)
    alone = module(curve, 20)
    padded = torch.cat([curve, torch.full((1, 15), 7.0)], 1)
    valid = (torch.arange(50) < 20)[None]
    batched = module(padded, 50, valid=valid)
    for layer, f in batched.items():
        assert torch.allclose(f[:, :20], alone[layer][:, :20], rtol=1e-4, atol=1e-4)
        assert not f[:, 20:].any()


def test_standardised_curve_has_mean_0_and_deviation_1():
    curve = torch.tensor([[0.0, 2.0, 4.0, 9.0], [3.0, 3.0, 3.0, 3.0]])
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    expected = torch.tensor([[-(1.5**0.5), 0.0, 1.5**0.5, 0.0], [0.0] * 4])
    assert torch.allclose(standardised(curve, valid), expected)


def test_gradient_at_the_start_reaches_the_zero_linear_and_the_biases_only():
    module = rhythm()
    injected = module(torch.rand(2, 25), 50)
    sum((f * torch.randn_like(f)).sum() for f in injected.values()).backward()
    assert module.zero.weight.grad.abs().min() > 0
    assert module.zero.bias.grad.abs().min() > 0
    for linear in module.identities():
        assert not linear.weight.grad.any()  # exactly zero: their input is
        assert linear.bias.grad.abs().min() > 0


def test_once_the_zero_linear_has_moved_the_identities_learn():
    module = rhythm()
    with torch.no_grad():
        module.zero.weight.fill_(0.1)
    injected = module(torch.rand(2, 25), 50)
    sum((f * torch.randn_like(f)).sum() for f in injected.values()).backward()
    assert all(linear.weight.grad.any() for linear in module.identities())


def test_musicongen_adds_one_tensor_everywhere():
    module = perturbed(kind="musicongen", inject_every=4)
    injected = module(torch.rand(2, 25), 50)
    assert tuple(injected) == (0, 4)
    assert torch.equal(injected[0], injected[4]) and injected[0].any()
    assert [n for n, _ in module.named_parameters()] == ["zero.weight", "zero.bias"]
    assert not rhythm(kind="musicongen")(torch.rand(1, 5), 10)[0].any()


def test_lifted_zero_linear_is_square_and_alone_gets_the_first_gradient():
    module = rhythm(lift=True)
    assert module.zero.weight.shape == (DIM, DIM)
    injected = module(torch.rand(2, 25), 50)
    assert not any(f.any() for f in injected.values())
    sum((f * torch.randn_like(f)).sum() for f in injected.values()).backward()
    assert module.zero.weight.grad.any()
    assert isinstance(module.lift, nn.Linear) and not module.lift.weight.grad.any()


def test_log_helpers_measure_what_they_say():
    module = rhythm()
    assert module.deviations() == [0.0] * 6
    with torch.no_grad():
        module.identities()[2].weight[0, 1] = 3.0
        module.identities()[2].weight[5, 5] = 5.0
    assert module.deviations() == [0.0, 0.0, 5.0, 0.0, 0.0, 0.0]
    f = torch.zeros(1, 4, 2)
    f[0, 1], f[0, 2] = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0])
    assert magnitudes({0: f, 4: torch.zeros(1, 4, 2)}) == {0: 3.0, 4: 0.0}
