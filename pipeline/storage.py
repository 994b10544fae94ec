"""Files written once and whole, and the digests that name them.

A `Store` is a folder or any fsspec URL. Writes to a folder go to a temporary name in it, are flushed to disk and
renamed; writes to a bucket are uploaded whole. So a reader or a crash never meets half a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import DvmsetError, SettingsError

TEMPORARY = ".tmp-"
SCRATCH = "dvmset-scratch-"  # folders in TMPDIR


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) over canonical JSON: sorted keys, no spaces. Floats keep their shortest form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Forces a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Store:
    """A folder, local or behind an fsspec URL, whose files appear whole or not at all.

    Args:
        url: a path or an fsspec URL such as `s3://bucket/data`.
        make: makes the folder if it isn't there.

    Raises:
        DvmsetError: it can't be a data folder.
        SettingsError: nothing here knows that kind of URL.
    """

    def __init__(self, url: str | Path, *, make: bool = True) -> None:
        self.fs, self.root = _filesystem(url)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        if not make:
            return
        try:
            self.fs.makedirs(self.root, exist_ok=True)
        except faults() as error:
            hint = "Choose another folder." if self.is_local else "See that it is there, and that you may write to it."
            raise DvmsetError(f"{url} can't be a data folder: {error}.", hint=hint) from error

    def __str__(self) -> str:
        return self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    @property
    def in_process(self) -> bool:
        """Whether no other process sees it."""
        return isinstance(self.fs, MemoryFileSystem)

    def path(self, name: str) -> str:
        """The full path of `name`, without the protocol."""
        return f"{self.root}/{name}"

    def url(self, name: str) -> str:
        """What a person, or another `Store`, calls `name`: a path, or a URL."""
        return f"{self}/{name}"

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name is there."""
        return bool(self.fs.exists(self.path(name)))

    def names(self, folder: str = "") -> list[str]:
        """The file names directly in `folder`, sorted; temporary ones left out."""
        place = self.path(folder) if folder else self.root
        if not self.fs.isdir(place):
            return []
        names = (p.rsplit("/", 1)[-1] for p in self.fs.ls(place, detail=False))
        return sorted(n for n in names if not n.startswith(TEMPORARY))

    def remove(self, name: str) -> None:
        """Removes a file or folder if it is there."""
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)

    def sweep(self, idle_s: float = 0.0) -> None:
        """Removes what interrupted writes left in a folder, or reads and writes elsewhere in this machine's TMPDIR.

        Args:
            idle_s: leaves alone what was touched since; 0 if nobody else may be writing.
        """
        sweep_scratch()
        if not self.is_local:
            return  # what isn't whole never got there
        before = time.time() - idle_s
        found = self.fs.find(self.root, withdirs=True, detail=True)
        for path, info in found.items():
            if path.rsplit("/", 1)[-1].startswith(TEMPORARY) and info["mtime"] <= before and self.fs.exists(path):
                self.fs.rm(path, recursive=True)  # maybe with others of the kind in it

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Yields a local path to write to; when the block ends well the file appears as `name`, else nothing does."""
        if not self.is_local:
            with scratch_folder() as scratch:
                upload = scratch / Path(name).name
                yield upload
                self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)
                self.fs.put_file(str(upload), self.path(name))
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = TEMPORARY + str(os.getpid()) + "-"
        handle, text = tempfile.mkstemp(prefix=prefix, suffix="-" + target.name, dir=target.parent)
        os.close(handle)
        temporary = Path(text)
        try:
            yield temporary
            flush(temporary)
            temporary.chmod(0o644)
            temporary.replace(target)
            flush(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def read(self, name: str) -> Iterator[Path]:
        """Yields a local path of `name`: the file itself, or a copy that is gone afterwards if it lies elsewhere."""
        if self.is_local:
            yield Path(self.path(name))
            return
        with scratch_folder() as scratch:
            local = scratch / Path(name).name
            self.fs.get_file(self.path(name), str(local))
            yield local

    def write_text(self, name: str, text: str) -> None:
        """Writes a small text file, whole."""
        with self.write(name) as path:
            path.write_text(text, encoding="utf-8")

    def read_text(self, name: str) -> str:
        """The text of a small file."""
        return str(self.fs.cat_file(self.path(name)).decode("utf-8"))


@contextmanager
def local_folder(url: str | Path) -> Iterator[Path]:
    """Yields a folder on this machine: the one that is meant, or a copy of it if it lies elsewhere.

    Raises:
        DvmsetError: it lies elsewhere and can't be read.
        SettingsError: nothing here knows that kind of URL.
    """
    fs, root = _filesystem(url)
    if isinstance(fs, LocalFileSystem):
        yield Path(root)
        return
    with scratch_folder() as scratch:
        place = scratch / Path(root).name
        try:
            if fs.isdir(root):
                fs.get(f"{root}/", f"{place}/", recursive=True)
        except faults() as error:
            hint = "See that it is there, and that you may read it."
            raise DvmsetError(f"{url} can't be read: {error}.", hint=hint) from error
        yield place


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in TMPDIR for the block; locked, so that one whose process was killed can be told from one in use."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=SCRATCH))
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            break
        os.close(handle)  # it was swept away before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(handle)


def sweep_scratch() -> None:
    """Removes the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):
            continue  # gone meanwhile, or of another user
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)  # somebody else may be sweeping, too
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(handle)


def faults() -> tuple[type[Exception], ...]:
    """What filesystems raise: s3fs lets through botocore's own errors, which are no OSErrors."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, botocore.BotoCoreError) if botocore else (OSError,)


def _filesystem(url: str | Path) -> tuple[AbstractFileSystem, str]:
    try:
        # Listings aren't remembered: other workers write, too.
        fs, root = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
    except (ImportError, ValueError) as error:  # no such protocol, or its package is missing
        hint = "Run `pip install 'dvmset[s3]'`." if str(url).startswith("s3") else "Use a folder, or a URL of fsspec's."
        raise SettingsError(f"{url} can't be a data folder: {error}", hint=hint) from error
    return fs, root.rstrip("/")
