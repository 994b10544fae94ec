"""Files written once and whole, and the digests that name them.

A `Store` is a folder or any fsspec URL. Writes go to a temporary name in the same folder, are flushed to disk and
renamed, so that a reader or a crash never meets half a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import DvmsetError

TEMPORARY = ".tmp-"


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) over canonical JSON: sorted keys, no spaces. Floats keep their shortest form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """A folder, local or behind an fsspec URL, whose files appear whole or not at all.

    Args:
        url: a path or an fsspec URL such as `s3://bucket/data`.
    """

    def __init__(self, url: str | Path) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(str(url))
        self.is_local = isinstance(self.fs, LocalFileSystem)
        try:
            self.fs.makedirs(self.root, exist_ok=True)
        except OSError as error:
            raise DvmsetError(f"{url} can't be a data folder: {error}.", hint="Choose another folder.") from error

    def __str__(self) -> str:
        return self.root if self.is_local else self.fs.unstrip_protocol(self.root)

    def path(self, name: str) -> str:
        """The full path of `name`, without the protocol."""
        return f"{self.root}/{name}"

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

    def sweep(self) -> None:
        """Removes what interrupted writes left behind. Nobody else may be writing."""
        found = self.fs.find(self.root, withdirs=True)
        for path in [p for p in found if p.rsplit("/", 1)[-1].startswith(TEMPORARY)]:
            self.fs.rm(path, recursive=True)

    @contextmanager
    def write(self, name: str) -> Iterator[Path]:
        """Yields a local path to write to; when the block ends well the file appears as `name`, else nothing does."""
        target = self.path(name)
        folder = os.path.dirname(target)  # noqa: PTH120  (an fsspec path, not a Path)
        self.fs.makedirs(folder, exist_ok=True)
        suffix = TEMPORARY + str(os.getpid()) + "-"
        handle, text = tempfile.mkstemp(
            prefix=suffix, suffix="-" + Path(name).name, dir=folder if self.is_local else None
        )
        os.close(handle)
        temporary = Path(text)
        try:
            yield temporary
            if self.is_local:
                _flush(temporary)
                temporary.chmod(0o644)
                temporary.replace(target)
                _flush(Path(folder))
            else:
                self.fs.put_file(str(temporary), target)
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def read(self, name: str) -> Iterator[Path]:
        """Yields a local path of `name`: the file itself, or a copy that is gone afterwards if it lies elsewhere."""
        if self.is_local:
            yield Path(self.path(name))
            return
        folder = Path(tempfile.mkdtemp())
        try:
            local = folder / Path(name).name
            self.fs.get_file(self.path(name), str(local))
            yield local
        finally:
            shutil.rmtree(folder)

    def write_text(self, name: str, text: str) -> None:
        """Writes a small text file, whole."""
        with self.write(name) as path:
            path.write_text(text, encoding="utf-8")

    def read_text(self, name: str) -> str:
        """The text of a small file."""
        return str(self.fs.cat_file(self.path(name)).decode("utf-8"))


def _flush(path: Path) -> None:
    """Forces a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
