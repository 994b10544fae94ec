"""Music for a video: as long as its picture, with its pictures, by its seed; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch

from model import generate as music
from model import runs
from model.decoder import Decoder, Geometry
from model.generate import Models, Options, Task, composing, generate, generate_batch, sound, videos
from model.settings import load_preset
from model.vidmusician import VidMusician
from pipeline.codec import Codec, load_codec
from pipeline.config import load_profile
from pipeline.errors import DvmsetError, SettingsError
from pipeline.media import audio_window, probe
from pipeline.vision import load_vision
from tests import synth

WINDOW, PROMPT = 4, 2  # seconds
LATE = 3  # codebooks but one
SMALL = Geometry(layers=3, dim=32, heads=2, ff=64)


def perturbed(model: VidMusician) -> VidMusician:
    """As after some training of both stages."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def tiny() -> Models:
    """The nano profile's vision and codec, and a decoder that takes a millisecond a step."""
    profile = load_profile("nano")
    torch.manual_seed(0)
    musician = VidMusician(load_preset("nano", [f"train.crop_s={WINDOW}"]), Decoder(SMALL))
    return Models(perturbed(musician).eval(), load_vision(profile.vision), load_codec(profile.codec))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def film(path: Path, seconds: float, rate: int = 25, **written: Any) -> Path:
    """Shots of a second each."""
    stamps = written.pop("stamps", synth.even_stamps(Fraction(rate), seconds))
    cuts = [Fraction(s) for s in range(1, math.ceil(seconds))]
    pictures = written.pop("pictures", synth.shots(stamps, cuts, width=64, height=48))
    return synth.write(path, stamps=stamps, pictures=pictures, **written)


def video_packets(path: Path) -> list[tuple[bytes, Fraction]]:
    """What the pictures are made of, and when each is shown."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size]
        return [(bytes(p), p.pts * Fraction(p.time_base)) for p in packets]


def heard(path: Path) -> np.ndarray:
    info = probe(path)
    assert info.audio
    return audio_window(path, rate=32_000, channels=1, start_s=0, end_s=info.audio.duration_s)[0]


def lufs(audio: np.ndarray) -> float:
    enough = np.pad(audio, (0, max(0, 12_800 - len(audio))))  # 0.4 s, the least that can be measured
    return float(pyloudnorm.Meter(32_000, filter_class="DeMan").integrated_loudness(enough))


class TestAVideo:
    """Pictures as they are, music to the frame."""

    @pytest.mark.parametrize("seconds", [0.5, 7.3, pytest.param(25, marks=pytest.mark.slow)])
    def test_the_music_is_as_long_as_the_picture_and_as_loud_as_it_should_be(
        self, tiny: Models, tmp_path: Path, seconds: float
    ) -> None:
        video = film(tmp_path / "a.mp4", seconds, rate=20)
        made = generate(video, tmp_path / "b.mp4", tiny)
        before, after = probe(video), probe(tmp_path / "b.mp4")
        assert before.video and after.video and after.audio
        assert made.seconds == pytest.approx(seconds, abs=1e-6)
        assert after.video == before.video
        assert after.audio.start_s == 0
        assert after.audio.duration_s == pytest.approx(seconds, abs=1e-3)
        assert after.duration_ms == pytest.approx(before.duration_ms, abs=1)
        assert video_packets(tmp_path / "b.mp4") == video_packets(video)
        assert lufs(heard(tmp_path / "b.mp4")) == pytest.approx(music.LUFS, abs=0.5)
        assert made.codes.shape == (4, 50 * math.ceil(seconds))
        assert len(np.unique(made.codes)) > 20

    @pytest.mark.parametrize(
        ("suffix", "written"),
        [
            (".mp4", {"rotation": 90}),
            (".mp4", {"codec": "mpeg4", "unit": Fraction(1, 25),
                      "pictures": [synth.picture(i, width=61, height=37) for i in range(30)]}),
            (".mkv", {"unit": Fraction(1, 1000), "codec": "libvpx-vp9"}),
            (".mp4", {"audio": synth.ticks(3, 44_100)}),
            (".mp4", {"audio": synth.ticks(1, 44_100, channels=2), "audio_start": Fraction(1, 10)}),
            (".mkv", {"audio": synth.ticks(1, 44_100), "audio_start": Fraction(5), "unit": Fraction(1, 1000)}),
            (".mp4", {"stamps": synth.uneven_stamps(1.2)}),
            (".mp4", {"stamps": [t + Fraction(3, 10) for t in synth.even_stamps(Fraction(25), 0.5)],
                      "audio": synth.ticks(0.2, 44_100)}),
        ],
        ids=["rotated", "odd size", "vp9 in mkv", "longer sound", "later sound", "sound behind the picture",
             "variable rate", "late picture"],
    )  # fmt: skip
    def test_any_video_keeps_its_pictures_and_their_times(
        self, tiny: Models, tmp_path: Path, suffix: str, written: dict[str, Any]
    ) -> None:
        video = film(tmp_path / f"a{suffix}", 1.2, **written)
        generate(video, tmp_path / "b.mp4", tiny)
        before, after = probe(video).video, probe(tmp_path / "b.mp4")
        assert before and after.video and after.audio
        assert [packet for packet, _ in video_packets(tmp_path / "b.mp4")] == [p for p, _ in video_packets(video)]
        assert (after.video.rotation, after.video.width, after.video.height) == (
            before.rotation, before.width, before.height,
        )  # fmt: skip
        assert after.video.start_s == pytest.approx(before.start_s, abs=1e-3)
        assert after.audio.start_s == 0
        assert after.audio.duration_s == pytest.approx(before.start_s + before.duration_s, abs=0.002)
        assert after.audio.duration_s == pytest.approx(after.video.start_s + after.video.duration_s, abs=0.04)

    def test_sound_alone_is_a_wav_of_the_same_music(self, tiny: Models, tmp_path: Path) -> None:
        video = film(tmp_path / "a.mp4", 1.5, rate=20)
        both = generate(video, tmp_path / "b.mp4", tiny)
        alone = generate(video, tmp_path / "b.wav", tiny, Options(audio_only=True))
        audio, rate = soundfile.read(tmp_path / "b.wav", dtype="float32")
        np.testing.assert_array_equal(alone.codes, both.codes)
        assert (len(audio), rate) == (48_000, 32_000)
        assert lufs(audio) == pytest.approx(music.LUFS, abs=0.1)
        assert np.corrcoef(audio, heard(tmp_path / "b.mp4")[:48_000])[0, 1] > 0.98
        assert abs(audio[-1]) < 0.01 * np.abs(audio).max()  # ends without a click

    def test_the_file_says_what_made_it(self, tiny: Models, tmp_path: Path) -> None:
        video = film(tmp_path / "a.mp4", 0.5)
        origin = {"run": "runs/one", "stage": 2, "step": 7, "weights_sha256": "ab" * 32}
        trained = dataclasses.replace(tiny, checkpoint=origin)
        options = Options(seed=5, text="calm", command="dvmset generate a.mp4 -o b.mp4 --seed 5")
        for name, chosen in (("b.mp4", options), ("b.wav", dataclasses.replace(options, audio_only=True))):
            made = generate(video, tmp_path / name, trained, chosen)
            with av.open(str(tmp_path / name)) as container:
                said = json.loads(container.metadata["comment"])
            assert said == made.record
            assert said["command"] == options.command
            assert (said["options"]["seed"], said["options"]["text"]) == (5, "calm")
            assert said["checkpoint"] == origin
            assert said["models"]["vision"] == {"id": tiny.vision.id, "digest": tiny.vision.digest}
            assert said["models"]["codec"] == {"id": tiny.codec.id, "digest": tiny.codec.digest}
            assert said["preset_digest"] == tiny.musician.preset.digest()


class TestSeed:
    """What is drawn depends on the seed and the video, and on nothing else."""

    def test_the_same_seed_gives_the_same_bytes_and_another_one_other_music(
        self, tiny: Models, tmp_path: Path
    ) -> None:
        video = film(tmp_path / "a.mp4", 1.5)
        made = [
            generate(video, tmp_path / f"{name}.mp4", tiny, Options(seed=seed)).codes
            for name, seed in (("one", 3), ("two", 3), ("three", 4))
        ]
        assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
        assert (made[0] != made[2]).mean() > 0.5

    def test_greedy_needs_no_seed(self, tiny: Models, tmp_path: Path) -> None:
        video = film(tmp_path / "a.mp4", 0.5)
        made = [generate(video, tmp_path / f"{s}.mp4", tiny, Options(seed=s, greedy=True)).codes for s in (3, 4)]
        np.testing.assert_array_equal(*made)

    def test_a_batch_makes_of_each_video_what_it_becomes_alone(self, tiny: Models, tmp_path: Path) -> None:
        lengths = {"long": 6.2, "short": 0.5, "whole": 4.0, "middle": 4.3}
        tasks = [Task(film(tmp_path / f"{n}.mp4", s), tmp_path / f"{n}-batch.mp4") for n, s in lengths.items()]
        together = dict(generate_batch(tasks, tiny, Options(seed=2), batch=4))
        for task in tasks:
            alone = generate(task.video, tmp_path / "alone.mp4", tiny, Options(seed=2, overwrite=True))
            found = together[task]
            assert isinstance(found, music.Result)
            np.testing.assert_array_equal(found.codes, alone.codes)
            assert task.out.read_bytes() == (tmp_path / "alone.mp4").read_bytes()

    def test_one_bad_video_does_not_stop_the_others(self, tiny: Models, tmp_path: Path) -> None:
        good = Task(film(tmp_path / "good.mp4", 0.5), tmp_path / "good-out.mp4")
        bad = Task(tmp_path / "bad.mp4", tmp_path / "bad-out.mp4")
        bad.video.write_text("no video")
        found = dict(generate_batch([bad, good], tiny, Options()))
        assert isinstance(found[bad], DvmsetError) and "not a media file" in str(found[bad])
        assert isinstance(found[good], music.Result) and good.out.exists() and not bad.out.exists()


class Given(NamedTuple):
    """One call of the decoder, and what it gave."""

    cross: torch.Tensor
    frames: int
    options: dict[str, Any]
    codes: torch.Tensor


@pytest.fixture
def calls(tiny: Models, monkeypatch: pytest.MonkeyPatch) -> list[Given]:
    """What the decoder is given, window by window."""
    seen: list[Given] = []
    really = tiny.musician.decoder.generate

    def recorded(cross: torch.Tensor, frames: int, **options: Any) -> torch.Tensor:
        codes = really(cross, frames, **options)
        seen.append(Given(cross, frames, options, codes))
        return codes

    monkeypatch.setattr(tiny.musician.decoder, "generate", recorded)
    return seen


class TestWindows:
    """Conditions by absolute time, and codes that go on from codes."""

    seconds = 9.4

    @pytest.fixture
    def scene(self, tiny: Models, tmp_path: Path) -> music.Scene:
        video = film(tmp_path / "a.mp4", self.seconds, rate=10)
        return music.watch(video, 10, tiny.vision, "patch_distance", videos.quiet)

    def test_a_window_is_given_the_conditions_of_its_own_time(
        self, tiny: Models, scene: music.Scene, calls: list[Given]
    ) -> None:
        (codes,) = music.compose([scene], tiny.musician, Options(), videos.quiet)
        starts = [0, 2, 4, 6]
        assert len(calls) == len(starts)
        whole = torch.from_numpy(scene.curve).float()[None]
        assert tiny.musician.rhythm is not None
        rhythm = tiny.musician.rhythm(whole, 50 * scene.seconds)  # each frame by itself, so it may be sliced
        for start, call in zip(starts, calls, strict=True):
            piece = torch.from_numpy(scene.clip_global[start : start + WINDOW]).float()[None]
            torch.testing.assert_close(call.cross, tiny.musician.semantic(piece))
            for layer, added in call.options["in_attention"].items():
                # The last frames look beyond the window; all but one of them are made again in the next.
                last = round(50 * tiny.musician.preset.rhythm.ahead_s) + 1
                expected = rhythm[layer][:, 50 * start : 50 * (start + WINDOW) - last]
                torch.testing.assert_close(added[:, :-last], expected)
            assert call.frames == 50 * WINDOW + LATE
            if start:
                known = codes[:, 50 * start : 50 * (start + PROMPT) - LATE]
                np.testing.assert_array_equal(call.options["prompt"][0].numpy(), known)
            heard = slice(50 * (start + PROMPT) - LATE if start else 0, 50 * (start + WINDOW) - LATE)
            np.testing.assert_array_equal(
                codes[:, heard], call.codes[0, :, heard.start - 50 * start : heard.stop - 50 * start].numpy()
            )

    def test_only_the_first_frame_of_the_video_is_a_beginning(self, scene: music.Scene) -> None:
        assert scene.curve[0] == 1
        assert (scene.curve[1:] != 1).all()
        within = np.arange(len(scene.curve)) % 25 > 0
        assert scene.curve[within].max() < scene.curve[25:250:25].min()  # there is a cut at each second

    def test_the_end_of_a_short_video_is_padded_as_a_clip_in_training(
        self, tiny: Models, tmp_path: Path, calls: list[Given]
    ) -> None:
        generate(film(tmp_path / "a.mp4", 1.3), tmp_path / "b.mp4", tiny)
        (call,) = calls
        assert call.frames == 50 * 2 + LATE
        assert call.options["prompt"] is None
        assert call.cross.shape[1] == WINDOW
        assert call.cross[0, :2].abs().amin() > 0 and not call.cross[0, 2:].any()

    def test_a_prompt_of_other_length_moves_the_windows(
        self, tiny: Models, scene: music.Scene, calls: list[Given]
    ) -> None:
        music.compose([scene], tiny.musician, Options(prompt_s=1), videos.quiet)
        assert [c.frames - LATE for c in calls] == [200, 200, 200]  # from 0, 3 and 6 s on
        assert [0 if c.options["prompt"] is None else c.options["prompt"].shape[-1] for c in calls] == [0, 47, 47]
        for wrong in (0, WINDOW):
            with pytest.raises(SettingsError, match="can't begin with"):
                music.compose([scene], tiny.musician, Options(prompt_s=wrong), videos.quiet)

    def test_text_and_guidance_reach_the_decoder(self, tiny: Models, tmp_path: Path, calls: list[Given]) -> None:
        options = Options(text="calm piano", guidance=2.0, guidance_rhythm=4.0, temperature=0.9, top_k=50)
        generate(film(tmp_path / "a.mp4", 0.5), tmp_path / "b.mp4", tiny, options)
        (call,) = calls
        assert call.cross.shape[1] == WINDOW + len(b"calm piano") + 1
        kept = ("guidance", "guidance_rhythm", "temperature", "top_k", "greedy")
        assert [call.options[name] for name in kept] == [2.0, 4.0, 0.9, 50, False]


class TestSound:
    """Codes to sound in pieces."""

    @pytest.mark.parametrize("frames", [1, 90, 100, 101, 260])
    def test_pieces_join_to_what_the_whole_decodes_to(
        self, tiny: Models, monkeypatch: pytest.MonkeyPatch, frames: int
    ) -> None:
        monkeypatch.setattr(sound, "PIECE_S", 2)
        codes = np.random.default_rng(0).integers(0, 2048, (4, frames)).astype(np.int16)
        pieces = list(sound.decoded(codes, tiny.codec))
        assert len(pieces) == math.ceil(frames / 100)
        whole = tiny.codec.decode(codes)
        np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-4 * np.abs(whole).max())

    def test_pieces_that_differ_are_joined_without_a_click(
        self, tiny: Models, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sound, "PIECE_S", 2)
        levels = iter([0.0, 1.0, -1.0])

        def other_each_time(_codec: Codec, codes: np.ndarray) -> np.ndarray:
            return np.full(codes.shape[1] * 640, next(levels), np.float32)

        monkeypatch.setattr(Codec, "decode", other_each_time)
        joined = np.concatenate(list(sound.decoded(np.zeros((4, 260), np.int16), tiny.codec)))
        assert len(joined) == 260 * 640
        crossfade = round(sound.CROSSFADE_S * 32_000)
        assert np.abs(np.diff(joined)).max() <= 2 / crossfade * 1.01
        assert (joined[64_000 - 1], joined[64_000 + crossfade], joined[128_000 + crossfade]) == (0, 1, -1)


class TestRefusals:
    """One clear error, and nothing half-written."""

    @pytest.mark.parametrize(
        ("video", "out", "said"),
        [
            ("missing.mp4", "b.mp4", "There is no file"),
            ("folder", "b.mp4", "There is no file"),
            ("text.mp4", "b.mp4", "not a media file"),
            ("empty.mp4", "b.mp4", "is empty"),
            ("cut.mp4", "b.mp4", "not a media file"),
            ("cut.mkv", "b.mp4", r"is damaged: [\d.]+ s of 4.0 s are there"),
            ("sound.mp4", "b.mp4", "no picture"),
            ("vp8.webm", "b.mp4", "vp8 video can't be put into mp4"),
            ("a.mp4", "a.mp4", "is the video itself"),
            ("a.mp4", "link.mp4", "is the video itself"),
            ("a.mp4", "there.mp4", "is there already"),
            ("a.mp4", "folder.mp4", "is a folder"),
            ("a.mp4", "b.avi", "doesn't end in .mp4"),
            ("a.mp4", "nowhere/b.mp4", "can't be written: No such file"),
            ("a.mp4", "text.mp4/b.mp4", "can't be written: Not a directory"),
        ],
    )
    def test_what_cannot_be_done_is_refused_before_the_work(
        self, tiny: Models, tmp_path: Path, calls: list[Given], video: str, out: str, said: str
    ) -> None:
        film(tmp_path / "a.mp4", 0.5)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder.mp4").mkdir()
        (tmp_path / "text.mp4").write_text("no video")
        (tmp_path / "empty.mp4").touch()
        (tmp_path / "there.mp4").write_text("of value")
        (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
        film(tmp_path / "whole.mkv", 4, unit=Fraction(1, 1000))
        for whole, cut in (("a.mp4", "cut.mp4"), ("whole.mkv", "cut.mkv")):
            data = (tmp_path / whole).read_bytes()
            (tmp_path / cut).write_bytes(data[: len(data) // 2])
        synth.write(tmp_path / "sound.mp4", audio=synth.ticks(1, 44_100))
        film(tmp_path / "vp8.webm", 0.5, codec="libvpx", unit=Fraction(1, 1000))
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        with pytest.raises(DvmsetError, match=said):
            generate(tmp_path / video, tmp_path / out, tiny)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        assert not calls

    @pytest.mark.parametrize("wav", [False, True])
    def test_a_disk_that_fills_up_leaves_nothing(
        self, tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wav: bool
    ) -> None:
        def full(*_arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(videos, "write_wav" if wav else "mux", full)
        out = tmp_path / ("b.wav" if wav else "b.mp4")
        video = film(tmp_path / "a.mp4", 0.5)
        with pytest.raises(DvmsetError, match="can't be written: No space left"):
            generate(video, out, tiny, Options(audio_only=wav))
        assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]

    def test_too_little_room_is_known_beforehand(
        self, tiny: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        video = film(tmp_path / "a.mp4", 0.5)
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage)
        with pytest.raises(DvmsetError, match=r"0\.00 GB free"):
            generate(video, tmp_path / "b.mp4", tiny)

    def test_what_is_there_is_replaced_when_asked(self, tiny: Models, tmp_path: Path) -> None:
        video = film(tmp_path / "a.mp4", 0.5)
        (tmp_path / "b.mp4").write_text("of value")
        generate(video, tmp_path / "b.mp4", tiny, Options(overwrite=True))
        assert probe(tmp_path / "b.mp4").audio
        with pytest.raises(DvmsetError, match="is the video itself"):
            generate(video, video, tiny, Options(overwrite=True))

    @pytest.mark.parametrize("wrong", [{"temperature": 0}, {"top_k": -1}, {"seed": -1}])
    def test_options_out_of_range_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Options(**wrong)

    def test_models_of_other_widths_are_refused(self, tiny: Models) -> None:
        wide = VidMusician(load_preset("nano", ["semantic.clip_dim=768"]), Decoder(SMALL))
        with pytest.raises(SettingsError, match="192 wide, preset nano reads 768"):
            dataclasses.replace(tiny, musician=wide)
        few = VidMusician(load_preset("nano"), Decoder(dataclasses.replace(SMALL, codebooks=2)))
        with pytest.raises(SettingsError, match="has 4 codebooks of 2048 entries at 50 Hz, preset nano writes 2"):
            dataclasses.replace(tiny, musician=few)


class TestCheckpoint:
    """A run's weights, with the models they were trained beside."""

    @pytest.fixture(scope="class")
    def untrained(self) -> Models:
        return music.load(preset="nano")

    def write(self, run: Path, untrained: Models, stage: int = 2, **changed: Any) -> dict[str, torch.Tensor]:
        """A run folder as a training leaves it."""
        preset = untrained.musician.preset
        model = perturbed(VidMusician(preset, untrained.musician.decoder))
        model.set_stage(stage)
        digests = untrained.digests()
        described = {
            "format": runs.FORMAT,
            "preset": preset.model_dump(mode="json"),
            "stage": stage,
            "models": {part: digests[part] for part in ("decoder", "t5")},
            "data_models": {part: digests[part] for part in ("vision", "codec")},
            **changed,
        }
        runs.write_run(run, described)
        runs.save(run, runs.Position(step=30), model.trained_state(), {"a": torch.zeros(1)})
        return model.trained_state()

    def test_the_weights_of_a_run_are_used_with_the_profile_it_was_trained_with(
        self, untrained: Models, tmp_path: Path
    ) -> None:
        trained = self.write(tmp_path / "run", untrained)
        found = music.load(checkpoint=tmp_path / "run")
        state = found.musician.trained_state()
        assert state.keys() == trained.keys()
        for name, tensor in trained.items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
        assert found.digests() == untrained.digests()
        assert found.checkpoint is not None
        assert (found.checkpoint["stage"], found.checkpoint["step"]) == (2, 30)
        assert len(found.checkpoint["weights_sha256"]) == 64
        assert not any("untrained and doesn't follow" in caveat for caveat in found.caveats())

    def test_of_both_stages_the_last_is_taken_and_a_first_one_alone_is_pointed_out(
        self, untrained: Models, tmp_path: Path
    ) -> None:
        self.write(tmp_path / "stage1", untrained, stage=1)
        first = music.load(checkpoint=tmp_path)
        assert first.musician.stage == 1 and not first.musician.uses_rhythm
        assert any("stage 1" in caveat for caveat in first.caveats())
        self.write(tmp_path / "stage2", untrained, stage=2)
        assert music.load(checkpoint=tmp_path).musician.uses_rhythm

    def test_untrained_weights_are_the_same_every_time(self, untrained: Models) -> None:
        torch.manual_seed(99)
        again = music.load(preset="nano").musician.state_dict()
        for name, tensor in untrained.musician.state_dict().items():
            torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)

    def test_without_a_checkpoint_it_is_said_loudly(self, untrained: Models) -> None:
        (said,) = untrained.caveats()
        assert "untrained" in said

    def test_random_weights_are_said_loudly(self, tmp_path: Path) -> None:
        preset, profile = tmp_path / "preset.yaml", tmp_path / "profile.yaml"
        semantic = "semantic: {clip_dim: 192, t5: 'random:nano'}"
        preset.write_text("decoder: {geometry: nano, weights: 'random:0'}\n" + semantic)
        profile.write_text("vision: {model: 'random:nano', weights: ''}\ncodec: {model: 'random:nano'}")
        *_, said = music.load(preset=str(preset), profile=str(profile)).caveats()
        assert "decoder, t5, vision, codec" in said

    @pytest.mark.parametrize(
        ("asked", "changed", "said"),
        [
            ({"preset": "small"}, {}, "is a checkpoint of preset nano, not of small"),
            ({"ablation": "cls_sim"}, {}, "is a checkpoint of preset nano, not of nano cls_sim"),
            ({}, {"format": 99}, "not of format"),
            (
                {},
                {"data_models": {"vision": {"id": "other eyes", "digest": "0"}, "codec": {"id": "c", "digest": "1"}}},
                "vision other eyes and codec c",
            ),
            (
                {"profile": "nano"},
                {"data_models": {"vision": {"id": "other eyes", "digest": "0"}, "codec": {"id": "c", "digest": "1"}}},
                "vision other eyes, digest 0 in training, bundled:vision",
            ),
            (
                {},
                {"models": {"decoder": {"id": "another", "digest": "2"}, "t5": {"id": "t", "digest": "3"}}},
                "decoder another, digest 2 in training",
            ),
        ],
    )
    def test_a_run_of_other_models_is_refused(
        self,
        untrained: Models,
        tmp_path: Path,
        asked: dict[str, str],
        changed: dict[str, Any],
        said: str,
    ) -> None:
        self.write(tmp_path / "run", untrained, **changed)
        with pytest.raises(SettingsError, match=said):
            music.load(checkpoint=tmp_path / "run", **asked)

    def test_a_checkpoint_cut_short_is_refused(self, untrained: Models, tmp_path: Path) -> None:
        self.write(tmp_path / "run", untrained)
        (weights,) = (tmp_path / "run").rglob(runs.WEIGHTS)
        data = weights.read_bytes()
        weights.write_bytes(data[: len(data) // 2])
        with pytest.raises(SettingsError, match="cut short or damaged"):
            music.load(checkpoint=tmp_path / "run")
        with pytest.raises(SettingsError, match="is not a training run"):
            music.load(checkpoint=tmp_path / "nowhere")


def test_a_plot_shows_music_and_video_on_one_axis(tiny: Models, tmp_path: Path) -> None:
    from PIL import Image

    made = generate(film(tmp_path / "a.mp4", 3.0), tmp_path / "b.mp4", tiny)
    music.plot(made, tmp_path / "plot.png")
    assert min(Image.open(tmp_path / "plot.png").size) > 500


def test_progress_ends_where_the_video_ends(tiny: Models, tmp_path: Path) -> None:
    told: list[tuple[str, float, float]] = []
    generate(film(tmp_path / "a.mp4", 5.0), tmp_path / "b.mp4", tiny, on_step=lambda *step: told.append(step))
    steps = dict.fromkeys(what for what, _, _ in told)
    assert list(steps) == ["watching a.mp4", "composing a.mp4", "writing b.mp4"]
    for what in steps:
        done = [d for w, d, _ in told if w == what]
        assert done == sorted(done) and done[-1] == pytest.approx(5)
        assert {whole for w, _, whole in told if w == what} == {5}


def test_frames_are_counted_once(tiny: Models) -> None:
    assert composing.FPS == composing.CURVE_RATE
