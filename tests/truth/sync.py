"""Flashes and beeps a known time apart, through containers, downloads, decoding, tokens and written files.

python -m tests.truth.sync
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline import media
from pipeline.clips import samples
from pipeline.config import FetchSettings, load_profile
from pipeline.fetch import fetch
from pipeline.sources import Source, canonical_key, source_id
from pipeline.vision import FPS
from tests import synth
from tests.site import Site
from tests.truth import reencodes
from tests.truth.card import show, table

SECONDS = 6
SIZE = (160, 96)
FLASHES_S = (1.0, 2.12, 3.04, 4.2, 5.08)  # on the grid of 25 a second
FLASH_S, BEEP_S = 0.12, 0.08
RATE = 32_000  # at which sound is listened to
MS = Fraction(1, 1000)
LIMIT_MS = 10.0


@dataclass(frozen=True)
class Case:
    """A file with flashes and beeps.

    Attributes:
        suffix: of its name, which says the container.
        rate: pictures a second; None is a variable rate.
        delay_s: by which beeps come after flashes.
        more: for `synth.write`.
        remake: ffmpeg's arguments between input and output for a second file, made of the first; `{}` is the first.
    """

    suffix: str = ".mp4"
    rate: Fraction | None = Fraction(25)
    delay_s: float = 0.0
    audio_start: Fraction = Fraction(0)
    video_start: Fraction = Fraction(0)
    more: tuple[tuple[str, object], ...] = ()
    remake: str = ""


_VP8 = (
    ("codec", "libvpx"),
    ("options", {"deadline": "realtime", "cpu-used": "8"}),
    ("unit", MS),
    ("audio_codec", "libopus"),
    ("audio_rate", 48_000),
    ("audio_format", "flt"),
)
_MP3 = (("audio_codec", "libmp3lame"),)
CASES: dict[str, Case] = {
    "mp4, AAC with priming": Case(),
    "mp4, beeps 250 ms late": Case(delay_s=0.25),
    "mp4, beeps 133 ms early": Case(delay_s=-0.133),
    "mp4, 23.976 a second": Case(rate=Fraction(24000, 1001)),
    "mp4, 29.97 a second": Case(rate=Fraction(30000, 1001), delay_s=0.04),
    "mp4, 60 a second": Case(rate=Fraction(60)),
    "mp4, variable rate": Case(rate=None, delay_s=0.08),
    "mp4, sound starts 400 ms late": Case(audio_start=Fraction(2, 5)),
    "mp4, picture starts 320 ms late": Case(video_start=Fraction(8, 25)),
    "mp4, MP3": Case(more=_MP3, delay_s=0.1),
    "mp4, fragments": Case(remake="-i {} -c copy -movflags frag_keyframe+empty_moov+default_base_moof"),
    "mp4, cut without re-encoding (edit list)": Case(remake="-ss 1.52 -i {} -c copy", delay_s=0.06),
    "mp4, sound shifted in the container": Case(remake="-itsoffset 0.36 -i {} -i {} -map 1:v -map 0:a -c copy"),
    "mov, PCM": Case(suffix=".mov", more=(("audio_codec", "pcm_s16le"), ("audio_format", "s16"))),
    "mkv, AAC": Case(suffix=".mkv", more=(("unit", MS),), delay_s=-0.05),
    "mkv, variable rate, FLAC": Case(
        suffix=".mkv", rate=None, more=(("unit", MS), ("audio_codec", "flac"), ("audio_format", "s16"))
    ),
    "webm, Opus with pre-skip": Case(suffix=".webm", more=_VP8),
    "webm, Opus 200 ms late": Case(suffix=".webm", more=_VP8, delay_s=0.2),
    "ts that starts at 10 s": Case(suffix=".ts", audio_start=Fraction(10), video_start=Fraction(10)),
    "ts, sound starts 200 ms late": Case(suffix=".ts", audio_start=Fraction(51, 5), video_start=Fraction(10)),
    "flv, MP3": Case(suffix=".flv", more=(("unit", MS), *_MP3)),
    "avi, PCM": Case(
        suffix=".avi",
        more=(("codec", "mpeg4"), ("unit", Fraction(1, 25)), ("audio_codec", "pcm_s16le"), ("audio_format", "s16")),
    ),
}  # fmt: skip


def write(case: Case, folder: Path, name: str) -> tuple[Path, float]:
    """The file of a case, and by how many seconds its beeps come after its flashes."""
    start = case.video_start
    stamps = synth.uneven_stamps(SECONDS, seed=7, unit=Fraction(1, 1000)) if case.rate is None else [
        start + i / case.rate for i in range(math.ceil((SECONDS - start % 1) * case.rate))
    ]  # fmt: skip
    begin = min(case.video_start, case.audio_start)
    times = np.array([float(stamp - begin) for stamp in stamps])
    shown = [float(times[np.searchsorted(times, at - 1e-6)]) for at in FLASHES_S]  # when each flash really appears
    path = folder / f"{name}{case.suffix}"
    more: dict = dict(case.more)
    rate = int(more.get("audio_rate", 44_100))
    sound = beeps([at + case.delay_s for at in shown], rate, float(case.audio_start - begin))
    synth.write(
        path,
        stamps=stamps,
        pictures=(_picture(any(at - 1e-6 <= t < at + FLASH_S for at in shown)) for t in times),
        audio=sound[None],
        audio_start=case.audio_start,
        **more,
    )
    if not case.remake:
        return path, case.delay_s
    second = folder / f"{name}-remade{case.suffix}"
    reencodes.ffmpeg(*case.remake.replace("{}", str(path)).split(), str(second))
    shifted = 0.36 if "itsoffset" in case.remake else 0.0
    return second, case.delay_s + shifted


def beeps(times: Sequence[float], rate: int, start_s: float = 0.0, seconds: float = SECONDS) -> np.ndarray:
    """[n] float32 from `start_s` on: bursts of a chord that begin at `times`."""
    t = start_s + np.arange(round((seconds - start_s) * rate)) / rate
    sound = np.zeros(len(t))
    for at in times:
        inside = (t >= at) & (t < at + BEEP_S)
        sound[inside] = sum(0.25 * np.sin(2 * np.pi * hz * (t[inside] - at)) for hz in (880, 1320, 2200))
    return sound.astype(np.float32)


def flashes_at(path: Path) -> list[float]:
    """When a file's pictures turn light, in seconds from time zero, to the millisecond."""
    steps = range(round(SECONDS * 1000))
    light = np.array([picture[::8, ::8].mean() > 128 for picture in media.frames_at(path, (k * MS for k in steps))])
    return [k / 1000 for k in (np.flatnonzero(np.diff(light.astype(np.int8)) > 0) + 1).tolist()]


def beeps_at(sound: np.ndarray, rate: int) -> list[float]:
    """When bursts begin in [n] samples, in seconds: where the level, over 2 ms, first passes a quarter of its peak."""
    width = rate // 500
    level = np.sqrt(np.convolve(sound.astype(np.float64) ** 2, np.ones(width) / width, "full")[: len(sound)])
    starts: list[float] = []
    for k in np.flatnonzero(level > level.max() / 4).tolist():
        at = (k - width / 4) / rate
        if not starts or at - starts[-1] > 0.5:
            starts.append(at)
    return starts


def errors_ms(flashes: Sequence[float], sounds: Sequence[float], delay_s: float) -> list[float]:
    """For every flash: by how much its beep comes later than it should; 1000 if there is none near."""
    found = []
    for flash in flashes:
        near = min((beep - flash - delay_s for beep in sounds), key=abs, default=1.0)
        found.append(1000 * near if abs(near) < 0.5 else 1000.0)
    return found


def decoded(path: Path, delay_s: float) -> list[float]:
    """Errors of a file as the pipeline decodes it."""
    sound = media.audio_window(path, rate=RATE, channels=1, start_s=0, end_s=SECONDS)[0]
    return errors_ms(flashes_at(path), beeps_at(sound, RATE), delay_s)


def in_tokens(path: Path, delay_s: float, start_ms: int = 480) -> list[float]:
    """Errors of a clip's features: where the rhythm curve jumps, and where decoded codec tokens begin to sound.

    A flash shows in the curve at the first of its 25 steps a second that isn't before it.
    """
    from pipeline.codec import load_codec
    from pipeline.vision import load_vision

    profile, end_ms = load_profile("nano"), 1000 * SECONDS - 500
    curve = load_vision(profile.vision).encode(path, start_ms, end_ms).patch_distance.astype(np.float32)
    jumps = np.flatnonzero((curve[1:] > 0.25 * curve[1:].max()) & (curve[:-1] < 0.25 * curve[1:].max())) + 1
    steps_s: list[float] = []
    for step in jumps.tolist():  # each flash jumps twice: as it comes and as it goes
        if not steps_s or step / FPS - steps_s[-1] > 2 * FLASH_S:
            steps_s.append(step / FPS)
    flashes = [at - start_ms / 1000 for at in flashes_at(path) if start_ms < 1000 * at < end_ms]
    expected = [math.ceil(round(at * FPS, 3)) / FPS for at in flashes]
    codec = load_codec(profile.codec)
    steps = samples(start_ms, end_ms, codec.frame_rate)
    begin_s = start_ms / 1000
    span = {"start_s": begin_s, "end_s": begin_s + steps / codec.frame_rate}
    window = media.audio_window(path, rate=codec.rate, channels=1, **span)
    sounds = beeps_at(codec.decode(codec.encode(window[0])), codec.rate)
    return errors_ms(expected, steps_s, 0.0) + errors_ms(flashes, sounds, delay_s)


def written(path: Path, folder: Path) -> list[float]:
    """Errors of new sound put under a file's pictures, as `generate` writes it: a beep at every flash."""
    flashes = flashes_at(path)
    out = folder / f"{path.stem}-out.mp4"
    sound = beeps(flashes, RATE)[None]
    media.mux(path, iter(np.array_split(sound, 7, axis=1)), RATE, out)
    return decoded(out, 0.0)


def downloaded(name: str, folder: Path, pack: Callable[[Path, Path], None] | None = None) -> list[float]:
    """Errors of a file that is fetched from a site, in one piece or as a stream of segments."""
    folder.mkdir(exist_ok=True)
    path, delay_s = write(CASES["mp4, beeps 250 ms late"], folder, "upload")
    if pack:
        pack(path, folder / name)
    with Site(folder) as site:
        url = site.url(name if pack else path.name)
        key = canonical_key(url)
        source = Source(source_id(key, None, None), key, url, "", None, None, "", "", 0)
        got = fetch(source, folder, FetchSettings(allow_loopback=True, retries=0))
    return decoded(got.path, delay_s)


def into_hls(path: Path, target: Path) -> None:
    """Makes a playlist with segments of MPEG-TS."""
    reencodes.ffmpeg("-i", str(path), "-c", "copy", "-f", "hls", "-hls_time", "1", str(target))


def worst(errors: Sequence[float]) -> float:
    """The largest error, in milliseconds."""
    return max(map(abs, errors), default=1000.0)


def main() -> None:
    """Measures and writes the card's table."""
    first = table(
        "Beeps against flashes, largest error of five pairs", "case", "decoded", "new sound muxed", "av_offset_ms"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for i, (name, case) in enumerate(CASES.items()):
            path, delay_s = write(case, folder, str(i))
            muxed = f"{worst(written(path, folder)):.1f} ms" if case.suffix not in _NOT_COPIED else "other codec"
            first.add_row(
                name, f"{worst(decoded(path, delay_s)):.1f} ms", muxed, f"{media.probe(path).av_offset_ms:.1f}"
            )
        rest = table("... and through the other stages", "stage", "largest error")
        rest.add_row("download of one file", f"{worst(downloaded('', folder / 'a')):.1f} ms")
        rest.add_row("download of a stream (HLS)", f"{worst(downloaded('list.m3u8', folder / 'b', into_hls)):.1f} ms")
        for name in ("mp4, AAC with priming", "mp4, beeps 250 ms late", "ts that starts at 10 s"):
            path, delay_s = write(CASES[name], folder, "tokens")
            error = worst(in_tokens(path, delay_s))
            rest.add_row(f"rhythm curve and decoded tokens (nano): {name}", f"{error:.1f} ms")
    show("sync", first, rest)


_NOT_COPIED = (".webm", ".avi")  # their video has no place in mp4, or generate refuses it; it says so


def _picture(light: bool) -> np.ndarray:
    picture = np.full((SIZE[1], SIZE[0], 3), 230 if light else 40, np.uint8)
    picture[::16, :] = 120
    return picture


if __name__ == "__main__":
    main()
