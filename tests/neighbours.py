"""The film and its neighbours: what a source list meets in the wild, made from package media, for demo and tests.

By hand: `python -m tests.neighbours FOLDER LIST`, then `python -m tests.site FOLDER --port 8642`.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.media import audio_window, encode, frames_at, mux
from pipeline.nano import packages
from pipeline.nano.mixtures import RATE, render
from pipeline.storage import Store

CITY_S = 40
FILM_END_S, HELD_OUT_S = 430, (440, 470)  # the list takes the film up to here; this stretch of it nobody trains on
BBB = packages.PACKAGES["bbb"].licence


@dataclass(frozen=True)
class Neighbour:
    """One link of the demo's list.

    Attributes:
        path: on the site.
        category: as the list gives it.
        licence: of its picture and sound.
        expected: what becomes of it: `keep`, the reason its seconds are dropped, or the error class.
        end_s: how much of it the list wants; None: all.
    """

    path: str
    category: str
    licence: str
    expected: str
    end_s: int | None = None


NEIGHBOURS = (
    Neighbour("film.mp4", "compilation", BBB, "keep", FILM_END_S),
    Neighbour("trailer.mp4", "promo", BBB, "keep"),
    Neighbour("city.mp4", "commercial", "CC0", "keep"),
    Neighbour("talk.mp4", "commercial", BBB, "speech"),
    Neighbour("silent.mp4", "promo", BBB, "silence"),
    Neighbour("mute.mp4", "promo", "CC0", "no_audio"),
    Neighbour("effects.mp4", "promo", BBB, "no_music"),
    Neighbour("broken.mp4", "compilation", BBB, "corrupt"),
    Neighbour("gone.mp4", "promo", "", "permanent"),
    Neighbour("mirror/trailer.mp4", "promo", BBB, "duplicate"),
)


def main() -> None:
    """Makes neighbours and their list, for a site at a fixed port."""
    parser = argparse.ArgumentParser(description="Make the films of a source list, and the list.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("--port", type=int, default=8642, help="of the site that will serve the folder")
    parser.add_argument("--only", nargs="+", choices=[n.path for n in NEIGHBOURS], help="these files alone")
    asked = parser.parse_args()
    write_list(asked.list, make(asked.folder, only=asked.only), f"http://127.0.0.1:{asked.port}/")


def make(folder: Path, *, film: bool = True, only: Sequence[str] | None = None) -> list[Neighbour]:
    """Makes the files of the neighbours that are not there yet; returns the neighbours, with or without the film.

    Args:
        only: paths of the neighbours that are wanted; None: all.
    """
    store = Store(folder)
    wanted = [n for n in NEIGHBOURS if n.path in (only or [n.path]) and (film or n.path != "film.mp4")]
    makers = {
        "film.mp4": lambda path: shutil.copyfile(packages.film(), path),
        "trailer.mp4": lambda path: shutil.copyfile(packages.trailer(), path),
        "mirror/trailer.mp4": lambda path: shutil.copyfile(packages.trailer(), path),
        "city.mp4": _city,
        "talk.mp4": lambda path: mux(packages.trailer(), loop(_reading(), 55), RATE, path),
        "silent.mp4": lambda path: mux(packages.trailer(), np.zeros((1, 55 * RATE), np.float32), RATE, path),
        "effects.mp4": lambda path: mux(packages.trailer(), loop(_effects(), 55), RATE, path),
        "mute.mp4": lambda path: encode(path, city_frames(12), Fraction(25), None, RATE),
        "broken.mp4": _broken,
    }
    for neighbour in wanted:
        if neighbour.path in makers and not store.exists(neighbour.path):
            with store.write(neighbour.path) as path:
                makers[neighbour.path](path)
    return wanted


def write_list(path: Path, neighbours: list[Neighbour], base_url: str) -> None:
    """Writes the neighbours as a CSV source list."""
    rows = [f'{base_url}{n.path},{n.category},"{n.licence}",{n.end_s or ""}\n' for n in neighbours]
    path.write_text("url,category,license,end\n" + "".join(rows))


def held_out(path: Path) -> Path:
    """A stretch of the film at half its size that is in no list, without its sound; made if it isn't there yet."""
    if not path.exists():
        start, end = HELD_OUT_S
        times = [Fraction(start) + Fraction(i, 24) for i in range((end - start) * 24)]
        with Store(path.parent).write(path.name) as place:
            encode(place, (f[::2, ::2] for f in frames_at(packages.film(), times)), Fraction(24), None, RATE)
    return path


def _city(path: Path) -> None:
    """CC0 footage of a city in a loop, under a rendered piece of public-domain music."""
    encode(path, city_frames(CITY_S), Fraction(25), loop(render("music", np.random.default_rng(1)), CITY_S), RATE)


def city_frames(seconds: int) -> Iterator[np.ndarray]:
    """CC0 footage of a city at 25 fps, again and again."""
    clip = packages.fetch("city") / "cityCC0.mpg"
    once = [f[: f.shape[0] // 2 * 2] for f in frames_at(clip, [Fraction(i, 25) for i in range(180)])]
    return itertools.islice(itertools.cycle(once), seconds * 25)


def _effects() -> np.ndarray:
    return np.concatenate([render("effects", np.random.default_rng(seed)) for seed in range(5)])


def _reading() -> np.ndarray:
    """A sonnet, read for LibriVox."""
    return audio_window(packages.fetch("sonnet") / "audio.wav", rate=RATE, channels=1, start_s=0, end_s=50)[0]


def loop(audio: np.ndarray, seconds: float) -> np.ndarray:
    """[N] -> [1, seconds * RATE], repeated as often as needed, at a usual level."""
    length = round(seconds * RATE)
    repeated = np.resize(audio, length)
    return (0.5 * repeated / np.abs(repeated).max())[None].astype(np.float32)


def _broken(path: Path) -> None:
    """The trailer as an interrupted copy leaves it: the first two thirds."""
    data = packages.trailer().read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


if __name__ == "__main__":
    main()
