"""Near-duplicates among the sources of a data folder: found at a release, then groups for its splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from pipeline.config import ReleaseSettings
from pipeline.fingerprint import KINDS, Catalogue, GroupIds, Groups, Pair, Shared, leakage
from pipeline.fingerprint.catalogue import FOLDER
from pipeline.ledger import Ledger, SharedRow
from pipeline.process.artefacts import VERSIONS, Artefacts
from pipeline.storage import Store, digest

_LOOKED_UP = f"{FOLDER}/looked-up"  # names the sources that the index was last brought up to date for


@dataclass(frozen=True)
class Overview:
    """What is known of near-duplicates, ready for JSON.

    Attributes:
        pairs: sources that share something, two by two, with times.
        groups: number of those of more than one source.
        leakage: joined pairs, and how many of them splits by group and by source id tear apart.
    """

    pairs: list[dict[str, Any]]
    groups: int
    leakage: dict[str, Any]


def find_duplicates(store: Store, ledger: Ledger, files: Artefacts) -> None:
    """Looks up, for the released sources that are new or changed, what they share with others; the rest is known.

    Fingerprints that no released source has any more are forgotten, with all that was found by them. Where the
    released sources are those of the last time, no index is read.
    """
    at_hand = digest([VERSIONS["fingerprint"], ledger.released_digest()])
    if store.exists(_LOOKED_UP) and store.read_text(_LOOKED_UP) == at_hand:
        return
    for kind in KINDS:
        catalogue = Catalogue(store, kind)
        names = (files.fingerprint(kind, source, media) for source, media in ledger.released_sources())
        known, left, new = catalogue.names, set[str](), list[str]()
        for name in names:
            if name in known:
                left.add(name)
            else:
                new.append(name)
        if gone := known - left:
            catalogue.keep_only(left)
            ledger.drop_shared(kind, sorted({name.rsplit("/", 1)[-1][:16] for name in gone}))
        for source_ids, found in catalogue.take(new):
            ledger.put_shared(kind, source_ids, [_row(shared) for shared in found])
    store.write_text(_LOOKED_UP, at_hand)


def pairs(ledger: Ledger, source_id: str = "") -> Iterator[tuple[Pair, list[SharedRow]]]:
    """Sources that share something, two by two, and what."""
    for (first, second), rows in groupby(ledger.shared(source_id), key=_ids):
        stretches = list(rows)
        lengths = {kind: _seconds(row for row in stretches if row.kind == kind) for kind in KINDS}
        yield Pair(first, second, lengths["sound"], lengths["picture"]), stretches


def group_sources(ledger: Ledger, shared_s: float) -> GroupIds:
    """The group of every source that was fetched.

    Sections of one video are one group, so are sources that brought the same file, and those that share at least
    `shared_s` seconds of sound or of picture.
    """
    joined = [pair for pair, _ in pairs(ledger) if pair.joins(shared_s)]
    named = {source_id for pair in joined for source_id in (pair.first, pair.second)}
    keys = {video.source_id: video.key for video in ledger.videos() if video.source_id in named} if named else {}
    not_alone = {*keys.values(), *(video.key for video in ledger.videos(repeated=True))}
    groups = Groups()
    first_with: dict[str, str] = {}
    for video in ledger.videos():  # lists are long, and memory is short: they are rather asked for again than held
        if video.key in not_alone:
            groups.add(video.key)
            groups.join(first_with.setdefault(video.sha256, video.key), video.key)
    for pair in joined:
        groups.join(keys[pair.first], keys[pair.second])
    return GroupIds((video.source_id, groups.id(video.key)) for video in ledger.videos())


def overview(ledger: Ledger, settings: ReleaseSettings, source_id: str = "") -> Overview:
    """Everything that ready sources share, or what one of them shares with others."""
    sources = {source.source_id: source for source, _ in ledger.released_sources()}
    groups = group_sources(ledger, settings.shared_s)
    found, joined = [], []
    for pair, rows in pairs(ledger, source_id):
        if pair.joins(settings.shared_s):
            joined.append(pair)
        ends = {
            name: {"source_id": name, "url": sources[name].url, "category": sources[name].category}
            for name in (pair.first, pair.second)
            if name in sources
        }
        if len(ends) < 2:  # one of them has no clip any more
            continue
        found.append(
            {
                "kind": pair.kind,
                "joined": pair.joins(settings.shared_s),
                "first": ends[pair.first],
                "second": ends[pair.second],
                "sound_s": pair.sound_s,
                "picture_s": pair.picture_s,
                "stretches": [_stretch(row, turned=row.source_id != pair.first) for row in rows],
            }
        )
    return Overview(found, _several(groups, sources), _leakage(joined, groups, settings))


def counts(ledger: Ledger, settings: ReleaseSettings, groups: Mapping[str, str]) -> dict[str, Any]:
    """What a release says of its near-duplicates, in numbers; see `Overview`.

    Args:
        groups: of every source; see `group_sources`.

    Returns:
        `joined`: pairs that are one group, by what they share; `apart`: pairs that share less than that takes;
        `groups`, `leakage`: as of `Overview`; `shared_s`: the setting.
    """
    found = [pair for pair, _ in pairs(ledger)]
    joined = [pair for pair in found if pair.joins(settings.shared_s)]
    released = (source.source_id for source, _ in ledger.released_sources())
    return {
        "shared_s": settings.shared_s,
        "joined": dict(sorted(Counter(pair.kind for pair in joined).items())),
        "apart": len(found) - len(joined),
        "groups": _several(groups, released),
        "leakage": _leakage(joined, groups, settings),
    }


def _several(groups: Mapping[str, str], source_ids: Iterable[str]) -> int:
    """How many groups have more than one of the sources."""
    _, counts = np.unique(np.fromiter((groups[name].encode() for name in source_ids), "S16"), return_counts=True)
    return int(np.count_nonzero(counts > 1))


def _leakage(joined: list[Pair], groups: Mapping[str, str], settings: ReleaseSettings) -> dict[str, Any]:
    from pipeline.release import split_of

    by_group = leakage(joined, lambda name: split_of(groups[name], settings))
    by_id = leakage(joined, lambda name: split_of(name, settings))
    return {"pairs": len(joined), "by_group": by_group.apart, "by_id": by_id.apart, "by_id_s": by_id.apart_s}


def _stretch(row: SharedRow, turned: bool) -> dict[str, Any]:
    """A stretch as seen from the first source of its pair."""
    mine, other = [row.start_ms / 1000, row.end_ms / 1000], [row.other_start_ms / 1000, row.other_end_ms / 1000]
    return {
        "kind": row.kind,
        "first_s": other if turned else mine,
        "second_s": mine if turned else other,
        "speed": round(1 / row.speed if turned else row.speed, 4),
        "mirror": row.mirror,
    }


def _row(shared: Shared) -> dict[str, str | int | float | bool]:
    found = shared.match
    return {
        "source_id": shared.source_id,
        "other_id": shared.other_id,
        "start_ms": found.first[0],
        "end_ms": found.first[1],
        "other_start_ms": found.second[0],
        "other_end_ms": found.second[1],
        "speed": found.speed,
        "mirror": found.mirror,
        "distance": found.distance,
    }


def _ids(row: SharedRow) -> tuple[str, str]:
    first, second = sorted((row.source_id, row.other_id))
    return first, second


def _seconds(rows: Iterable[SharedRow]) -> float:
    """Seconds of `source_id` that any of the stretches covers."""
    total = end = 0
    for start_ms, end_ms in sorted((row.start_ms, row.end_ms) for row in rows):
        total += max(0, end_ms - max(start_ms, end))
        end = max(end, end_ms)
    return total / 1000
