"""The nano backbone: its material, its training loop, its file as part of a preset, and its yardsticks."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from model import checkpoints
from model.decoder import loss
from model.nano import backbone, held_out, material
from model.nano.backbone import Captioned
from model.nano.material import Material
from model.settings import load_preset
from model.vidmusician import build, describe
from pipeline import weights
from pipeline.codec import load_codec, weights_digest
from pipeline.config import CodecSettings
from pipeline.errors import MissingWeights
from pipeline.media import audio_window
from pipeline.nano import training
from pipeline.nano.songs import song
from pipeline.storage import Store, file_digest

BUNDLED = ("decoder.weights=bundled:backbone", "semantic.t5=bundled:backbone")


@pytest.fixture(scope="module")
def model() -> Captioned:
    torch.manual_seed(3)
    made = Captioned()
    with torch.no_grad():  # norms off their ones
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def songs() -> Material:
    codes = np.random.default_rng(0).integers(0, 2048, (6, 4, 2000)).astype(np.int16)
    return Material(codes, [f"slow hymn on harp {i}" for i in range(6)], [[]] * 6)


@pytest.fixture
def file(model: Captioned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's file where bundled weights lie."""
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    path = tmp_path / "backbone.safetensors"
    model.write(path, codec="c" * 64)
    return path


def test_its_loss_is_that_of_aligned_logits(model: Captioned, songs: Material):
    batch = backbone.batch_of(songs, [(0, 0), (3, 77)], 40)
    with torch.no_grad():
        _, wanted = loss(model.decoder(batch.codes, model.cross(batch.text)), batch.codes)
        assert torch.allclose(model(batch), wanted, atol=1e-5)


def test_a_caption_that_is_not_kept_is_exact_zeros(model: Captioned):
    text = backbone.tokenize(["harp", "slow harp"])
    cross = model.cross(text, torch.tensor([True, False]))
    assert cross.shape == (2, 10, 128) and not cross[1].any()
    assert cross[0, :5].any() and not cross[0, 5:].any()  # four bytes and an end sign


def test_its_file_is_decoder_t5_and_projection_of_a_preset(model: Captioned, file: Path):
    musician = build(load_preset("nano", BUNDLED)).eval()
    prompt = "fast fiddle tune on banjo"
    cross = musician.semantic(torch.zeros(1, 0, 192), text=musician.semantic.tokenize([prompt]))
    wanted = model.cross(backbone.tokenize([prompt]))
    assert cross.shape == wanted.shape
    assert (cross - wanted).abs().max() < 5e-3 * wanted.abs().max()  # stored as float16
    assert torch.equal(musician.decoder.heads.weight, model.decoder.heads.weight.half().float())
    part = {"id": "bundled:backbone", "digest": file_digest(file), "licence": "Apache-2.0"}
    assert musician.provenance == {"decoder": part, "t5": part}
    assert not any(p.requires_grad for n, p in musician.semantic.t5.named_parameters() if "lora" not in n)


def test_its_file_is_read_back_as_it_was_written(model: Captioned, file: Path):
    state = Captioned.read(file).state_dict()
    assert all(torch.equal(w.half().float(), state[n]) for n, w in model.state_dict().items())
    assert file.stat().st_size < 10e6


def test_a_preset_with_bundled_weights_is_described_without_them():
    described = describe(load_preset("nano", BUNDLED), batch=1)
    assert described["models"] == {"decoder": "bundled:backbone", "t5": "bundled:backbone"}
    assert described["parameters"] == describe(load_preset("nano"), batch=1)["parameters"]


def test_t5_from_scratch_takes_the_shape_but_not_the_weights(file: Path):
    musician = build(load_preset("nano", BUNDLED, ablation="t5_scratch"))
    assert musician.provenance["t5"]["id"] == "backbone from scratch"
    assert musician.provenance["decoder"]["digest"] == file_digest(file)
    assert musician.semantic.tokenize(["abc"]).ids.tolist() == [[100, 101, 102, 1]]


def test_a_decoder_without_a_t5_in_its_file_is_no_t5(model: Captioned, file: Path):
    checkpoints.save_backbone(file, model.decoder, model.projector.state_dict(), licence="")
    with pytest.raises(MissingWeights, match="bundled:backbone on this machine don't fit"):
        build(load_preset("nano", BUNDLED))


def test_a_batch_depends_on_seed_and_number_alone(songs: Material):
    one, two = (backbone.training_batch(songs, 3, 7) for _ in range(2))
    assert torch.equal(one.codes, two.codes) and torch.equal(one.text.ids, two.text.ids)
    assert torch.equal(one.keep, two.keep)
    assert not torch.equal(one.codes, backbone.training_batch(songs, 3, 8).codes[: len(one.codes), :, : 10 * 50])


def test_crops_have_three_lengths_and_a_fifth_loses_its_caption(songs: Material):
    batches = [backbone.training_batch(songs, 0, n) for n in range(120)]
    assert {tuple(b.codes.shape) for b in batches} == {(4, 4, 500), (2, 4, 1000), (2, 4, 1500)}
    assert 0.75 < torch.cat([b.keep for b in batches]).float().mean() < 0.85


def test_shares_of_a_batch_give_the_gradient_of_the_whole(songs: Material, model: Captioned):
    batch = backbone.batch_of(songs, [(i, 5 * i) for i in range(4)], 30)
    whole = torch.autograd.grad(model(batch).mean(), list(model.parameters()))
    shares = [torch.autograd.grad(model(b).mean(), list(model.parameters())) for b in backbone._split(batch, 2)]
    for one, two, wanted in zip(*shares, whole, strict=True):
        assert torch.allclose((one + two) / 2, wanted, atol=1e-6)


def test_training_learns_writes_weights_and_goes_on_from_its_checkpoint(songs: Material, tmp_path: Path, monkeypatch):
    seconds = itertools.count()  # a clock by which each step takes two
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(backbone, "CROPS", ((1, 2, 1.0),))
    songs.codes[:] = songs.codes[:1, :1, :1]  # one code for ever
    out, log = tmp_path / "b.safetensors", io.StringIO()
    arguments = {"codec": "c" * 64, "seed": 0, "threads": 1, "console": Console(file=log, width=200)}
    backbone.train(0.1, out, songs, songs, **arguments)
    first = Captioned.read(out)
    backbone.train(0.6, out, songs, songs, **arguments)
    assert "going on from step 3" in log.getvalue()
    batch = backbone.batch_of(songs, [(0, 0)], 50)
    with torch.no_grad():
        before, after = first(batch).mean(), Captioned.read(out)(batch).mean()
    assert after < before - 0.1


def test_bf16_training_attends_as_fp32_does(songs: Material, model: Captioned):
    batch = backbone.batch_of(songs, [(0, 0)], 300)  # more than two blocks of queries
    wanted = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(batch), wanted, rtol=3e-3)


@pytest.mark.slow
def test_songs_are_rendered_once_and_encoded_once_per_codec(tmp_path: Path, monkeypatch):
    class Loudness:
        """Stands in for a codec: the level of each frame."""

        hop = 640

        def __init__(self, digest: str) -> None:
            self.digest, self.runs = digest, 0

        def encode(self, audio: np.ndarray) -> np.ndarray:
            self.runs += 1
            return (np.abs(audio).reshape(1, -1, 640).max(-1) * 2047).astype(np.int16).repeat(4, 0)

    monkeypatch.setattr(material, "_store", lambda: Store(tmp_path))
    codec, other = Loudness("a" * 64), Loudness("b" * 64)
    with monkeypatch.context() as patch:
        patch.setattr(material, "SECONDS", 2)
        first = material.material("test", 1, codec, 1)
        again = material.material("test", 1, codec, 1)
        assert codec.runs == 1 and np.array_equal(first.codes, again.codes) and first.captions == again.captions
        assert first.codes.shape == (1, 4, 100) and first.codes.max() > 1500 and " on " in first.captions[0]
        material.material("test", 1, other, 1)
        assert other.runs == 1


def test_unigram_and_bigram_know_what_they_can_know():
    cycle = np.tile(np.arange(8), 50)[None, None]
    assert held_out._unigram(cycle, cycle, 8) == pytest.approx([math.log(8)])
    assert held_out._bigram(cycle, cycle, 8)[0] < 0.05
    noise = np.random.default_rng(0).integers(0, 8, (2, 2, 20000))
    assert held_out._bigram(noise[:1], noise[1:], 8) == pytest.approx([math.log(8)] * 2, abs=0.01)


def test_the_table_sets_the_model_beside_n_grams(model: Captioned, songs: Material):
    few = Material(songs.codes[:2, :, :1500], songs.captions[:2], [[]] * 2)
    shown = Console(file=io.StringIO(), width=200)
    shown.print(held_out.table(model, songs, few))
    lines = [line for line in shown.file.getvalue().splitlines() if "│" in line]
    assert len(lines) == 8 and "7.625" in lines[0]  # log 2048


def test_samples_go_on_from_what_is_given_and_do_not_depend_on_the_batch(model: Captioned, songs: Material):
    both = held_out.generate(model, songs.captions[:2], 12, prompt=songs.codes[:2, :, :5])
    assert both.shape == (2, 4, 12) and np.array_equal(both[:, :, :5], songs.codes[:2, :, :5])
    alone = held_out.generate(model, songs.captions[1:2], 12, prompt=songs.codes[1:2, :, :5], seed=1)
    assert np.array_equal(alone, both[1:])


def test_the_page_has_songs_beside_music_to_their_captions_that_plays(
    model: Captioned, songs: Material, tmp_path: Path
) -> None:
    songs.captions[1] = "a <fast> tune"
    codec = load_codec(CodecSettings(model="bundled:codec", device="cpu"))
    page = held_out.write_samples(model, codec, songs, tmp_path / "page", seconds=2, known_s=1, count=2)
    text = page.read_text(encoding="utf-8")
    assert "slow hymn on harp 0" in text and "a &lt;fast&gt; tune" in text
    names = [f"{row}-{c}" for row in ("00", "01") for c in ("song", "to-its-caption", "to-no-caption")]
    played = {}
    for name in (*names, "00-gone-on-after-1-s", "01-gone-on-after-1-s"):
        assert f'src="{name}.wav"' in text
        (played[name],) = audio_window(page.parent / f"{name}.wav", rate=codec.rate, channels=1, start_s=0, end_s=2)
    song, went_on, half = played["01-song"], played["01-gone-on-after-1-s"], codec.rate // 2
    np.testing.assert_allclose(song, codec.decode(songs.codes[1, :, :100]).clip(-1, 1), atol=1e-6)
    assert np.allclose(went_on[:half], song[:half], atol=1e-6)
    assert not np.allclose(went_on[-half:], song[-half:], atol=0.01)
    assert not np.allclose(played["01-to-its-caption"], played["01-to-no-caption"], atol=0.01)


def test_accents_are_heard_where_they_are_and_nowhere_else():
    made = song(np.random.default_rng([1, 1]), "test", 12, accents_s=(2.0, 3.1, 7.45))
    found = held_out.accents(made.audio)
    assert found == pytest.approx([2.0, 3.1, 7.45], abs=0.03)
    assert not len(held_out.accents(np.zeros(32_000, np.float32)))


def test_the_bundled_weights_are_small_and_of_the_bundled_codec():
    backbone_file = checkpoints.place("bundled:backbone")
    assert backbone_file.stat().st_size < 10e6
    assert weights.header(backbone_file)["codec"] == weights_digest(CodecSettings(model="bundled:codec"))


@pytest.mark.slow
def test_the_bundled_weights_foretell_held_out_songs_better_than_their_unigram():
    codec = load_codec(CodecSettings(model="bundled:codec", device="cpu"))
    heard = [song(np.random.default_rng([1, i]), "test", 10) for i in range(4)]
    codes = np.stack([codec.encode(one.audio) for one in heard])
    songs = Material(codes, [one.caption for one in heard], [[]] * 4)
    trained = Captioned.read(checkpoints.place("bundled:backbone"))
    with torch.no_grad():
        losses = trained(backbone.batch_of(songs, [(i, 0) for i in range(4)], 500))
    assert losses.mean() < 6.9  # the unigram of the training songs has 7.14 on held-out ones: data_cards/nano.md
