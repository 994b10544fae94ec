"""What people do to a video before they upload it again, done by ffmpeg; and videos that have nothing in common."""

from __future__ import annotations

import subprocess
import zlib
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from pipeline import media
from pipeline.fingerprint import Codes, PictureCodes, SoundCodes
from pipeline.fingerprint.codes import PICTURE_HZ
from pipeline.nano import songs
from pipeline.nano.footage import footage
from pipeline.nano.packages import film

SECONDS, SIZE, RATE = 20, (192, 108), 12  # of the originals: small, as the machine that measures is
STRETCH_S = 12  # of the film, where it is cut into unrelated videos
_SPEED = "setpts=PTS/{0}", "asetrate=44100*{0},aresample=44100"
OTHER_PICTURE = "other picture"
# name: (video filter, audio filter, other options)
REENCODES: dict[str, tuple[str, str, str]] = {
    "bit rate": ("scale=192:108", "", "-crf 36 -b:a 48k"),
    "another codec": ("", "", "-c:v libvpx -b:v 120k -deadline realtime -cpu-used 8 -c:a libopus -b:a 32k"),
    "cropped by 14 %": ("crop=iw*0.86:ih*0.86,scale=192:108", "", ""),
    "a logo": ("drawbox=x=iw*0.78:y=ih*0.05:w=iw*0.18:h=ih*0.14:color=red:t=fill", "", ""),
    "pitch +2 %": ("", "rubberband=pitch=1.02", ""),
    "pitch -2 %": ("", "rubberband=pitch=0.98", ""),
    "speed +2 %": (_SPEED[0].format(1.02), _SPEED[1].format(1.02), ""),
    "speed -2 %": (_SPEED[0].format(0.98), _SPEED[1].format(0.98), ""),
    "tempo +2 %, pitch kept": (_SPEED[0].format(1.02), "atempo=1.02", ""),
    "mirrored": ("hflip", "", ""),
    "trimmed to 12 s": ("", "", "-ss 5.3 -t 12"),
    "other sound": ("", "volume=0", ""),
    OTHER_PICTURE: ("", "", ""),
    "cropped, mirrored, pitch +2 %": ("crop=iw*0.86:ih*0.86,hflip,scale=192:108", "rubberband=pitch=1.02", ""),
    "cropped, logo, speed -2 %, trimmed": (
        "crop=iw*0.9:ih*0.9,drawbox=x=6:y=6:w=36:h=15:color=white:t=fill," + _SPEED[0].format(0.98),
        _SPEED[1].format(0.98),
        "-ss 4 -t 14 -crf 32 -b:a 64k",
    ),
}


def fingerprints(path: Path) -> dict[str, Codes]:
    """The codes of a file, as the pipeline makes them."""
    pictures, sound = PictureCodes(), SoundCodes(22_050)
    for time, picture in media.every_frame(path, longest=256):
        pictures.feed(time, picture)
    for block in media.audio_blocks(path, rate=22_050, channels=1):
        sound.feed(block[0])
    return {"sound": sound.finish(), "picture": pictures.finish()}


def film_excerpt(path: Path, start_s: float) -> Path:
    """A stretch of the film as a file of its own."""
    place = ("-ss", str(start_s), "-t", str(SECONDS), "-i", str(film()))
    ffmpeg(*place, "-vf", f"scale={SIZE[0]}:{SIZE[1]}", "-r", str(RATE), "-crf", "22", str(path))
    return path


def made_video(path: Path, seed: int) -> Path:
    """A song under a made picture."""
    rng = np.random.default_rng(seed)
    audio = songs.song(rng, "train", SECONDS).audio
    pictures = (cv2.resize(picture, SIZE) for _, picture in made_pictures(rng, SECONDS, RATE))
    media.encode(path, pictures, Fraction(RATE), audio[None], songs.RATE)
    return path


def reencode(source: Path, name: str, folder: Path) -> Path:
    """One of `REENCODES` of a file."""
    video, audio, options = REENCODES[name]
    suffix = ".webm" if "libvpx" in options else ".mp4"
    path = folder / f"{source.stem}-{list(REENCODES).index(name)}{suffix}"
    if name == OTHER_PICTURE:
        other = made_video(folder / f"{source.stem}-picture.mp4", 100 + zlib.crc32(source.stem.encode()) % 10_000)
        ffmpeg("-i", str(source), "-i", str(other), "-map", "1:v", "-map", "0:a", "-c:v", "copy", str(path))
        other.unlink()
        return path
    filters = [*(("-vf", video) if video else ()), *(("-af", audio) if audio else ())]
    ffmpeg("-i", str(source), *filters, *options.split(), str(path))
    return path


def made_pictures(rng: np.random.Generator, seconds: float, rate: int) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Pictures [72, 128, 3] uint8 with the spectrum of natural ones, seen by a moving camera, cut every few seconds."""
    left, scene, at, drift = 0, np.zeros(0), np.zeros(2), np.zeros(2)
    for i in range(round(seconds * rate)):
        if left == 0:
            left = int(rng.integers(1 * rate, 6 * rate))
            scene, at, drift = made_scene(rng), rng.uniform(0, 60, 2), rng.normal(0, 25 / rate, 2)
        y, x = np.clip(at, 0, [88 - 1, 128 - 1]).astype(int)
        yield Fraction(i, rate), scene[y : y + 72, x : x + 128]
        at, left = at + drift, left - 1


def unrelated(
    count: int, skip_s: list[float] | None = None, seconds: int = 12
) -> Iterator[tuple[str, dict[str, Codes]]]:
    """Videos that have nothing in common, with what is most easily taken for one another among them.

    First stretches of the film; then songs under made pictures. Of each ten of those one shows the same
    still card, one a black picture, one another card in the same layout, one is silent, and one is a bare beat of the
    same tempo on drums.

    Args:
        count: how many.
        skip_s: where stretches of the film begin that are used elsewhere; None leaves the film out.
        seconds: of a song.
    """
    stretches = [] if skip_s is None else list(islice(_of_the_film(skip_s), count))
    yield from stretches
    for number in range(count - len(stretches)):
        rng = np.random.default_rng(1000 + number)
        audio = songs.song(rng, "train", seconds).audio
        pictures: list[tuple[Fraction, np.ndarray]] = list(made_pictures(rng, seconds, PICTURE_HZ))
        match number % 10:
            case 0:
                pictures = [(time, _card("A FILM")) for time, _ in pictures]
            case 1:
                pictures = [(time, np.zeros_like(picture)) for time, picture in pictures]
            case 2:
                pictures = [(time, _card(f"No {number}")) for time, _ in pictures]
            case 3:
                audio = np.zeros_like(audio)
            case 4:
                audio = _beat(rng, len(audio))
        sound, seen = SoundCodes(songs.RATE), PictureCodes()
        sound.feed(audio)
        for time, picture in pictures:
            seen.feed(time, picture)
        yield f"song {number}", {"sound": sound.finish(), "picture": seen.finish()}


def _of_the_film(skip_s: list[float]) -> Iterator[tuple[str, dict[str, Codes]]]:
    """Stretches of the film, each as if it were a video of its own; pictures as the vision room has them."""
    for half in ("train", "test"):
        seen = footage(half)
        # With room between them, so that no two are of one shot.
        for start in range(int(max(0, seen.times[0])), int(seen.times.max()) - STRETCH_S, 3 * STRETCH_S):
            if any(s - STRETCH_S < start < s + SECONDS for s in skip_s):
                continue
            pictures, sound = PictureCodes(), SoundCodes(22_050)
            for i in np.flatnonzero((seen.times >= start) & (seen.times < start + STRETCH_S)):
                pictures.feed(Fraction(float(seen.times[i])) - start, np.ascontiguousarray(seen.pictures[i]))
            end_s = float(start + STRETCH_S)
            sound.feed(media.audio_window(film(), rate=22_050, channels=1, start_s=float(start), end_s=end_s)[0])
            yield f"film at {start} s", {"sound": sound.finish(), "picture": pictures.finish()}


def made_scene(rng: np.random.Generator) -> np.ndarray:
    """[160, 256, 3] uint8: noise with a 1/f spectrum, in two colours."""
    frequency = np.hypot(np.fft.fftfreq(160)[:, None], np.fft.rfftfreq(256)[None])
    spectrum = np.exp(2j * np.pi * rng.random(frequency.shape)) / np.maximum(frequency, 1 / 256) ** 1.2
    field = np.fft.irfft2(spectrum)
    field = (field - field.min()) / np.ptp(field)
    dark, light = rng.uniform(0, 120, 3), rng.uniform(130, 255, 3)
    return (dark + field[:, :, None] * (light - dark)).astype(np.uint8)


def _card(text: str) -> np.ndarray:
    """A title card, the same in each picture."""
    card = np.full((72, 128, 3), 30, np.uint8)
    return cv2.putText(card, text, (10, 42), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (240, 240, 240), 2)


def _beat(rng: np.random.Generator, length: int) -> np.ndarray:
    """Drums at 120 bpm: the same for all but for a little noise in the strokes."""
    audio = np.zeros(length, np.float32)
    decay = np.exp(-np.arange(4000) / 700).astype(np.float32)
    for i, at in enumerate(range(0, length - 4000, songs.RATE // 4)):
        stroke = np.sin(np.arange(4000) * 0.012).astype(np.float32) if i % 2 == 0 else rng.normal(0, 0.3, 4000)
        audio[at : at + 4000] += 0.5 * decay * stroke
    return audio


def ffmpeg(*arguments: str) -> None:
    """Runs ffmpeg with arguments, the last of which names the file to write; H.264 and AAC by default."""
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-nostdin",
        "-loglevel",
        "error",
        "-y",
        "-threads",
        "2",
        *arguments[:-1],
    ]
    if "-c:v" not in arguments:
        command += ["-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac"]
    done = subprocess.run([*command, arguments[-1]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
