"""Windows of pictures and sound against synthetic truth: index blocks in the pictures, ticks in the sound."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import media
from pipeline.errors import DvmsetError, SourceError
from pipeline.nano import packages
from tests import synth

RATES = [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30), Fraction(60)]
UNITS = {".mp4": Fraction(1, 90000), ".mkv": Fraction(1, 1000), ".ts": Fraction(1, 90000)}
AT_25 = [Fraction(k, 25) for k in range(150)]
AT_1 = [Fraction(k) for k in range(6)]


def indices(path: Path, times: list[Fraction], size: int | None = 64) -> list[int]:
    return [synth.read_index(rgb) for rgb in media.frames_at(path, times, size=size)]


def start_of(path: Path) -> Fraction:
    """When the first picture is shown. (In MPEG-TS, AAC's priming comes first and is what time zero counts from.)"""
    video = media.probe(path).video
    assert video
    return Fraction(round(video.start_s * 90000), 90000)


# -- pictures


@pytest.mark.parametrize("suffix", UNITS)
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_the_picture_at_t_is_the_one_shown_at_t(tmp_path: Path, rate: Fraction, suffix: str):
    stamps = synth.even_stamps(rate, 6)
    path = synth.write(tmp_path / f"a{suffix}", stamps=stamps, audio=synth.ticks(6, 44100))
    first = start_of(path)
    for times in (AT_25, AT_1):
        assert indices(path, times) == [synth.shown_index(stamps, t - first, UNITS[suffix]) for t in times]


@pytest.mark.parametrize("suffix", UNITS)
def test_pictures_at_a_variable_rate_are_the_ones_shown(tmp_path: Path, suffix: str):
    stamps = synth.uneven_stamps(6, seed=3, unit=UNITS[suffix])
    path = synth.write(tmp_path / f"a{suffix}", stamps=stamps, unit=UNITS[suffix])
    assert indices(path, AT_25) == [synth.shown_index(stamps, t, UNITS[suffix]) for t in AT_25]
    video = media.probe(path).video
    assert video and video.variable_rate


def test_every_picture_of_an_odd_rate_is_found_at_its_own_time(tmp_path: Path):
    stamps = synth.even_stamps(Fraction(30000, 1001), 20)
    path = synth.write(tmp_path / "a.mkv", stamps=stamps, unit=UNITS[".mkv"])
    assert indices(path, stamps) == list(range(len(stamps)))


@pytest.mark.parametrize("suffix", UNITS)
@pytest.mark.parametrize("video_late", [Fraction(-1, 3), Fraction(1, 3)])
def test_a_delay_between_sound_and_picture_is_kept(tmp_path: Path, suffix: str, video_late: Fraction):
    early = Fraction(1, 2)
    stamps = synth.even_stamps(Fraction(25), 6, early + video_late)
    sound = synth.ticks(6, 48000)
    path = synth.write(tmp_path / f"a{suffix}", stamps=stamps, audio=sound, audio_rate=48000, audio_start=early)
    window = media.audio_window(path, rate=32000, channels=1, start_s=0, end_s=5.9)[0]
    sound_at = max(Fraction(0), -video_late) + (start_of(path) - max(Fraction(0), video_late))
    errors = synth.tick_errors(window, 32000, -float(sound_at))
    assert len(errors) > 20 and max(map(abs, errors)) <= (16 if suffix == ".mkv" else 1)  # its stamps are whole ms
    first = start_of(path)
    assert indices(path, AT_25) == [synth.shown_index(stamps, t - first + stamps[0], UNITS[suffix]) for t in AT_25]


def test_what_an_edit_list_hides_is_not_shown(tmp_path: Path):
    stamps, sound = synth.even_stamps(Fraction(25), 20), synth.ticks(20, 44100)
    whole = synth.write(tmp_path / "whole.mp4", stamps=stamps, audio=sound, options={"g": "50"})
    cut = tmp_path / "cut.mp4"  # copied, so it starts at the key frame of 8 s, and hides what comes before 9.12 s
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", "9.12", "-i", str(whole), "-c", "copy", str(cut)]
    subprocess.run(command, check=True)
    assert indices(cut, AT_25) == list(range(228, 228 + len(AT_25)))
    window = media.audio_window(cut, rate=32000, channels=1, start_s=3, end_s=8)[0]
    assert set(synth.tick_errors(window, 32000, 12.12)) == {0}
    media.mux(cut, synth.ticks(8, 32000), 32000, tmp_path / "new.mp4")
    assert indices(tmp_path / "new.mp4", AT_25) == list(range(228, 228 + len(AT_25)))


@pytest.mark.parametrize(
    ("codec", "suffix", "unit"),
    [
        ("libvpx-vp9", ".webm", Fraction(1, 1000)),
        ("libsvtav1", ".mp4", Fraction(1, 90000)),
        ("libx265", ".mp4", Fraction(1, 90000)),
        ("mpeg4", ".avi", Fraction(1, 25)),
        ("mpeg2video", ".ts", Fraction(1, 25)),
        ("flv1", ".flv", Fraction(1, 1000)),
    ],
)
def test_other_codecs_are_sound_and_exact_too(tmp_path: Path, codec: str, suffix: str, unit: Fraction):
    stamps = synth.even_stamps(Fraction(25), 12)
    path = synth.write(tmp_path / f"a{suffix}", stamps=stamps, codec=codec, unit=unit, options={"g": "30"})
    assert media.check_integrity(path, expected_s=12).video
    assert indices(path, [stamp + Fraction(1, 50) for stamp in stamps[::7]]) == list(range(0, 300, 7))
    assert indices(path, [Fraction(113, 10)]) == [282]


@pytest.mark.parametrize("options", [{"g": "25"}, {"g": "400"}, {"g": "50", "x264-params": "open-gop=1"}], ids=str)
@pytest.mark.parametrize("suffix", UNITS)
def test_far_times_give_the_same_pictures_as_near_ones(tmp_path: Path, suffix: str, options: dict[str, str]):
    stamps = synth.even_stamps(Fraction(24), 70)
    path = synth.write(tmp_path / f"a{suffix}", stamps=stamps, options=options, unit=UNITS[suffix])
    times = [Fraction(t) for t in ("3.3", "3.31", "15.5", "30.25", "30.29", "52.04", "69.99", "300")]
    assert indices(path, times) == [synth.shown_index(stamps, t, UNITS[suffix]) for t in times]
    for t in times[2:]:
        assert indices(path, [t]) == [synth.shown_index(stamps, t, UNITS[suffix])]


def test_first_and_last_picture_are_held(tmp_path: Path):
    path = synth.write(tmp_path / "a.mp4", stamps=synth.even_stamps(Fraction(25), 1))
    pictures = list(media.frames_at(path, [Fraction(-1, 25), 0, Fraction(24, 25), 5, 500]))
    assert [synth.read_index(rgb) for rgb in pictures] == [0, 0, 24, 24, 24]
    assert pictures[0] is pictures[1] and not pictures[0].flags.writeable


def test_times_that_go_back_are_refused(tmp_path: Path):
    path = synth.write(tmp_path / "a.mp4", stamps=synth.even_stamps(Fraction(25), 1))
    with pytest.raises(ValueError, match=r"0\.100000 s comes after 0\.500000 s"):
        list(media.frames_at(path, [0.5, 0.1]))


@pytest.mark.parametrize(
    ("rotation", "mirrored", "turn"),
    [
        (90, False, lambda rgb: np.rot90(rgb, 1)),
        (180, False, lambda rgb: np.rot90(rgb, 2)),
        (270, False, lambda rgb: np.rot90(rgb, 3)),
        (0, True, lambda rgb: rgb[:, ::-1]),
    ],
)
def test_pictures_come_upright(tmp_path: Path, rotation: int, mirrored: bool, turn):
    stamps = synth.even_stamps(Fraction(25), 1)
    path = synth.write(tmp_path / "a.mp4", stamps=stamps, rotation=rotation, mirrored=mirrored)
    for k, rgb in enumerate(media.frames_at(path, stamps)):
        assert np.abs(rgb.astype(int) - turn(synth.picture(k)).astype(int)).mean() < 6
    video = media.probe(path).video
    assert video and (video.width, video.height) == (synth.WIDTH, synth.HEIGHT)
    assert mirrored or video.rotation == rotation


def test_anamorphic_pictures_are_stretched_to_what_is_shown(tmp_path: Path):
    path = synth.write(tmp_path / "a.mp4", stamps=synth.even_stamps(Fraction(25), 1), pixel_aspect=Fraction(8, 5))
    assert next(media.frames_at(path, [0])).shape == (96, 256, 3)
    assert next(media.frames_at(path, [0], size=48)).shape == (48, 48, 3)


@pytest.mark.slow
def test_scaled_pictures_give_the_features_of_open_clips_own_preprocessing():
    import open_clip
    import torch
    from PIL import Image

    torch.manual_seed(0)
    tower = open_clip.create_model("ViT-B-32", pretrained=None).visual.eval()
    prepare = open_clip.image_transform(224, is_train=False)
    times = [12, 31, 100, 222.5]
    whole = media.frames_at(packages.film(), times)
    ready = media.frames_at(packages.film(), times, size=224)
    with torch.inference_mode():
        wanted = tower(torch.stack([prepare(Image.fromarray(rgb)) for rgb in whole]))
        got = tower(torch.stack([prepare(Image.fromarray(rgb)) for rgb in ready]))
    assert torch.cosine_similarity(wanted, got).min() > 0.999


def test_a_file_without_video_has_no_pictures(tmp_path: Path):
    path = synth.write(tmp_path / "a.mp4", audio=synth.ticks(1, 44100))
    with pytest.raises(SourceError, match=r"a\.mp4 has no video stream") as raised:
        list(media.frames_at(path, [0]))
    assert raised.value.error_class == "unsupported"


# -- sound


@pytest.mark.parametrize(
    ("suffix", "codec", "sample_format", "native"),
    [
        (".mp4", "aac", "fltp", 44100),
        (".mkv", "aac", "fltp", 48000),
        (".ts", "aac", "fltp", 44100),
        (".mp4", "libmp3lame", "fltp", 44100),
        (".mp3", "libmp3lame", "fltp", 44100),
        (".webm", "libopus", "flt", 48000),
        (".ogg", "libopus", "flt", 48000),
        (".flac", "flac", "s16", 44100),
        (".mkv", "flac", "s32", 44100),
        (".wav", "pcm_u8", "u8", 44100),
        (".wav", "pcm_s16le", "s16", 8000),
        (".avi", "pcm_f32le", "flt", 96000),
    ],
)
@pytest.mark.parametrize(("rate", "channels"), [(32000, 1), (44100, 2)])
def test_sound_lies_where_it_was_put(tmp_path, suffix, codec, sample_format, native, rate, channels):
    sound = synth.ticks(8, native)
    path = tmp_path / f"a{suffix}"
    synth.write(path, audio=sound, audio_rate=native, audio_codec=codec, audio_format=sample_format)
    for start_s, end_s in ((0.0, 8.0), (3.1, 7.65)):
        window = media.audio_window(path, rate=rate, channels=channels, start_s=start_s, end_s=end_s)
        assert window.shape == (channels, round((end_s - start_s) * rate)) and window.dtype == np.float32
        slack = 8 if native == 8000 else 1
        skew = 1024 / native if suffix == ".ts" else 0.0  # its time zero is the start of AAC's priming
        errors = synth.tick_errors(window[-1], rate, start_s - skew)
        assert len(errors) > 14 and max(map(abs, errors)) <= slack


@pytest.mark.parametrize("sample_format", ["u8", "s16", "s32", "flt"])
def test_every_sample_format_keeps_its_scale(tmp_path: Path, sample_format: str):
    codec = {"u8": "pcm_u8", "s16": "pcm_s16le", "s32": "pcm_s32le", "flt": "pcm_f32le"}[sample_format]
    sound = np.linspace(-1, 0.99, 44100, dtype=np.float32)[None]
    path = synth.write(tmp_path / "a.wav", audio=sound, audio_codec=codec, audio_format=sample_format)
    window = media.audio_window(path, rate=44100, channels=1, start_s=0, end_s=1)
    assert np.abs(window - sound).max() <= (1 / 128 if sample_format == "u8" else 1 / 32768)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A minute of noise as AAC in mp4, and what the whole of it decodes to at 32 kHz."""
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 60 * 44100)).astype(np.float32)
    path = synth.write(tmp_path_factory.mktemp("noise") / "a.mp4", audio=sound)
    return path, media.audio_window(path, rate=32000, channels=1, start_s=0, end_s=60)


@settings(max_examples=25, deadline=None)
@given(start_ms=st.integers(0, 58_000), length_ms=st.integers(0, 1500))
def test_a_window_equals_the_same_span_of_the_whole(noise, start_ms, length_ms):
    path, whole = noise
    window = media.audio_window(
        path, rate=32000, channels=1, start_s=start_ms / 1000, end_s=(start_ms + length_ms) / 1000
    )
    assert window.shape == (1, length_ms * 32)
    assert np.abs(window - whole[:, start_ms * 32 :][:, : length_ms * 32]).max(initial=0) < 1e-5


def test_blocks_are_the_window_in_pieces(noise):
    path, whole = noise
    blocks = list(media.audio_blocks(path, rate=32000, channels=1, block_s=0.7))
    assert [block.shape[1] for block in blocks[:-1]] == [22400] * 85
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)


def test_stamps_in_whole_milliseconds_never_splice_the_sound(tmp_path: Path):
    sound = np.random.default_rng(1).normal(0, 0.1, (2, 20 * 44100)).astype(np.float32)
    path = synth.write(tmp_path / "a.mkv", audio=sound, audio_codec="flac", audio_format="s16")
    window = media.audio_window(path, rate=44100, channels=2, start_s=0, end_s=20)
    assert np.abs(window - sound).max() < 1 / 32768
    late = media.audio_window(path, rate=44100, channels=2, start_s=12.3, end_s=13)
    np.testing.assert_array_equal(late, window[:, round(12.3 * 44100) : 13 * 44100])


def test_a_gap_is_filled_with_zeros_and_what_follows_stays_in_place(tmp_path: Path):
    def keep(packet) -> bool:
        return packet.stream.type != "audio" or not 2 <= packet.pts * packet.time_base < 4

    sound = synth.ticks(8, 44100)
    path = synth.write(tmp_path / "a.mkv", audio=sound, audio_codec="flac", audio_format="s16", keep=keep)
    window = media.audio_window(path, rate=32000, channels=1, start_s=0, end_s=8)[0]
    assert not window[round(2.11 * 32000) : round(3.99 * 32000)].any()
    assert set(synth.tick_errors(window[: 2 * 32000], 32000, 0.0)) == {0}
    after = synth.tick_errors(window[round(4.11 * 32000) :], 32000, 4.11)
    assert len(after) > 10 and len(set(after)) == 1 and abs(after[0]) <= 16  # half of matroska's millisecond


def test_sound_that_comes_late_and_ends_early_is_padded_with_zeros(tmp_path: Path):
    stamps = synth.even_stamps(Fraction(25), 5)
    path = synth.write(tmp_path / "a.mp4", stamps=stamps, audio=synth.ticks(2, 44100), audio_start=Fraction(1))
    sound = np.concatenate(list(media.audio_blocks(path, rate=48000, channels=1)), axis=1)[0]
    assert len(sound) == 5 * 48000
    assert not sound[: round(0.97 * 48000)].any() and not sound[round(3.1 * 48000) :].any()
    assert set(synth.tick_errors(sound, 48000, -1.0)[:6]) == {0}


@pytest.mark.parametrize(
    ("layout", "gains"),
    [
        ("stereo", [[1, 0], [0, 1]]),
        ("5.1", np.array([[1, 0, 0.7071, 0, 0.7071, 0], [0, 1, 0.7071, 0, 0, 0.7071]]) / 2.4142),
        ("quad", np.array([[1, 0, 0.7071, 0], [0, 1, 0, 0.7071]]) / 1.7071),
        ("mono", [[1], [1]]),
    ],
)
def test_surround_is_mixed_down_without_clipping(tmp_path: Path, layout: str, gains):
    gains = np.array(gains)
    sound = np.random.default_rng(2).uniform(-1, 1, (gains.shape[1], 22050)).astype(np.float32)
    path = synth.write(tmp_path / "a.wav", audio=sound, audio_codec="pcm_f32le", audio_format="flt", layout=layout)
    stereo = media.audio_window(path, rate=44100, channels=2, start_s=0, end_s=0.5)
    np.testing.assert_allclose(stereo, gains @ sound, atol=2e-4)
    mono = media.audio_window(path, rate=44100, channels=1, start_s=0, end_s=0.5)
    np.testing.assert_allclose(mono[0], (gains @ sound).mean(0), atol=2e-4)


def test_a_file_without_sound_has_no_window(tmp_path: Path):
    path = synth.write(tmp_path / "a.mp4", stamps=synth.even_stamps(Fraction(25), 1))
    with pytest.raises(SourceError, match=r"a\.mp4 has no audio stream") as raised:
        media.audio_window(path, rate=32000, channels=1, start_s=0, end_s=1)
    assert raised.value.error_class == "unsupported"


def test_windows_far_before_and_after_the_sound_are_silent(tmp_path: Path):
    stamps = synth.even_stamps(Fraction(25), 20)
    path = synth.write(tmp_path / "a.mp4", stamps=stamps, audio=synth.ticks(4, 44100), audio_start=Fraction(10))
    window = media.audio_window(path, rate=32000, channels=1, start_s=6, end_s=12)[0]
    assert not window[: round(3.97 * 32000)].any()
    assert set(synth.tick_errors(window, 32000, -4.0)) == {0}
    for start_s in (2, 16, 40):
        assert not media.audio_window(path, rate=32000, channels=1, start_s=start_s, end_s=start_s + 2).any()


def test_windows_that_cannot_be_are_refused(noise):
    for start_s, end_s in ((-1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="No window"):
            media.audio_window(noise[0], rate=32000, channels=1, start_s=start_s, end_s=end_s)
    with pytest.raises(ValueError, match="channels is 1 or 2"):
        media.audio_window(noise[0], rate=32000, channels=6, start_s=0, end_s=1)


@pytest.mark.slow
def test_memory_stays_flat():
    import psutil

    process = psutil.Process()
    sound = [process.memory_info().rss for _ in media.audio_blocks(packages.film(), rate=32000, channels=2)]
    assert max(sound) - sound[2] < 20 << 20
    times = (Fraction(k, 25) for k in range(1500))
    pictures = [process.memory_info().rss for _ in media.frames_at(packages.film(), times, size=112)]
    assert max(pictures) - pictures[200] < 20 << 20


# -- writing


def test_what_is_encoded_comes_back_in_place(tmp_path: Path):
    pictures = [synth.picture(k) for k in range(75)]
    media.encode(tmp_path / "a", pictures, Fraction(30000, 1001), synth.ticks(2.5, 32000, channels=2), 32000)
    info = media.check_integrity(tmp_path / "a")
    assert info.video and info.audio
    assert (info.duration_ms, info.video.rate, info.video.frames) == (2503, Fraction(30000, 1001), 75)
    assert (info.audio.rate, info.audio.channels, info.audio.start_s) == (32000, 2, 0.0)
    assert indices(tmp_path / "a", [k * Fraction(1001, 30000) for k in range(75)]) == list(range(75))
    window = media.audio_window(tmp_path / "a", rate=32000, channels=2, start_s=0, end_s=2.5)
    assert set(synth.tick_errors(window[0], 32000, 0.0)) == {0}


def test_equal_input_is_encoded_to_equal_bytes(tmp_path: Path):
    for name in "ab":
        media.encode(tmp_path / name, [synth.picture(3)] * 5, Fraction(25), synth.ticks(0.2, 44100), 44100)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_cannot_be_encoded_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="Nothing to encode"):
        media.encode(tmp_path / "a", None, Fraction(25), None, 44100)
    with pytest.raises(ValueError, match="even width and height"):
        media.encode(tmp_path / "a", [np.zeros((3, 4, 3), np.uint8)], Fraction(25), None, 44100)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_new_sound_is_put_under_copied_pictures_at_their_times(tmp_path: Path, suffix: str):
    stamps = synth.uneven_stamps(4, seed=5, unit=Fraction(1, 1000))
    late = [stamp + Fraction(1, 5) for stamp in stamps]  # the old sound starts first
    old, new = np.zeros((1, 4 * 44100), np.float32), synth.ticks(4, 32000, channels=2)
    source = synth.write(tmp_path / f"a{suffix}", stamps=late, audio=old, rotation=90)
    media.mux(source, new, 32000, tmp_path / "b.mp4", {"title": "Étude", "artist": "dvmset"})
    first = start_of(source)
    assert start_of(tmp_path / "b.mp4") == pytest.approx(first, abs=1e-4)
    wanted = indices(source, AT_25[:100], size=None)
    assert indices(tmp_path / "b.mp4", AT_25[:100], size=None) == wanted
    window = media.audio_window(tmp_path / "b.mp4", rate=32000, channels=1, start_s=0, end_s=4)[0]
    assert set(synth.tick_errors(window, 32000, 0.0)) == {0}
    before, after = media.probe(source).video, media.probe(tmp_path / "b.mp4").video
    assert before and after and after.frames == before.frames and after.rotation == before.rotation
    assert suffix == ".ts" or after.rotation == 90

    import av

    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.metadata["title"] == "Étude" and container.metadata["artist"] == "dvmset"


def test_mux_refuses_what_mp4_cannot_hold(tmp_path: Path):
    stamps = synth.even_stamps(Fraction(25), 1)
    source = synth.write(tmp_path / "a.webm", stamps=stamps, codec="libvpx", unit=UNITS[".mkv"])
    with pytest.raises(DvmsetError, match="vp8 video can't be put into mp4"):
        media.mux(source, synth.ticks(1, 44100), 44100, tmp_path / "b.mp4")
    with pytest.raises(ValueError, match="no room for metadata named mood"):
        media.mux(source, synth.ticks(1, 44100), 44100, tmp_path / "b.mp4", {"mood": "calm"})
