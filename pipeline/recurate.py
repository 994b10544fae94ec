"""What other settings, or people's decisions, would do to the newest release: from stored curves, with no model run.

Nothing is written here. A build under those settings does what this foretells, in the same way: `process.decide`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.clips import clip_id
from pipeline.config import Profile, nested, settings_of
from pipeline.errors import DvmsetError, SettingsError
from pipeline.ledger import DUPLICATE, ClipRow, Funnel, MediaRow, SourceRow
from pipeline.process import Desk, decide
from pipeline.release import Release, latest_release
from pipeline.review import ruling_of
from pipeline.storage import Store

GROUPS = ("verdict", "clips", "sync")  # settings that are applied to stored curves


@dataclass(frozen=True)
class ClipChange:
    """A clip that would come or go.

    Attributes:
        why: for one that goes, why its seconds are dropped, or that they are cut elsewhere; for one that comes, why
            they were dropped until now.
        lacks: whether its features or tokens would have to be computed, from media that may have to be fetched again.
    """

    kind: Literal["added", "removed"]
    clip_id: str
    source_id: str
    url: str
    seconds: float
    why: str
    lacks: bool = False


@dataclass
class Outlook:
    """The newest release now and then.

    Attributes:
        release_id: of the release.
        now, then: seconds by fate; of the sources that are ready.
        clips_now, clips_then: numbers of clips.
        changes: clips that would come or go, source by source in list order.
        sources: how many were decided on anew; unread: those without stored curves, which stay as they are.
    """

    release_id: str
    now: Funnel = field(default_factory=Funnel)
    then: Funnel = field(default_factory=Funnel)
    clips_now: int = 0
    clips_then: int = 0
    changes: list[ClipChange] = field(default_factory=list)
    sources: int = 0
    unread: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain values; seconds with millisecond precision."""
        return {
            "release": self.release_id,
            "now": {"clips": self.clips_now, **self.now.as_seconds()},
            "then": {"clips": self.clips_then, **self.then.as_seconds()},
            "changes": [vars(change) for change in self.changes],
            "sources": self.sources,
            "unread": self.unread,
        }


def full_name(override: str) -> str:
    """`voice_ratio_max=0.1` -> `verdict.voice_ratio_max=0.1`: the group may be left out.

    Raises:
        SettingsError: a setting that only a build can change.
    """
    name, sign, value = override.partition("=")
    name = name.strip()
    group, dot, _ = name.partition(".")
    if not dot:
        found = [g for g in GROUPS if name in Profile.model_fields[g].annotation.model_fields]  # type: ignore[union-attr]
        return f"{found[0]}.{name}{sign}{value}" if found else f"verdict.{name}{sign}{value}"
    if group not in GROUPS:
        raise SettingsError(
            f"{name} changes more than verdicts and clips, so stored curves can't tell what it would do.",
            hint=f"Use settings of {', '.join(GROUPS)} here; `dvmset build --set {override}` takes all.",
        )
    return override


def release_profile(store: Store, overrides: Iterable[str] = ()) -> Profile:
    """The settings of the newest release, with others on top.

    Args:
        overrides: `field=value` or `group.field=value`, of `GROUPS`.

    Raises:
        DvmsetError: there is no release, or it was made by another version, with other settings.
        SettingsError: a setting that isn't known, or not of `GROUPS`.
    """
    layers = [nested(full_name(override)) for override in overrides]
    release = _newest(store)
    values = release.manifest["settings"]["values"]
    try:
        settings_of(Profile, values, (), where=f"release {release.id}")
    except SettingsError as error:
        raise DvmsetError(
            f"The newest release was made by another version of dvmset. {error.message}",
            hint="Run `dvmset build` first: it makes one under settings that this version knows.",
        ) from error
    return settings_of(Profile, values, layers, where="--set")


def foretell(desk: Desk) -> Outlook:
    """What a build under the desk's settings would make of the newest release, people's decisions included.

    Raises:
        DvmsetError: there is no release.
    """
    outlook = Outlook(_newest(desk.store).id)
    for source in desk.ledger.sources():
        media = desk.ledger.media(source.source_id)
        if source.state == "ready" and not source.withheld and media is not None:
            _foretell(desk, source, media, outlook)
    return outlook


def _newest(store: Store) -> Release:
    release = latest_release(store)
    if release is None:
        raise DvmsetError(f"{store} has no release yet.", hint="Run `dvmset build` first.")
    return release


def _foretell(desk: Desk, source: SourceRow, media: MediaRow, outlook: Outlook) -> None:
    before = [(s.start_ms, s.end_ms, s.reason) for s in desk.ledger.spans(source.source_id)]
    after = before
    if not any(reason == DUPLICATE for _, _, reason in before) and media.has_video and media.has_audio:
        if desk.store.exists(desk.files.curves(source, media)) and desk.store.exists(desk.files.shots(media)):
            curves, cuts = desk.files.read_curves(source, media), desk.files.read_cuts(media)
            ruling = ruling_of(desk.ledger.reviews(source.source_id))
            offset_ms = media.details["av_offset_ms"]
            decision = decide(
                desk.profile, media.duration_ms, media.has_video, cuts, curves, ruling, av_offset_ms=offset_ms
            )
            spans = decision.spans
            after = [(s.start_ms, s.end_ms, s.reason) for s in spans]
            outlook.sources += 1
        else:
            outlook.unread += 1
    outlook.clips_now += _count(outlook.now, before)
    outlook.clips_then += _count(outlook.then, after)
    outlook.changes += _changes(desk, source, media, before, after)


Spans = Sequence[tuple[int, int, str]]


def _count(funnel: Funnel, spans: Spans) -> int:
    """Adds spans up; returns how many are clips."""
    for start, end, reason in spans:
        funnel.fetched_ms += end - start
        if reason:
            funnel.dropped_ms[reason] = funnel.dropped_ms.get(reason, 0) + end - start
        else:
            funnel.kept_ms += end - start
    return sum(not reason for _, _, reason in spans)


def _changes(desk: Desk, source: SourceRow, media: MediaRow, before: Spans, after: Spans) -> list[ClipChange]:
    were, will = ({(a, b) for a, b, reason in spans if not reason} for spans in (before, after))
    found = []
    for start, end in sorted(were ^ will):
        name = clip_id(source.source_id, start, end)
        place = (name, source.source_id, source.url, (end - start) / 1000)
        if (start, end) in were:
            most = _reason(after, start, end)
            found.append(ClipChange("removed", *place, f"dropped: {most}" if most else _elsewhere(after, start, end)))
        else:
            most = _reason(before, start, end)
            clip = ClipRow(clip_id=name, source_id=source.source_id, start_ms=start, end_ms=end)
            files = (desk.files.vision(media, clip), desk.files.codes(source, media, clip))
            lacks = not all(desk.store.exists(file) for file in files)
            found.append(ClipChange("added", *place, f"was dropped: {most}" if most else "was cut elsewhere", lacks))
    return found


def _reason(spans: Spans, start_ms: int, end_ms: int) -> str:
    """The fate of most of a window's milliseconds: a reason, or "" where they are in clips."""
    shares = _shares(spans, start_ms, end_ms)
    return max(shares, key=lambda reason: shares[reason], default="")


def _elsewhere(spans: Spans, start_ms: int, end_ms: int) -> str:
    """Where most of a clip goes into other clips: what of it is dropped."""
    shares = _shares(spans, start_ms, end_ms)
    del shares[""]
    lost = [f"{ms / 1000:.1f} s dropped: {reason}" for reason, ms in shares.most_common()]
    return ", ".join(["cut elsewhere", *lost])


def _shares(spans: Spans, start_ms: int, end_ms: int) -> Counter[str]:
    shares: Counter[str] = Counter()
    for a, b, reason in spans:
        if (common := min(b, end_ms) - max(a, start_ms)) > 0:
            shares[reason] += common
    return shares
