"""The nano codec: its training loop, its measures, and what the bundled weights can do."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional

from pipeline.codec import build_codec, load_codec
from pipeline.config import CodecSettings
from pipeline.media import audio_window
from pipeline.nano import codec, codec_report
from pipeline.nano.geometry import CODEC, CodecGeometry
from pipeline.nano.songs import RATE, song
from pipeline.weights import bundled

BUNDLED = CodecSettings(model="bundled:codec", device="cpu")
SMALL = CodecGeometry(filters=4, dimension=8, lstm=0, ratios=CODEC["nano"].ratios, cardinality=32)


@pytest.fixture
def small(monkeypatch):
    """A tiny network, small batches, and coloured noise instead of hours of rendered songs."""
    rng = np.random.default_rng(0)
    noise = np.cumsum(rng.normal(0, 300, (3, 3 * RATE)), axis=1).clip(-32767, 32767).astype(np.int16)
    monkeypatch.setattr(codec, "songs", lambda split: (noise, ("noise",) * 3))
    monkeypatch.setattr(codec, "film_sound", lambda split: noise[0] / np.float32(32767))
    monkeypatch.setattr(codec, "GEOMETRY", SMALL)
    monkeypatch.setattr(codec, "BATCH", 4)
    monkeypatch.setattr(codec, "START_VECTORS", 800)


@pytest.fixture(scope="module")
def held_out() -> np.ndarray:
    return np.stack([song(np.random.default_rng([1, seed]), "test", 4).audio for seed in range(6)])


def test_batches_are_the_same_after_a_restart(small):
    going = codec._batches(seed=3, step=0)
    firsts = [next(going) for _ in range(3)]
    assert firsts[0].shape == (4, 1, round(codec.CROP_S * RATE))
    assert not torch.equal(firsts[0], firsts[1])
    assert torch.equal(firsts[2], next(codec._batches(seed=3, step=2)))


def test_training_writes_weights_and_goes_on_from_its_checkpoint(small, tmp_path: Path):
    out, log = tmp_path / "w.safetensors", io.StringIO()
    console = Console(file=log, width=200)
    codec.train(0.01, out, seed=0, threads=2, console=console)
    first = codec_report.load_model(out).state_dict()
    codec.train(0.05, out, seed=0, threads=2, console=console)
    assert "going on from step" in log.getvalue()
    again = codec_report.load_model(out).state_dict()
    assert not torch.equal(first["decoder.model.0.conv.conv.bias"], again["decoder.model.0.conv.conv.bias"])
    assert not torch.equal(
        first["quantizer.vq.layers.0._codebook.embed"], again["quantizer.vq.layers.0._codebook.embed"]
    )


def test_two_threads_find_the_gradient_that_one_finds(small):
    model = build_codec(SMALL).train()
    networks = codec._networks(model, 2)
    audio = next(codec._batches(0, 0))
    used = np.full(2, 4)

    def gradients(network, share):
        latent = codec._encode(network, share)
        return codec._gradients(network, share, latent, None, used)[1]

    with codec.ThreadPoolExecutor(2) as pool:
        together = list(pool.map(gradients, networks, audio.chunk(2)))
    alone = [gradients(model, share) for share in audio.chunk(2)]
    for ours, theirs in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_latent_depends_on_the_sound_from_the_first_step(small):
    """Before layers are scaled, what passes through a dozen of them is next to nothing beside their biases."""
    model = build_codec(SMALL)
    audio = next(codec._batches(0, 0))
    codec._scale(model, audio)
    with torch.inference_mode():
        latent = model.encoder(audio)
        made = model.decoder(latent)
    assert float(latent.std()) == pytest.approx(1, abs=0.05)
    assert float(latent.std(dim=(0, 2)).min()) > 0.1
    assert float(made.std() / audio.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_elu_is_elu(dtype: torch.dtype):
    x = torch.cat([torch.linspace(-20, 5, 999), torch.tensor([0.0, -1e-4, 1e-4])]).to(dtype).requires_grad_()
    y, wanted = codec._Elu.apply(x), functional.elu(x)
    torch.testing.assert_close(y, wanted, atol=2e-7, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)
    weight = torch.rand(len(x), generator=torch.Generator().manual_seed(0)).to(dtype)
    gradients = [torch.autograd.grad((each * weight).sum(), x)[0] for each in (y, wanted)]
    torch.testing.assert_close(*gradients, atol=4e-3 if dtype == torch.bfloat16 else 1e-6, rtol=1e-2)


def test_codebooks_start_from_clusters_and_unused_entries_move_to_vectors_that_are_met(small):
    model = build_codec(SMALL).train()
    codec._networks(model, 1)
    codec._start_codebooks(model, codec._batches(0, 0))
    latent = codec._encode(model, next(codec._batches(0, 99))).detach()
    sums = codec._quantise(model, latent, restart=False)
    assert sums.shape == (4, *latent.shape)
    errors = [float((latent - each).square().mean()) for each in sums]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]

    book = model.quantizer.vq.layers[0]._codebook
    book.embed[5], book.embed_avg[5], book.cluster_size[5] = 1e3, 0, 0
    codec._quantise(model, latent, restart=True)
    vectors = latent.transpose(1, 2).flatten(0, 1)
    assert float((vectors - book.embed[5]).norm(dim=1).min()) < 1e-4
    codec._quantise(model, latent, restart=False)
    assert float((vectors - book.embed[5]).norm(dim=1).min()) < float(vectors.norm(dim=1).mean())


def test_each_loss_has_its_weight_in_every_crop_however_quiet(small):
    model, weights = build_codec(SMALL), [*codec.WEIGHTS]
    audio = next(codec._batches(0, 0))[:1]
    codec._scale(model, audio)

    def of_decoder(level: float) -> list[torch.Tensor]:
        latent = codec._encode(model, audio)
        encoder = len(list(model.encoder.parameters()))
        return list(codec._gradients(model, level * audio, latent, None, np.array([4]))[1][encoder:])

    loud, quiet = (torch.cat([g.flatten() for g in of_decoder(level)]).norm() for level in (1.0, 0.03))
    assert weights == [0.4, 0.5, 1.0] and 0.2 < float(loud / quiet) < 5


class TestMeasures:
    """Values that can be worked out."""

    def test_si_sdr_ignores_level_and_measures_noise(self):
        rng = np.random.default_rng(0)
        clips, noise = rng.normal(0, 0.1, (2, 2, RATE))
        assert codec_report.si_sdr(clips, 0.3 * clips).min() > 60
        np.testing.assert_allclose(codec_report.si_sdr(clips, clips + 0.1 * noise), 20, atol=0.5)

    def test_mel_distance_of_a_gain_is_that_gain(self):
        clips = np.random.default_rng(0).normal(0, 0.3, (1, RATE)).astype(np.float32)
        assert codec_report.mel_distance(clips, clips) == 0
        assert codec_report.mel_distance(clips, clips / 2) == pytest.approx(6.0, abs=0.3)

    def test_codebook_use_counts_entries_and_their_evenness(self):
        assert codec_report.codebook_use(torch.arange(2048)) == pytest.approx((1.0, 2048))
        assert codec_report.codebook_use(torch.tensor([7, 7, 7])) == pytest.approx((1 / 2048, 1))

    def test_onsets_are_found_again_within_50_ms_and_no_further(self):
        def clicks(times: list[float]) -> np.ndarray:
            audio = np.random.default_rng(0).normal(0, 1e-4, 4 * RATE)
            for at in times:
                audio[round(at * RATE) : round(at * RATE) + 800] += np.hanning(1600)[800:] * np.sin(np.arange(800))
            return audio.astype(np.float32)

        truth = clicks([0.5, 1.5, 2.5, 3.2])
        assert codec_report.onset_f1(truth, clicks([0.53, 1.47, 2.5, 3.2])) == 1
        assert codec_report.onset_f1(truth, clicks([0.6, 1.6, 2.5, 3.2])) == 0.5
        assert codec_report.onset_f1(truth, clicks([0.5, 1.5])) == pytest.approx(2 / 3)


def test_the_page_has_originals_beside_reconstructions_that_play(tmp_path: Path):
    model = build_codec(SMALL)
    clip = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    page = codec_report.write_page(model, [("a <tune>", clip)], tmp_path / "page")
    text = page.read_text(encoding="utf-8")
    files = sorted(p.name for p in page.parent.glob("*.wav"))
    assert len(files) == 4 and all(f'src="{name}"' in text for name in files)
    assert "a &lt;tune&gt;" in text
    played = audio_window(page.parent / "00-original.wav", rate=RATE, channels=1, start_s=0, end_s=1)
    np.testing.assert_allclose(played[0], clip, atol=1e-6)


class TestBundledWeights:
    """What comes with dvmset."""

    def test_they_are_small_and_say_what_they_are(self):
        assert bundled("codec").stat().st_size < 3.2e6
        loaded = load_codec(BUNDLED)
        assert (loaded.id, loaded.licence) == ("bundled:codec", "Apache-2.0")
        assert (loaded.rate, loaded.frame_rate, loaded.codebooks, loaded.cardinality) == (RATE, 50, 4, 2048)
        books = [layer._codebook for layer in loaded._model.quantizer.vq.layers]
        assert all(book.inited.item() == 1 and torch.equal(book.embed, book.embed_avg) for book in books)

    def test_codes_are_the_same_every_time_and_use_the_codebooks_widely(self, held_out: np.ndarray):
        loaded = load_codec(BUNDLED)
        codes = np.stack([loaded.encode(clip) for clip in held_out])
        load_codec.cache_clear()
        assert np.array_equal(load_codec(BUNDLED).encode(held_out[0]), codes[0])
        for k in range(4):
            use, perplexity = codebook_report(codes[:, k])
            assert use > 0.1 and perplexity > 100  # of 1,200 frames

    def test_each_codebook_brings_held_out_songs_nearer_and_onsets_stay(self, held_out: np.ndarray):
        loaded, twin = (load_codec(CodecSettings(model=m, device="cpu")) for m in ("bundled:codec", "random:nano"))
        codes = codec_report.encode(loaded._model, held_out)
        made = [codec_report.decode(loaded._model, codes, k) for k in (1, 2, 4)]
        distances = [codec_report.mel_distance(held_out, each) for each in made]
        untrained = np.stack([twin.decode(twin.encode(clip)) for clip in held_out])
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 0.5 * codec_report.mel_distance(held_out, untrained)
        assert codec_report.si_sdr(held_out, made[-1]).mean() > 1
        assert np.nanmean([codec_report.onset_f1(a, b) for a, b in zip(held_out, made[-1], strict=True)]) > 0.6


def codebook_report(codes: np.ndarray) -> tuple[float, float]:
    return codec_report.codebook_use(torch.from_numpy(codes.astype(np.int64)))
