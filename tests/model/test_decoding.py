"""Decoding: audiocraft's tokens, the same with and without cache, in a batch or alone, at once or in two goes."""

import shutil
from dataclasses import replace

import pytest
import torch

from model.decoder import Decoder
from model.decoding import UNKNOWN, _drawn
from model.delay import delay_pattern
from tests.model.reference import TOY, audiocraft_generate, audiocraft_lm, ours_of, perturb

B, K, T, N, D = 2, TOY.codebooks, 24, 7, TOY.dim
CPU = torch.device("cpu")


def vectors(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rhythm(frames: int = T) -> dict[int, torch.Tensor]:
    return {0: vectors(B, frames, D, seed=5), 2: vectors(B, frames, D, seed=6)}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def lm():
    return perturb(audiocraft_lm(TOY))


@pytest.fixture(scope="module")
def decoder(lm) -> Decoder:
    return ours_of(lm, TOY)


@torch.no_grad()
def naive(decoder, cross, frames, branches, *, prompt=None):
    """Greedy codes without any cache: the whole sequence through the blocks at every step.

    Args:
        branches: (weight, cross, in_attention): what the weighted logits are summed over.
    """
    samples = len(cross)
    delay = delay_pattern(K, frames, CPU)
    codes = torch.full((samples, K, frames), UNKNOWN)
    if prompt is not None:
        codes[..., : prompt.shape[-1]] = prompt
    tokens = delay.build(codes, TOY.special)
    for step in range(1, frames + K):
        logits = 0
        for weight, keys, added in branches:
            x = decoder.embedded(tokens[..., :step]) + decoder.positions(step)
            for layer, block in enumerate(decoder.blocks):
                if layer in added:
                    shown = added[layer][:, :step]
                    x = x + torch.nn.functional.pad(shown, (0, 0, 0, step - shown.shape[1]))
                x = block(x, keys)
            logits = logits + weight * decoder.logits(x)[:, :, -1]
        unknown = tokens[..., step] == UNKNOWN
        tokens[..., step] = torch.where(unknown, logits.argmax(-1), tokens[..., step])
    return delay.revert(tokens)


def varied(codes: torch.Tensor) -> bool:
    """Whether tokens could differ at all: a model that repeats one code passes any comparison."""
    return codes.unique().numel() > TOY.cardinality / 4


def test_greedy_tokens_equal_audiocrafts(lm, decoder):
    cross = vectors(B, N, D)
    theirs = audiocraft_generate(lm, list(cross), T)
    assert varied(theirs)
    assert torch.equal(decoder.generate(cross, T, greedy=True), theirs)


def test_greedy_tokens_of_a_padded_batch_equal_audiocrafts(lm, decoder):
    long, short = vectors(N, D), vectors(3, D, seed=3)
    theirs = audiocraft_generate(lm, [long, short], T)
    padded = torch.stack([long, torch.cat([short, torch.zeros(N - 3, D)])])
    assert torch.equal(decoder.generate(padded, T, greedy=True), theirs)


@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_sampled_tokens_equal_audiocrafts_for_the_same_seed(lm, decoder, top_k):
    cross = vectors(1, N, D)
    torch.manual_seed(11)
    theirs = audiocraft_generate(lm, list(cross), T, use_sampling=True, top_k=top_k, temp=0.8)
    ours = decoder.generate(cross, T, top_k=top_k, temperature=0.8, generator=seeded(11)[0])
    assert torch.equal(ours, theirs)


def test_continuation_equals_audiocrafts(lm, decoder):
    cross, prompt = vectors(B, N, D), torch.randint(0, TOY.cardinality, (B, K, 9))
    theirs = audiocraft_generate(lm, list(cross), T, prompt=prompt)
    ours = decoder.generate(cross, T, greedy=True, prompt=prompt)
    assert torch.equal(ours[..., :9], prompt)
    assert torch.equal(ours, theirs)


def test_guidance_changes_the_tokens(decoder):
    """A null that isn't null would make guidance a silent no-op."""
    cross = vectors(B, N, D)
    assert not torch.equal(decoder.generate(cross, T, greedy=True), decoder.generate(cross, T, greedy=True, guidance=1))


@pytest.mark.parametrize("mode", ["eager", "static"])
@pytest.mark.parametrize("prompted", [0, 1, 9])
def test_cached_tokens_equal_uncached(decoder, mode, prompted):
    cross, added = vectors(B, N, D), rhythm()
    prompt = torch.randint(0, TOY.cardinality, (B, K, prompted))
    branches = [(3.0, cross, added), (-2.0, torch.zeros_like(cross), {})]
    expected = naive(decoder, cross, T, branches, prompt=prompt)
    codes = decoder.generate(cross, T, in_attention=added, greedy=True, prompt=prompt, mode=mode)
    assert varied(codes)
    assert torch.equal(codes, expected)


def test_unguided_tokens_equal_uncached(decoder):
    cross = vectors(B, N, D)
    expected = naive(decoder, cross, T, [(1.0, cross, rhythm())])
    assert torch.equal(decoder.generate(cross, T, in_attention=rhythm(), greedy=True, guidance=1.0), expected)


@pytest.mark.parametrize("mode", ["eager", "static"])
def test_split_guidance_weighs_semantic_and_rhythm_apart(decoder, mode):
    cross, null = vectors(B, N, D), torch.zeros(B, N, D)
    branches = [(5.0, cross, rhythm()), (2.0 - 5.0, cross, {}), (1.0 - 2.0, null, {})]
    expected = naive(decoder, cross, T, branches)
    options = {"in_attention": rhythm(), "greedy": True, "mode": mode}
    codes = decoder.generate(cross, T, guidance=2.0, guidance_rhythm=5.0, **options)
    assert torch.equal(codes, expected)
    assert not torch.equal(codes, decoder.generate(cross, T, guidance=2.0, **options))


def test_split_guidance_of_equal_scales_is_plain_guidance(decoder):
    cross, options = vectors(B, N, D), {"in_attention": rhythm(), "greedy": True}
    plain = decoder.generate(cross, T, guidance=2.0, **options)
    assert torch.equal(decoder.generate(cross, T, guidance=2.0, guidance_rhythm=2.0, **options), plain)
    nearly = decoder.generate(cross, T, guidance=2.0, guidance_rhythm=2.0 + 1e-6, **options)  # runs three branches
    assert torch.equal(nearly, plain)


def test_a_batch_gives_what_each_sample_gives_alone(decoder):
    cross, added = vectors(B, N, D), rhythm()
    for options in ({"greedy": True}, {"top_k": 8}):
        batch = decoder.generate(cross, T, in_attention=added, generator=seeded(4, 5), **options)
        for b, seed in enumerate((4, 5)):
            own = {layer: x[b : b + 1] for layer, x in added.items()}
            alone = decoder.generate(cross[b : b + 1], T, in_attention=own, generator=seeded(seed), **options)
            assert torch.equal(batch[b : b + 1], alone)


def test_a_seed_gives_the_same_tokens_again_and_another_seed_others(decoder):
    cross = vectors(B, N, D)
    first, again, other = (decoder.generate(cross, T, generator=seeded(s)[0]) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_going_on_from_own_tokens_gives_the_same_tokens(decoder):
    cross, options = vectors(B, N, D), {"in_attention": rhythm(), "greedy": True}
    whole = decoder.generate(cross, T, **options)
    for cut in (1, 10, T - 1):
        assert torch.equal(decoder.generate(cross, T, prompt=whole[..., :cut], **options), whole)


def test_rhythm_reaches_no_earlier_token(decoder):
    cross, at = vectors(B, N, D), 12
    impulse = torch.zeros(B, T, D)
    impulse[:, at:] = vectors(B, T - at, D, seed=8)
    without, with_it = (decoder.generate(cross, T, in_attention=x, greedy=True) for x in (None, {0: impulse}))
    for k in range(K):
        assert torch.equal(without[:, k, : at - k], with_it[:, k, : at - k])
    assert not torch.equal(without, with_it)


def test_top_1_and_low_temperature_are_greedy(decoder):
    cross = vectors(B, N, D)
    greedy = decoder.generate(cross, T, greedy=True)
    assert torch.equal(decoder.generate(cross, T, top_k=1), greedy)
    assert torch.equal(decoder.generate(cross, T, temperature=1e-4), greedy)


def test_draws_have_the_asked_distribution():
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0]).expand(1, 20_000, 5)
    for top_k, kept in ((0, 5), (2, 3), (4, 4), (9, 5)):  # the tie for second place is kept whole
        codes = _drawn(logits, top_k, seeded(0))
        shares = codes.flatten().bincount(minlength=5) / codes.numel()
        expected = torch.cat([logits[0, 0, :kept].softmax(-1), torch.zeros(5 - kept)])
        assert torch.allclose(shares, expected, atol=0.015)


def test_bf16_decodes_in_range_and_alike_in_both_shapes(lm):
    half = ours_of(lm, TOY).bfloat16()
    cross = vectors(B, N, D)
    codes = half.generate(cross, 60, in_attention=rhythm(60), generator=seeded(1, 2))
    assert codes.dtype == torch.long
    assert int(codes.min()) >= 0
    assert int(codes.max()) < TOY.cardinality
    assert torch.equal(half.generate(cross, 60, greedy=True)[..., :8], half.generate(cross, 8, greedy=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler on a CPU")
def test_compiled_tokens_equal_eager_ones():
    shallow = replace(TOY, layers=1)
    decoder = ours_of(perturb(audiocraft_lm(shallow)), shallow)
    cross, options = vectors(B, N, D), {"in_attention": {0: vectors(B, T, D)}, "greedy": True}
    assert torch.equal(
        decoder.generate(cross, T, mode="compile", **options), decoder.generate(cross, T, mode="eager", **options)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want an NVIDIA GPU: run this test on one")
@pytest.mark.parametrize("prompted", [0, 9])
@pytest.mark.parametrize("split", [False, True])
def test_a_captured_graph_gives_the_tokens_of_eager_steps(lm, prompted, split):
    """What capture and replay could get wrong: steps run in advance, the position, tokens of the step before."""
    cuda = torch.device("cuda")
    decoder = ours_of(lm, TOY).to(cuda)
    cross, added = vectors(B, N, D).to(cuda), {layer: x.to(cuda) for layer, x in rhythm().items()}
    prompt = torch.randint(0, TOY.cardinality, (B, K, prompted)).to(cuda)
    options = {"in_attention": added, "prompt": prompt, "guidance_rhythm": 5.0 if split else None, "greedy": True}
    eager = decoder.generate(cross, T, mode="eager", **options)
    assert varied(eager)
    assert torch.equal(decoder.generate(cross, T, mode="graph", **options), eager)
    assert torch.equal(decoder.generate(cross, T, **options), eager)  # what is taken on a GPU unless asked otherwise


def test_tokens_may_be_trained_on(decoder):
    codes = decoder.generate(vectors(B, N, D), T, greedy=True)
    output = decoder(codes, vectors(B, N, D))
    output.logits[output.mask].sum().backward()
    decoder.zero_grad(set_to_none=True)


def test_every_step_is_reported(decoder):
    done = []
    decoder.generate(vectors(1, N, D), 6, greedy=True, on_step=lambda step, steps: done.append((step, steps)))
    assert done == [(i, 6 + K - 1) for i in range(1, 6 + K)]


@pytest.mark.parametrize("shape", [(B, K, T), (B, K - 1, 3), (B + 1, K, 3)])
def test_prompts_that_do_not_fit_are_refused(decoder, shape):
    with pytest.raises(ValueError, match="can't be continued"):
        decoder.generate(vectors(B, N, D), T, prompt=torch.zeros(shape, dtype=torch.long))
