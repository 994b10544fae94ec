"""The integrity gate: what is whole passes whatever its kind, what is damaged is refused and says why."""

from __future__ import annotations

import random
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from pipeline import media
from pipeline.errors import SourceError
from pipeline.nano import packages
from tests import synth

AT_25 = Fraction(25)
FASTSTART = {"movflags": "+faststart"}


def clip(path: Path, seconds: float = 20, **kwargs) -> Path:
    """Twenty seconds of pictures and noise, a key frame each second."""
    sound = np.random.default_rng(0).normal(0, 0.1, (1, round(seconds * 44100))).astype(np.float32)
    return synth.write(path, stamps=synth.even_stamps(AT_25, seconds), audio=sound, **kwargs)


def refusal(path: Path, **kwargs) -> str:
    with pytest.raises(SourceError) as raised:
        media.check_integrity(path, **kwargs)
    assert raised.value.error_class == "corrupt"
    assert path.name in raised.value.message
    return raised.value.message


def flip(path: Path, kind: str, since: float, until: float) -> None:
    """Turns 300 bytes over in the packets of `kind` between two times."""
    data, source = bytearray(path.read_bytes()), random.Random(0)
    with av.open(str(path)) as container:
        stream = container.streams.best(kind)
        packets = [p for p in container.demux(stream) if p.size and since <= p.pts * p.time_base < until]
        for _ in range(300):
            packet = source.choice(packets)
            data[packet.pos + source.randrange(packet.size)] ^= 0xFF
    path.write_bytes(data)


# -- whole files


def test_real_files_pass():
    info = media.check_integrity(packages.trailer(), expected_s=55)
    assert info.video and info.audio
    assert (info.duration_ms, info.video.frames, info.audio.codec) == (55125, 1323, "mp3float")
    assert media.check_integrity(packages.film(), expected_s=596).duration_ms == 596474


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_every_container_passes(tmp_path: Path, suffix: str):
    info = media.check_integrity(clip(tmp_path / f"a{suffix}", 5), expected_s=5)
    assert info.video and info.video.rate == 25 and not info.video.variable_rate


def test_a_variable_rate_with_pauses_passes(tmp_path: Path):
    stamps = [s if s < 4 else s + 3 for s in synth.uneven_stamps(8, seed=2)]
    sound = synth.ticks(11, 44100)
    info = media.check_integrity(synth.write(tmp_path / "a.mp4", stamps=stamps, audio=sound), expected_s=11)
    assert info.video and info.video.variable_rate


def test_sound_alone_and_pictures_alone_pass(tmp_path: Path):
    info = media.check_integrity(synth.write(tmp_path / "a.mp4", audio=synth.ticks(3, 44100)))
    assert info.video is None and info.audio
    info = media.check_integrity(synth.write(tmp_path / "b.mp4", stamps=synth.even_stamps(AT_25, 3)))
    assert info.audio is None and info.video


@pytest.mark.parametrize("suffix", [".mp3", ".flac", ".ogg"])
def test_plain_sound_files_pass(tmp_path: Path, suffix: str):
    kinds = {".mp3": ("libmp3lame", "fltp"), ".flac": ("flac", "s16"), ".ogg": ("libopus", "flt")}
    codec, sample_format = kinds[suffix]
    sound = synth.ticks(6, 48000)
    path = tmp_path / f"a{suffix}"
    synth.write(path, audio=sound, audio_rate=48000, audio_codec=codec, audio_format=sample_format)
    assert media.check_integrity(path, expected_s=6).audio


def test_a_slide_every_two_seconds_passes(tmp_path: Path):
    path = synth.write(tmp_path / "a.mp4", stamps=[Fraction(2 * k) for k in range(10)])
    assert media.check_integrity(path).duration_ms == 20000


def test_two_pictures_pass_only_as_two_pictures(tmp_path: Path):
    path = synth.write(tmp_path / "a.mp4", stamps=synth.even_stamps(AT_25, 0.08))
    assert media.check_integrity(path).duration_ms == 80
    assert "lasts 0.1 s, not 10.0 s" in refusal(path, expected_s=10)


@pytest.mark.parametrize("name", ["http:x.mp4", "50% é #1.mp4", "-a.mp4"])
def test_any_file_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    clip(tmp_path / "a.mp4", 2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert media.check_integrity(name).duration_ms == 2000


def test_an_open_group_at_the_end_passes(tmp_path: Path):
    media.check_integrity(clip(tmp_path / "a.mp4", 6, options={"g": "30", "x264-params": "open-gop=1"}))


def test_a_duration_in_whole_seconds_passes(tmp_path: Path):
    path = clip(tmp_path / "a.mp4", 5.8)
    media.check_integrity(path, expected_s=5)
    assert "lasts 5.8 s, not 7.5 s" in refusal(path, expected_s=7.5)


# -- damaged ones


@pytest.mark.parametrize(
    "content", [b"", b"x", b"<!DOCTYPE html><html><body>Sign in</body></html>" * 50, bytes(range(256)) * 40]
)
def test_what_is_no_media_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    why = "is not a media file, or its index is missing" if content else "is empty"
    assert refusal(path) == f"a.mp4 {why}."


def test_a_playlist_is_never_followed(tmp_path: Path):
    clip(tmp_path / "secret.ts", 2)
    path = tmp_path / "a.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n")
    refusal(path)


def test_a_missing_file_is_no_fault_of_the_media(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        media.probe(tmp_path / "a.mp4")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("muxer_options", [{}, FASTSTART], ids=["index last", "index first"])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float, muxer_options: dict[str, str]):
    path = clip(tmp_path / "a.mp4", muxer_options=muxer_options)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refusal(path)


@pytest.mark.parametrize("suffix", [".mkv", ".flv"])
def test_other_truncated_containers_are_refused(tmp_path: Path, suffix: str):
    path = clip(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(0.8 * len(data))])
    refusal(path)


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize(("where", "since", "until"), [("start", 0, 1), ("end", 19, 20)])
def test_damage_at_either_end_is_found(tmp_path: Path, kind: str, where: str, since: float, until: float):
    path = clip(tmp_path / "a.mp4")
    flip(path, kind, since, until)
    message = refusal(path)
    assert f"its {kind} can't be decoded at the {where}" in message or (where == "start" and "is damaged" in message)


def test_damage_is_found_in_pictures_of_several_slices(tmp_path: Path):
    path = synth.write(
        tmp_path / "a.mp4", stamps=synth.even_stamps(AT_25, 5), options={"x264-params": "slices=4:keyint=25"}
    )
    media.check_integrity(path)
    flip(path, "video", 0, 5)
    assert "its video can't be decoded" in refusal(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_lost_segment_is_found_though_the_duration_is_kept(tmp_path: Path, suffix: str):
    path = clip(tmp_path / f"a{suffix}", keep=lambda packet: not 8 <= packet.pts * packet.time_base < 13)
    assert media.probe(path).duration_ms == pytest.approx(20000, abs=60)
    message = refusal(path, expected_s=20)
    assert "packets are there" in message or "no video for" in message


def test_many_small_losses_are_found(tmp_path: Path):
    lost = {*range(100, 122), *range(300, 322)}  # 0.88 s each: no gap of a second
    path = synth.write(
        tmp_path / "a.mkv",
        stamps=synth.even_stamps(AT_25, 20),
        keep=lambda packet: round(packet.pts * packet.time_base * 25) not in lost,
        options={"bf": "0"},
    )
    assert "456 of 500 video packets are there" in refusal(path)


def test_a_lost_segment_of_sound_alone_is_found(tmp_path: Path):
    def keep(packet) -> bool:
        return packet.stream.type == "video" or not 8 <= packet.pts * packet.time_base < 9.2

    path = clip(tmp_path / "a.mkv", 100, keep=keep)
    assert "no audio for 1.2 s from 8.0 s" in refusal(path)


def test_a_lost_end_is_found_where_the_duration_is_known(tmp_path: Path):
    path = clip(tmp_path / "a.mp4", keep=lambda packet: packet.pts * packet.time_base < 14)
    media.check_integrity(path)
    assert "lasts 14.0 s, not 20.0 s" in refusal(path, expected_s=20)


def test_a_lost_end_of_the_pictures_is_found(tmp_path: Path):
    def keep(packet) -> bool:
        return packet.stream.type == "audio" or packet.pts * packet.time_base < 14

    assert "its video ends at 14.0 s of 20.0 s" in refusal(clip(tmp_path / "a.mp4", keep=keep), expected_s=20)


def test_a_file_without_streams_is_unsupported(tmp_path: Path):
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    path = tmp_path / "a.mkv"
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([ffmpeg, "-v", "error", "-i", str(tmp_path / "a.srt"), str(path)], check=True)
    with pytest.raises(SourceError, match="neither video nor audio") as raised:
        media.check_integrity(path)
    assert raised.value.error_class == "unsupported"
