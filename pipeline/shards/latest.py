"""`releases/latest`, a file with the name of the newest release, followed wherever a release is named by its folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import DvmsetError, ShardError
from pipeline.storage import Store, faults

LATEST = "latest"


def release_folder(folder: str | Path) -> str:
    """The folder of a release, or its URL: what is given, or what a file `latest` that is given names.

    Raises:
        ShardError: that file names nothing that is there.
        DvmsetError: it lies elsewhere and can't be read.
    """
    given = str(folder).rstrip("/")
    beside, _, last = given.rpartition("/")
    if last != LATEST:
        return str(folder)
    store = Store(beside or ("/" if given.startswith("/") else "."), make=False)
    try:
        if not store.fs.isfile(store.path(LATEST)):
            return str(folder)
        name = store.read_text(LATEST).strip()
        if not name or "/" in name or not store.fs.isdir(store.path(name)):
            hint = "`dvmset release` makes it anew; or name another release's folder."
            raise ShardError(f"{folder} names the release {name!r}, which is not there.", hint=hint)
    except faults() as error:
        hint = "See that it is there, and that you may read it."
        raise DvmsetError(f"{folder} can't be read: {error}.", hint=hint) from error
    return f"{beside}/{name}" if beside else name
