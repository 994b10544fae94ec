"""Which clips are handed on: licences as stated, and who wants no part in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.errors import DvmsetError
from pipeline.ledger.takedowns import channel_key
from pipeline.release.traces import Wanted, key_of

_ID = re.compile(r"[0-9a-f]{16}")


class OptOuts:
    """Sources that are not to be handed on, and which of the entries that name them were met.

    An entry is a source id, an address of a video in any spelling that a source list may have, or the name of a
    channel in any case.

    Args:
        entries: as they stand in the list.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self.entries = tuple(dict.fromkeys(entries))
        self._ids = {entry: entry for entry in self.entries if _ID.fullmatch(entry)}
        self._keys = {key: entry for entry in self.entries if (key := key_of(entry))}
        self._channels = {_folded(entry): entry for entry in self.entries}
        self._met: set[str] = set()

    def name(self, source_id: str, address: str, channel: str) -> bool:
        """Whether a source is not to be handed on."""
        found = [self._ids.get(source_id), self._keys.get(key_of(address)), self._channels.get(_folded(channel))]
        met = {entry for entry in found if entry is not None}
        self._met |= met
        return bool(met)

    def are_in(self, text: str) -> bool:
        """Whether a text names such a source by its id or an address of its video; channels aren't looked for."""
        return Wanted(self._ids, self._keys).are_in(text)

    @property
    def met(self) -> list[str]:
        """Entries that named a source so far."""
        return [entry for entry in self.entries if entry in self._met]

    @property
    def unmet(self) -> list[str]:
        """Entries that named none so far."""
        return [entry for entry in self.entries if entry not in self._met]


@dataclass(frozen=True)
class Choice:
    """Which clips are taken.

    Attributes:
        licences: patterns such as `CC BY*`, of which one must match the licence as stated; without any, all do.
        opted_out: sources none of which is taken.
    """

    licences: tuple[str, ...] = ()
    opted_out: OptOuts = field(default_factory=OptOuts)

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is taken."""
        if self.opted_out.name(row["source_id"], row["url"], row["channel"]):
            return False
        return not self.licences or any(fnmatchcase(row["license"], pattern) for pattern in self.licences)


def read_opt_outs(path: str | Path) -> OptOuts:
    """Source ids, links and channels, one a line; empty lines and those that begin with # say nothing.

    Raises:
        DvmsetError: there is no such file, or it is no UTF-8 text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DvmsetError(f"The opt-out list {path} can't be read: {error}.", hint="Name a UTF-8 text file.") from error
    return OptOuts(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _folded(name: str) -> str:
    """A channel's name as it is compared, here as in takedowns; "" is nobody's, and no entry is empty."""
    return channel_key(" ".join(name.split()))
