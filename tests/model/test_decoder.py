"""The training forward and its loss: equal to audiocraft's and transformers', causal, and with in-attention exact."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoints import convert
from model.decoder import GEOMETRIES, Decoder, Geometry, loss
from model.delay import delay_pattern
from tests.model.reference import TOY, audiocraft_conditions, audiocraft_lm, ours_of, perturb, transformers_config

B, K, T, N, D = 2, TOY.codebooks, 50, 7, TOY.dim
CPU = torch.device("cpu")


def codes(frames: int = T, seed: int = 1, samples: int = B) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOY.cardinality, (samples, K, frames), generator=generator)


def vectors(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lm():
    return perturb(audiocraft_lm(TOY))


@pytest.fixture
def decoder(lm) -> Decoder:
    return ours_of(lm, TOY)


def difference(ours, theirs, mask) -> float:
    assert theirs[mask].std() > 0.5  # else a small difference says nothing
    return float((ours - theirs)[mask].abs().max())


@torch.no_grad()
def test_logits_and_mask_equal_audiocrafts(lm, decoder):
    cross = vectors(B, N, D)
    theirs = lm.compute_predictions(codes(), audiocraft_conditions(cross))
    ours = decoder(codes(), cross)
    assert torch.equal(ours.mask, theirs.mask)
    assert ours.mask[0].sum(-1).tolist() == [50, 49, 48, 47]
    assert torch.equal(ours.logits.isnan(), theirs.logits.isnan())
    assert difference(ours.logits, theirs.logits, ours.mask) < 1e-5


@torch.no_grad()
def test_logits_equal_transformers(decoder):
    from transformers import MusicgenForCausalLM

    theirs = MusicgenForCausalLM(transformers_config(TOY)).eval()
    state = convert(decoder.state_dict(), "ours", "transformers", TOY)
    missing = theirs.load_state_dict({n.removeprefix("decoder."): w for n, w in state.items()}, strict=False)
    assert not missing.unexpected_keys
    assert all("embed_positions" in n for n in missing.missing_keys)
    cross = vectors(B, N, D)
    tokens = delay_pattern(K, T, CPU).build(codes(), TOY.special)[..., :T]
    logits = theirs(input_ids=tokens.flatten(0, 1), encoder_hidden_states=cross).logits.unflatten(0, (B, K))
    ours = decoder(codes(), cross)
    assert difference(ours.logits, delay_pattern(K, T, CPU).align(logits), ours.mask) < 1e-5


@torch.no_grad()
def test_loss_equals_audiocrafts(lm, decoder):
    from audiocraft.solvers.musicgen import MusicGenSolver

    cross = vectors(B, N, D)
    theirs = lm.compute_predictions(codes(), audiocraft_conditions(cross))
    mean, per_codebook = MusicGenSolver._compute_cross_entropy(None, theirs.logits, codes(), theirs.mask)
    ours, ours_per_codebook = loss(decoder(codes(), cross), codes())
    assert float(ours) == pytest.approx(float(mean), abs=1e-6)
    assert ours_per_codebook.tolist() == pytest.approx([float(x) for x in per_codebook], abs=1e-6)


@torch.no_grad()
def test_padded_keys_are_attended_as_zeros_like_audiocrafts(lm, decoder):
    long, short = vectors(N, D), vectors(3, D, seed=3)
    theirs = lm.compute_predictions(codes(), audiocraft_conditions([long, short]))
    padded = torch.cat([short, torch.zeros(N - 3, D)])
    ours = decoder(codes(), torch.stack([long, padded]))
    assert difference(ours.logits, theirs.logits, ours.mask) < 1e-5
    alone = decoder(codes()[1:], short[None])
    assert (alone.logits - ours.logits[1:])[alone.mask].abs().max() > 0.01  # zeros take their share of attention


@torch.no_grad()
def test_null_condition_is_zeros_as_audiocraft_nulls_it(lm, decoder):
    from audiocraft.modules.conditioners import ClassifierFreeGuidanceDropout

    given = audiocraft_conditions(vectors(B, N, D))
    theirs = lm.compute_predictions(codes(), ClassifierFreeGuidanceDropout(p=1.0)(given))
    ours = decoder(codes(), torch.zeros(B, N, D))
    assert difference(ours.logits, theirs.logits, ours.mask) < 1e-5
    conditioned = decoder(codes(), vectors(B, N, D))
    assert (conditioned.logits - ours.logits)[ours.mask].abs().max() > 0.1  # a guidance of equal branches is none


@torch.no_grad()
def test_in_attention_equals_adding_before_audiocrafts_layers(lm, decoder):
    cross, added = vectors(B, N, D), {0: vectors(B, T, D, seed=4), 2: vectors(B, T, D, seed=5)}
    before = [x.clone() for x in added.values()]

    def adding(layer):
        def hook(_module, arguments):
            return arguments[0] + torch.nn.functional.pad(added[layer], (0, 0, 0, 1)), *arguments[1:]

        return lm.transformer.layers[layer].register_forward_pre_hook(hook)

    hooks = [adding(layer) for layer in added]
    try:
        theirs = lm.compute_predictions(codes(), audiocraft_conditions(cross))
    finally:
        for hook in hooks:
            hook.remove()
    ours = decoder(codes(), cross, in_attention=added)
    assert difference(ours.logits, theirs.logits, ours.mask) < 1e-5
    assert all(torch.equal(x, y) for x, y in zip(before, added.values(), strict=True))  # added out of place


@torch.no_grad()
def test_in_attention_of_zeros_changes_no_bit(decoder):
    cross = vectors(B, N, D)
    zeros = {layer: torch.zeros(B, T + 1, D) for layer in range(TOY.layers)}
    with_zeros, without = (decoder(codes(), cross, in_attention=x).logits for x in (zeros, None))
    assert torch.equal(with_zeros.nan_to_num(), without.nan_to_num())


@torch.no_grad()
def test_in_attention_row_t_first_reaches_frame_t_of_codebook_0(decoder):
    cross, at = vectors(B, N, D), 20
    impulse = torch.zeros(B, T, D)
    impulse[:, at] = vectors(B, D)
    without, with_it = (decoder(codes(), cross, in_attention=x).logits for x in (None, {1: impulse}))
    for k in range(K):  # codebook k is k steps late, so that it meets row t at frame t - k
        changed = (with_it[:, k] - without[:, k]).abs().amax((0, 2)) > 0
        assert not changed[: at - k].any()
        assert changed[at - k : T - k].all()


@torch.no_grad()
def test_in_attention_may_be_shorter_or_longer_than_the_clip(decoder):
    cross, added = vectors(B, N, D), vectors(B, T + 3, D)
    cut = torch.nn.functional.pad(added[:, :10], (0, 0, 0, T - 10))
    short, padded = (decoder(codes(), cross, in_attention={0: x}).logits for x in (added[:, :10], cut))
    assert torch.equal(short.nan_to_num(), padded.nan_to_num())
    long, whole = (decoder(codes(), cross, in_attention={0: x}).logits for x in (added, added[:, :T]))
    assert torch.equal(long.nan_to_num(), whole.nan_to_num())


@torch.no_grad()
def test_no_future_leaks(decoder):
    cross, frame = vectors(B, N, D), 30
    changed = codes().clone()
    changed[:, :, frame:] = (changed[:, :, frame:] + 1) % TOY.cardinality
    before, after = decoder(codes(), cross).logits, decoder(changed, cross).logits
    for k in range(K):  # the code (frame, codebook 0), the first that changed, is read at step frame + 1
        assert torch.equal(before[:, k, : frame + 1 - k], after[:, k, : frame + 1 - k])
        assert not torch.equal(before[:, k, frame + 1 - k], after[:, k, frame + 1 - k])


def test_a_padded_clip_is_trained_on_as_if_alone(decoder):
    cross, valid = vectors(B, N, D), torch.arange(T) < torch.tensor([[T], [31]])
    other = codes().clone()
    other[1, :, 31:] = 0
    first, second = (decoder(c, cross, padding=valid) for c in (codes(), other))
    assert torch.equal(loss(first, codes())[0], loss(second, other)[0])
    assert first.mask.sum(-1).tolist() == [[50, 49, 48, 47], [31, 30, 29, 28]]
    alone = decoder(codes()[1:, :, :31], cross[1:])
    assert torch.allclose(first.logits[1][first.mask[1]], alone.logits[0][alone.mask[0]], atol=1e-5)


def test_loss_is_the_mean_of_codebooks_not_of_codes():
    output = Decoder(TOY)(codes(6), vectors(B, N, D))
    ours, per_codebook = loss(output, codes(6))
    by_hand = []
    for k, frames in enumerate((6, 5, 4, 3)):
        probabilities = output.logits[:, k, :frames].softmax(-1)
        by_hand.append(float(-probabilities.gather(-1, codes(6)[:, k, :frames, None]).log().mean().detach()))
    assert per_codebook.tolist() == pytest.approx(by_hand, abs=1e-5)
    assert float(ours.detach()) == pytest.approx(sum(by_hand) / 4, abs=1e-5)


def test_codebook_with_nothing_to_predict_counts_as_zero():
    decoder = Decoder(TOY)
    value, per_codebook = loss(decoder(codes(2), vectors(B, N, D)), codes(2))
    assert per_codebook[2:].tolist() == [0.0, 0.0]
    value.backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters())


def test_gradients_reach_conditions_of_a_frozen_decoder_and_nans_reach_nothing(decoder):
    decoder.requires_grad_(False)
    cross, added = vectors(B, N, D).requires_grad_(), vectors(B, T, D).requires_grad_()
    value, _ = loss(decoder(codes(), cross, in_attention={0: added, 1: added}), codes())
    value.backward()
    for gradient in (cross.grad, added.grad):
        assert gradient.isfinite().all()
        assert (gradient.abs().amax((0, 2)) > 0).all()
    assert all(p.grad is None for p in decoder.parameters())


def test_checkpointing_changes_neither_loss_nor_gradients(lm):
    results = []
    for checkpointing in (False, True):
        decoder = ours_of(lm, TOY).train()
        decoder.checkpointing = checkpointing
        added = vectors(B, T, D).requires_grad_()
        value, _ = loss(decoder(codes(), vectors(B, N, D), in_attention={1: added}), codes())
        value.backward()
        results.append([value, added.grad, *(p.grad for p in decoder.parameters())])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_checkpointing_keeps_one_activation_per_layer(lm):
    kept = []
    for checkpointing in (False, True):
        decoder, saved = ours_of(lm, TOY).train(), []
        decoder.checkpointing = checkpointing
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: s.append(x.numel()) or x, lambda x: x):
            decoder(codes(), vectors(B, N, D))
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2


def test_positions_are_audiocrafts_in_fp32_and_cast_once_in_bf16(decoder):
    from audiocraft.modules.transformer import create_sin_embedding

    def theirs(dtype):
        return create_sin_embedding(torch.arange(1504).view(1, -1, 1), D, dtype=dtype)[0]

    table = decoder.positions(1504)
    assert torch.equal(table, theirs(torch.float32))
    halved = decoder.bfloat16().positions(1504)
    assert torch.equal(halved, table.bfloat16())
    # What the cast at the end avoids: steps above 256 aren't all bf16 numbers.
    wrong = theirs(torch.bfloat16).float()
    assert (halved.float() - table).abs().max() < 0.005
    assert (wrong - table).abs().max() > 1.0


def test_bf16_decoder_is_near_the_fp32_one(decoder):
    cross = vectors(B, N, D)
    full = decoder(codes(400), cross, in_attention={0: vectors(B, 400, D)})
    half = decoder.bfloat16()(codes(400), cross, in_attention={0: vectors(B, 400, D)})
    assert half.logits.dtype == torch.bfloat16
    assert (half.logits.float() - full.logits)[full.mask].abs().mean() < 0.03


@pytest.mark.parametrize(("name", "millions"), [("small", 419.6), ("medium", 1837.6), ("large", 3255.4)])
def test_geometries_have_musicgens_sizes(name, millions):
    geometry = GEOMETRIES[name]
    with torch.device("meta"):
        decoder = Decoder(geometry)
    count = sum(p.numel() for p in decoder.parameters())
    L, width = geometry.layers, geometry.dim
    assert count == L * (16 * width**2 + 6 * width) + 4 * 2049 * width + 4 * 2048 * width + 2 * width
    assert round(count / 1e6, 1) == millions
    assert width // geometry.heads == 64


def test_three_quarters_of_the_layers_are_a_whole_number():
    assert all(geometry.layers * 3 % 4 == 0 for geometry in GEOMETRIES.values())


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="no multiple of 3 heads"):
        Geometry(layers=1, dim=64, heads=3, ff=1)


def test_weights_start_as_audiocrafts():
    decoder = Decoder(Geometry(layers=4, dim=256, heads=4, ff=1024))
    # Of a Gaussian cut at 3 sigma, 0.9866 sigma are left.
    assert float(decoder.embed.weight.detach().std() * math.sqrt(256)) == pytest.approx(0.987, abs=0.01)
    for depth, block in enumerate(decoder.blocks, start=1):
        sigma = 1 / math.sqrt(1024 * 2 * depth)
        assert float(block.down.weight.std() / sigma) == pytest.approx(0.987, abs=0.02)
        assert float(block.down.weight.abs().max()) <= 3 * sigma * 1.0001


@given(frames=st.integers(1, 80), codebooks=st.integers(1, 6), seed=st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_delay_reverted_is_the_identity(frames, codebooks, seed):
    delay = delay_pattern(codebooks, frames, CPU)
    given_codes = torch.randint(0, 99, (2, codebooks, frames), generator=torch.Generator().manual_seed(seed))
    tokens = delay.build(given_codes, 99)
    assert tokens.shape == (2, codebooks, frames + codebooks)
    assert torch.equal(delay.revert(tokens), given_codes)
    for k in range(codebooks):  # codebook k stands at steps k + 1 ... k + T, nothing else does
        assert torch.equal(tokens[:, k, k + 1 : k + 1 + frames], given_codes[:, k])
        assert (tokens[:, k] == 99).sum() == 2 * codebooks
        assert delay.mask[k].sum() == max(0, frames - k)


@given(frames=st.integers(4, 60), codebooks=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_delay_is_audiocrafts_in_all_that_training_uses(frames, codebooks):
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider

    pattern = DelayedPatternProvider(codebooks).get_pattern(frames)
    delay = delay_pattern(codebooks, frames, CPU)
    given_codes = torch.randint(0, 99, (1, codebooks, frames))
    valid, _, _ = pattern.build_pattern_sequence(given_codes, 99, keep_only_valid_steps=True)
    assert valid.shape[-1] == frames + 1
    assert torch.equal(delay.build(given_codes, 99)[..., : frames + 1], valid)
    logits = torch.randn(1, 5, codebooks, frames + 1)
    theirs, _, mask = pattern.revert_pattern_logits(logits, math.nan, keep_only_valid_steps=True)
    ours = delay.align(logits.permute(0, 2, 3, 1)[:, :, :frames])
    assert torch.equal(delay.mask, mask)
    assert torch.equal(ours.nan_to_num(), theirs.permute(0, 2, 3, 1).nan_to_num())
    assert torch.equal(ours.isnan().any(-1)[0], ~mask)


def test_the_forward_loads_neither_audiocraft_nor_transformers():
    program = (
        "import sys, torch; from model.decoder import Decoder, Geometry\n"
        "Decoder(Geometry(1, 8, 2, 8, cardinality=5))(torch.zeros(1, 4, 9, dtype=torch.long), torch.zeros(1, 2, 8))\n"
        "print([n for n in ('audiocraft', 'transformers', 'spacy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
