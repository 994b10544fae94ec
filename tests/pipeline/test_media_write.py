"""Sound given in pieces, sound alone, and what can't be muxed, known beforehand."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from pipeline import media
from pipeline.errors import DvmsetError, SourceError
from tests import synth

RATE = 32_000


def noise(channels: int, seconds: float) -> np.ndarray:
    random = np.random.default_rng(0)
    return (0.2 * random.standard_normal((channels, round(seconds * RATE)))).astype(np.float32)


def test_sound_in_pieces_gives_the_file_that_it_gives_whole(tmp_path: Path) -> None:
    video = synth.write(tmp_path / "a.mp4", stamps=synth.even_stamps(Fraction(25), 2))
    sound = noise(1, 2)
    pieces = np.split(sound, [5, 5, 1030, 40_000], axis=1)
    media.mux(video, sound, RATE, tmp_path / "b.mp4", {"comment": "{}"})
    media.mux(video, iter(pieces), RATE, tmp_path / "c.mp4", {"comment": "{}"})
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_holds_24_bits_of_every_sample_and_the_metadata(tmp_path: Path, channels: int) -> None:
    sound = noise(channels, 0.7)
    sound[0, 0], sound[0, 1] = 1.5, -1.5  # clipped
    media.write_wav(tmp_path / "a.wav", iter(np.split(sound, [999], axis=1)), RATE, {"comment": '{"seed": 1}'})
    read, rate = soundfile.read(tmp_path / "a.wav", always_2d=True, dtype="float64")
    assert rate == RATE and soundfile.info(tmp_path / "a.wav").subtype == "PCM_24"
    np.testing.assert_allclose(read.T, sound.clip(-1, 1 - 2**-23), atol=0.5 * 2**-23)
    with av.open(str(tmp_path / "a.wav")) as container:
        assert container.metadata["comment"] == '{"seed": 1}'


def test_what_cannot_be_muxed_is_known_before_there_is_sound(tmp_path: Path) -> None:
    stamps = synth.even_stamps(Fraction(25), 1)
    media.check_mux(synth.write(tmp_path / "good.mkv", stamps=stamps, unit=Fraction(1, 1000)))
    with pytest.raises(DvmsetError, match="vp8 video can't be put into mp4"):
        media.check_mux(synth.write(tmp_path / "a.webm", stamps=stamps, codec="libvpx", unit=Fraction(1, 1000)))
    with pytest.raises(SourceError, match="no video"):
        media.check_mux(synth.write(tmp_path / "sound.mp4", audio=noise(1, 1), audio_rate=RATE))
    with pytest.raises(ValueError, match="No audio"):
        media.mux(tmp_path / "good.mkv", iter([]), RATE, tmp_path / "b.mp4")
