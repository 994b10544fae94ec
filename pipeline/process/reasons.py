"""Why clips came or went between two releases, as the ledger tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipeline.ledger import Ledger, Story

if TYPE_CHECKING:
    from pipeline.release.diff import Change, Explain

_WITHHELD = {"removed": "removed from the list", "gone": "gone upstream", "taken_down": "taken down"}
_CAME = {
    "added": "new in the list",
    "restored": "back in the list",
    "returned": "back upstream",
    "changed": "changed upstream",
    "relabelled": "changed in the list",
    "reviewed": "reviewed by a person",
}


def reasons_since(ledger: Ledger, release_id: str, *, same_settings: bool) -> Explain:
    """Explains changes by what happened since a release.

    Args:
        release_id: the parent.
        same_settings: whether it was made under the present ones; else they are the reason where there is no other.
    """
    return partial(_explain, ledger, ledger.release_known(release_id), same_settings)


def _explain(ledger: Ledger, since: int, same_settings: bool, changes: Sequence[Change]) -> Mapping[str, str]:
    stories = ledger.stories((change.source_id for change in changes), since)
    return {change.clip_id: _reason(change, stories[change.source_id], same_settings) for change in changes}


def _reason(change: Change, story: Story, same_settings: bool) -> str:
    if change.kind == "removed":
        return _why_gone(change, story, same_settings)
    happened = [_CAME[kind] for kind in story.events if kind in _CAME]
    if change.kind == "relabelled":
        told = [_CAME[kind] for kind in ("relabelled", "reviewed") if kind in story.events]
        quiet = "another group, title or channel"
        return told[0] if told else quiet if same_settings else f"{quiet}, or another split under other settings"
    if happened:
        return happened[-1]
    return "a later try" if same_settings and change.kind == "added" else "computed anew under other settings"


def _why_gone(change: Change, story: Story, same_settings: bool) -> str:
    if not story.state:
        return _WITHHELD["taken_down"]
    if story.withheld:
        return _WITHHELD[story.withheld]
    if story.state == "failed":
        return f"failed: {story.error_class}"
    if "changed" in story.events:
        return _CAME["changed"]
    start_ms, end_ms = map(int, change.clip_id.split("-")[1:])
    overlaps: dict[str, int] = {}
    for a, b, reason in story.spans:
        if (common := min(b, end_ms) - max(a, start_ms)) > 0:
            overlaps[reason] = overlaps.get(reason, 0) + common
    most = max(overlaps, key=lambda reason: overlaps[reason], default="")
    if most:
        return f"dropped: {most}"
    if "reviewed" in story.events:
        return "cut elsewhere since it was reviewed"
    return "cut elsewhere" if same_settings else "cut elsewhere under other settings"
