"""Ninety minutes of video: every window at its time, and no more memory than for ten."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from model.decoder import Decoder, Geometry
from model.generate import Models, generate
from model.settings import load_preset
from model.vidmusician import VidMusician
from pipeline.codec import Codec, build_codec
from pipeline.config import load_profile
from pipeline.media import probe
from pipeline.nano.geometry import CodecGeometry
from pipeline.vision import load_vision
from tests import synth

LONG_S, SHORT_S = 5400, 600
WINDOW_S, PROMPT_S = 10, 4
SHOWN_S = 7  # seconds that a picture stands: no divisor of a window's step, so that no two windows see the same
RATE = 8000  # Hz: a quarter of the sound to encode, and what would be held of it (170 MB) is still seen
TINY = CodecGeometry(filters=8, dimension=8, lstm=0, rate=RATE, ratios=(8, 5, 4))


class StandIn:
    """In the place of token generation: codes that say their absolute time, and a note of what was given, one channel
    of each condition only, so that the notes stay small.
    """

    def __init__(self) -> None:
        self.cross: list[torch.Tensor] = []  # [window_s] each
        self.rhythm: list[torch.Tensor] = []  # [frames] each
        self.prompts: list[torch.Tensor | None] = []
        self.frames: list[int] = []

    def __call__(self, cross: torch.Tensor, frames: int, **options: Any) -> torch.Tensor:
        """As `Decoder.generate`."""
        first = 50 * (WINDOW_S - PROMPT_S) * len(self.frames)
        self.frames.append(frames)
        self.cross.append(cross[0, :, 0].clone())
        self.rhythm.append(options["in_attention"][0][0, :, 0].clone())
        self.prompts.append(options["prompt"])
        return timed(first, first + frames)[None]


def timed(first: int, last: int) -> torch.Tensor:
    """Codes [4, last - first] of the frames from `first` on, another one for each."""
    return (torch.arange(first, last) * 37 + torch.arange(4)[:, None] * 511) % 2048


def still(path: Path, seconds: int) -> Path:
    """A picture a second, another one every `SHOWN_S`."""
    stamps = [Fraction(s) for s in range(seconds)]
    pictures = (synth.picture(s // SHOWN_S, width=64, height=48) for s in range(seconds))
    return synth.write(path, stamps=stamps, pictures=pictures, options={"crf": "0"})


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """The most memory of its own (mapped files left out) that the process holds in here, looked at all along."""
    found, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            found[0] = max(found[0], next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def musician() -> VidMusician:
    torch.manual_seed(0)
    model = VidMusician(
        load_preset("nano", [f"train.crop_s={WINDOW_S}"]), Decoder(Geometry(layers=2, dim=32, heads=2, ff=64))
    )
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_ninety_minutes_are_windows_by_absolute_time_in_the_memory_of_ten(
    musician: VidMusician, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(build_codec(TINY), device="cpu", id="tiny", digest="0" * 64, licence="none")
    models = Models(musician, load_vision(load_profile("nano").vision), codec)
    peaks = {}
    for seconds in (SHORT_S, LONG_S):
        video, out = still(tmp_path / f"{seconds}.mp4", seconds), tmp_path / f"{seconds}-out.mp4"
        seen = StandIn()
        monkeypatch.setattr(musician.decoder, "generate", seen)
        with peak_bytes() as peak:
            made = generate(video, out, models)
        peaks[seconds] = peak[0]

    assert made.seconds == LONG_S
    before, after = probe(video), probe(out)
    assert after.video == before.video
    assert after.audio is not None
    assert after.audio.start_s == 0
    assert after.audio.duration_s == pytest.approx(LONG_S, abs=1e-3)
    assert after.duration_ms == pytest.approx(1000 * LONG_S, abs=1)

    assert made.codes.shape == (4, 50 * LONG_S)
    assert torch.equal(torch.from_numpy(made.codes).long(), timed(0, 50 * LONG_S))
    starts = range(0, LONG_S - PROMPT_S, WINDOW_S - PROMPT_S)
    assert len(seen.frames) == len(starts) == 900
    assert musician.rhythm is not None
    with torch.inference_mode():
        curve = torch.from_numpy(made.scene.curve).float()[None]
        rhythm = musician.rhythm(curve, 50 * LONG_S)[0][0, :, 0]
        for start, frames, cross, added, prompt in zip(
            starts, seen.frames, seen.cross, seen.rhythm, seen.prompts, strict=True
        ):
            end = min(start + WINDOW_S, LONG_S)
            assert frames == 50 * (end - start) + 3
            look_ahead = round(50 * musician.preset.rhythm.ahead_s) + 1  # frames that look beyond the window's end
            mine = slice(50 * start, 50 * end - look_ahead)
            torch.testing.assert_close(added[: mine.stop - mine.start], rhythm[mine])
            piece = torch.from_numpy(made.scene.clip_global[start:end]).float()[None]
            present = torch.arange(WINDOW_S)[None] < end - start
            padded = torch.nn.functional.pad(piece, (0, 0, 0, WINDOW_S - (end - start)))
            torch.testing.assert_close(cross, musician.semantic(padded, present=present)[0, :, 0])
            if start:
                assert prompt is not None
                assert torch.equal(prompt[0], timed(50 * start, 50 * (start + PROMPT_S) - 3))
    cuts = made.scene.curve.nonzero()[0].tolist()
    assert cuts == [25 * s for s in range(0, LONG_S, SHOWN_S)]

    assert peaks[LONG_S] < peaks[SHORT_S] + 100e6, peaks
