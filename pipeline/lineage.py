"""A clip's whole story, from its row in a list to its tokens; and why a stretch of a video is no clip.

All of it is read from the ledger, the artefacts and the releases of a data folder; nothing is computed anew but the
verdict, from its stored curves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Profile, settings_of
from pipeline.errors import DvmsetError, MissingWeights
from pipeline.ledger import ClipRow, Ledger, MediaRow, Record, SourceRow
from pipeline.process.artefacts import Artefacts
from pipeline.process.decide import section
from pipeline.sources import LATEST_S, canonical_key, source_id
from pipeline.storage import Store, file_digest

if TYPE_CHECKING:
    from pipeline.music import Curves
    from pipeline.release import Release

_CLIP = re.compile(r"([0-9a-f]{16})-(\d{8,})-(\d{8,})")
_SOURCE = re.compile(r"[0-9a-f]{16}")
_LISTED = ("added", "relabelled", "restored")  # events that tell the row of a list
_BARS = 60  # points of a curve's shape
_SERIES = ("music", "speech", "singing", "voice_ratio", "speech_left", "silence", "mix_db", "onset")


@dataclass(frozen=True)
class Asked:
    """What somebody wants to know about: a stretch of a source.

    Attributes:
        start_ms, end_ms: of the stretch; None for the whole source.
    """

    source_id: str
    start_ms: int | None = None
    end_ms: int | None = None


def find(ledger: Ledger, what: str, at_s: float | None = None) -> Asked:
    """Reads a clip id, a source id or the address of a video.

    Args:
        at_s: a time in the source, for the span that is there.

    Raises:
        DvmsetError: the ledger knows nothing of it, or has several sections of the video.
    """
    clip = _CLIP.fullmatch(what)
    name = clip[1] if clip else what if _SOURCE.fullmatch(what) else _of_address(ledger, what, at_s)
    if not ledger.record(name).known:
        raise DvmsetError(
            f"Nothing is known of {what}.", hint="Is it the right --data? `dvmset status` shows what is here."
        )
    if clip:
        return Asked(name, int(clip[2]), int(clip[3]))
    if at_s is None:
        return Asked(name)
    if not 0 <= at_s <= LATEST_S:
        raise DvmsetError(f"{at_s} s is no time in a video.", hint="Give seconds from its beginning.")
    at_ms = round(at_s * 1000)
    for span in ledger.spans(name):
        if span.start_ms <= at_ms < span.end_ms:
            return Asked(name, span.start_ms, span.end_ms)
    return Asked(name, at_ms, at_ms + 1)


def _of_address(ledger: Ledger, address: str, at_s: float | None) -> str:
    key = canonical_key(address)
    found = ledger.sections(key)
    if len(found) > 1 and at_s is not None:
        found = [row for row in found if (row.start_s or 0) <= at_s < (row.end_s or float("inf"))] or found
    if len(found) > 1:
        names = ", ".join(f"{row.source_id} ({row.start_s or 0:g} s on)" for row in found)
        raise DvmsetError(
            f"{address} is listed in several sections: {names}.", hint="Name one of them, or a time: --at."
        )
    return found[0].source_id if found else source_id(key)


def why(store: Store, ledger: Ledger, asked: Asked, profile: Profile | None = None) -> dict[str, Any]:
    """The story of a stretch of a source, in the order in which it happened; plain values for JSON.

    Args:
        asked: as `find` gives it.
        profile: the settings that artefacts are looked for under; those of the newest release by default.
    """
    from pipeline.release import latest_release

    record = ledger.record(asked.source_id)
    release = latest_release(store)
    if profile is None and release is not None:
        profile = settings_of(Profile, release.manifest["settings"]["values"], (), where=f"release {release.id}")
    clip = next((c for c in record.clips if (c.start_ms, c.end_ms) == (asked.start_ms, asked.end_ms)), None)
    story: dict[str, Any] = {
        "source": _source(record),
        "listed": [{"at": _iso(e.at), "what": e.kind, "detail": e.detail} for e in record.events],
        "site": _site(record),
        "attempts": [_attempt(row) for row in record.attempts],
        "media": _media(store, record.media),
        "reviews": [_review(row) for row in ledger.reviews(asked.source_id)],
    }
    if record.source and record.media and profile:
        story |= _heard(Artefacts(store, profile), record.source, record.media, asked)
    story["spans"] = [
        {"start_s": s.start_ms / 1000, "end_s": s.end_ms / 1000, "fate": s.reason or "clip"}
        for s in record.spans
        if asked.start_ms is None or asked.end_ms is None or (s.start_ms < asked.end_ms and s.end_ms > asked.start_ms)
    ]
    story["clip"] = _clip(store, clip) if clip else None
    story["settings"] = {"profile": profile.name, "digest": profile.digest(), **profile.key()} if profile else None
    story["releases"] = list(_changes(store, ledger, asked))
    story["released"] = _released(store, release, clip) if clip and release else None
    story["in_short"] = _in_short(record, asked, clip, story)
    return story


def _source(record: Record) -> dict[str, Any] | None:
    """The source; `row` is where it stood in a list when that last changed something, `position` its place in order."""
    row = record.source
    if row is None:
        return None
    names = ("source_id", "key", "url", "category", "license", "start_s", "end_s", "state", "error_class", "withheld")
    places = [event.detail for event in record.events if event.kind in _LISTED and event.detail]
    return {
        **{name: getattr(row, name) for name in names},
        "row": places[-1] if places else None,
        "position": row.position,
        "added_at": _iso(row.added_at),
    }


def _site(record: Record) -> dict[str, Any] | None:
    row = record.upstream
    if row is None:
        return None
    said = {"revision": row.revision, "gone": row.gone}
    return {"asked_at": _iso(row.checked_at), **said, "gone_at": _iso(row.gone_at) if row.gone_at else None}


def _attempt(row: Any) -> dict[str, Any]:
    said = {name: getattr(row, name) for name in ("stage", "outcome", "error_class", "message", "bytes")}
    return {"at": _iso(row.at), "seconds": round(row.seconds, 3), **said}


def _media(store: Store, row: MediaRow | None) -> dict[str, Any] | None:
    if row is None:
        return None
    names = ("sha256", "bytes", "has_video", "has_audio", "details")
    said = {name: getattr(row, name) for name in names}
    return {
        **said,
        "seconds": row.duration_ms / 1000,
        "fetched_at": _iso(row.fetched_at),
        "kept": store.exists(row.name),
    }


def _review(row: Any) -> dict[str, Any]:
    said = {name: getattr(row, name) for name in ("decision", "reviewer", "rules")}
    return {"at": _iso(row.at), "start_s": row.start_ms / 1000, "end_s": row.end_ms / 1000, **said}


def _heard(files: Artefacts, source: SourceRow, media: MediaRow, asked: Asked) -> dict[str, Any]:
    """Cuts, curves and verdict of the stretch, as far as they are stored."""
    first, last = section(source, media.duration_ms)
    start = first if asked.start_ms is None else asked.start_ms
    end = last if asked.end_ms is None else asked.end_ms
    shots = files.shots(media)
    found: dict[str, Any] = {"shots": _file(files.store, shots)}
    if found["shots"]["sha256"]:
        inside = [cut for cut in files.read_cuts(media) if start < cut * 1000 < end]
        found["shots"]["cuts_s"] = inside
    try:
        name = files.curves(source, media)
    except MissingWeights as error:
        return {**found, "curves": {"file": None, "why": error.message}}
    found["curves"] = _file(files.store, name)
    if found["curves"]["sha256"]:
        curves = files.read_curves(source, media)
        seconds = curves.window(start, end)
        found["curves"]["series"] = {n: _series(values[seconds]) for n, values in _values(curves)}
        found["verdict"] = list(_verdict(files.profile, curves, seconds))
    return found


def _values(curves: Curves) -> Iterator[tuple[str, np.ndarray]]:
    from pipeline.music.shown import shown, shown_stems

    yield from ((name, shown(curves, name)) for name in _SERIES)
    yield from ((f"{name} stem, dB", levels) for name, levels in shown_stems(curves).items())


def _series(values: np.ndarray) -> dict[str, Any] | None:
    """A curve in few numbers; its shape is means over equal stretches of time, None where nothing was separated."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    from pipeline.music.shown import numbers

    count = min(_BARS, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    parts = [values[a:b] for a, b in pairwise(edges)]
    shape = numbers(np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts]))
    figures = {"least": known.min(), "mean": known.mean(), "most": known.max()}
    return {**{name: round(float(value), 4) for name, value in figures.items()}, "shape": shape}


def _verdict(profile: Profile, curves: Curves, seconds: slice) -> Iterator[dict[str, Any]]:
    """What the rules say of each second, runs of the same put together; people may have outranked them."""
    from pipeline.music import judge

    reasons = judge(curves, profile.verdict).reasons[seconds]
    at = curves.start_ms / 1000 + seconds.start
    for reason, run in groupby(reasons):
        length = len(list(run))
        yield {"start_s": at, "end_s": min(at + length, curves.end_ms / 1000), "says": reason or "keep"}
        at += length


def _clip(store: Store, row: ClipRow) -> dict[str, Any]:
    start_s, end_s = row.start_ms / 1000, row.end_ms / 1000
    said = {"clip_id": row.clip_id, "start_s": start_s, "end_s": end_s, "seconds": (row.end_ms - row.start_ms) / 1000}
    return {
        **said,
        "reviewed": row.reviewed,
        "measures": row.measures,
        "vision": _arrays(store, row.vision),
        "codes": _arrays(store, row.codes),
    }


def _arrays(store: Store, name: str) -> dict[str, Any]:
    """A safetensors file: digest, what its header says, and shapes."""
    from safetensors import safe_open

    found = _file(store, name)
    if found["sha256"]:
        with store.read(name) as path, safe_open(path, "numpy") as file:
            found |= dict(file.metadata())
            found["arrays"] = {n: file.get_slice(n).get_shape() for n in sorted(file.keys())}
    return found


def _file(store: Store, name: str) -> dict[str, Any]:
    if not name or not store.exists(name):
        return {"file": name or None, "sha256": None}
    with store.read(name) as path:
        return {"file": name, "sha256": file_digest(path)}


def _changes(store: Store, ledger: Ledger, asked: Asked) -> Iterator[dict[str, Any]]:
    """What the releases that are here changed about the clips of the stretch, oldest first."""
    from pipeline.release.diff import CHANGES, read_changes
    from pipeline.release.files import FOLDER

    for release in ledger.releases():
        name = f"{FOLDER}/{release.release_id}/{CHANGES}"
        if not store.exists(name):
            continue
        with store.read(name) as path, path.open(encoding="utf-8") as lines:
            for change, reason in read_changes(line for line in lines if asked.source_id in line):
                start_ms, end_ms = map(int, change.clip_id.split("-")[1:])
                if (
                    asked.end_ms is None
                    or asked.start_ms is None
                    or (start_ms < asked.end_ms and end_ms > asked.start_ms)
                ):
                    said = {"clip_id": change.clip_id, "what": change.kind, "why": reason}
                    yield {"release": release.release_id, "at": _iso(release.created_at), **said}


def _released(store: Store, release: Release, clip: ClipRow) -> dict[str, Any] | None:
    """Where the clip's row lies in the newest release."""
    from pipeline.release.files import FOLDER
    from pipeline.shards import Shard

    for entry in release.manifest["shards"]:
        place = f"{FOLDER}/{release.id}/{entry['name']}"
        if not entry["rows"] or not store.exists(place):
            continue
        with store.read(place) as path:
            row = Shard(path).find(clip.clip_id, ("group_id", "split", "lufs", "reviewed", "license"))
        if row is not None:
            return {"release": release.id, "shard": entry["name"], "sha256": entry["sha256"], **row}
    return None


def _in_short(record: Record, asked: Asked, clip: ClipRow | None, story: Mapping[str, Any]) -> str:
    """One sentence that answers the question."""
    source = record.source
    if source is None:
        return "Its rows are gone: it was taken down."
    if source.withheld:
        return f"It is in no new release: {source.withheld.replace('_', ' ')}."
    if source.state == "failed":
        last = next((a for a in reversed(record.attempts) if a.outcome == "failed"), None)
        return f"It failed ({source.error_class}){f' at {last.stage}: {last.message}' if last else ''}"
    if clip:
        at = story["released"]
        return f"It is a clip, in {at['split']} of {at['release']}." if at else "It is a clip, in no release yet."
    if not record.spans:
        return f"Nothing was decided yet; the source is {source.state}."
    fates: dict[str, float] = {}
    for span in story["spans"]:
        low = max(span["start_s"], (asked.start_ms or 0) / 1000)
        high = span["end_s"] if asked.end_ms is None else min(span["end_s"], asked.end_ms / 1000)
        fates[span["fate"]] = fates.get(span["fate"], 0.0) + high - low
    if not fates:
        return "That is not within the media that was fetched."
    parts = [f"{s:.1f} s {fate}" for fate, s in sorted(fates.items(), key=lambda item: -item[1])]
    return ("Not a clip: " if asked.start_ms is not None and "clip" not in fates else "") + ", ".join(parts) + "."


def _iso(at: datetime) -> str:
    """SQLite gives times back without their zone, which is UTC."""
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat(timespec="seconds")
