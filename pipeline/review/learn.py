"""Thresholds under which the rules would say what people said: proposed, never applied by themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import VerdictSettings
from pipeline.errors import DvmsetError
from pipeline.review.rules import reason_of, thresholds

if TYPE_CHECKING:
    from pipeline.music import Curves
    from pipeline.process import Desk

LEAST = 10  # windows decided
GRID = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
FOLDS = 5
SWEEPS = 2


@dataclass(frozen=True)
class Proposal:
    """Thresholds learnt from people's decisions.

    Attributes:
        overrides: `verdict.field=value` of each that differs from the present ones.
        windows: decided, keep or drop, by people who don't contradict each other.
        agreed_now, agreed_then: in how many of them the rules say the same.
        agreed_held_out: the same for thresholds that were learnt without the window's source, in `FOLDS` parts.
    """

    overrides: tuple[str, ...]
    windows: int
    agreed_now: int
    agreed_then: int
    agreed_held_out: int


@dataclass(frozen=True)
class _Judged:
    curves: Curves
    source: int
    start_ms: int
    end_ms: int
    keep: bool


def learn(desk: Desk) -> Proposal:
    """Thresholds that agree with more of the decisions than the desk's.

    One threshold after the other is set to the value that agrees with most decisions, and left alone where none agrees
    with more than it does; of several such values the one in the middle is taken.

    Raises:
        DvmsetError: there are too few decisions.
    """
    judged = _judged(desk)
    if len(judged) < LEAST:
        raise DvmsetError(
            f"{len(judged)} windows are decided (keep or drop, undisputed); that is too few to learn from.",
            hint=f"Decide on at least {LEAST}: dvmset review --reviewer NAME.",
        )
    present = desk.profile.verdict
    agree = _agreeing(judged)
    everything = np.ones(len(judged), bool)
    found = _search(present, agree, everything)
    folds = np.array([_fold(w.source) for w in judged])
    held_out = 0
    for fold in np.unique(folds):
        within = folds == fold
        held_out += int(agree(_search(present, agree, ~within))[within].sum())
    before, after = (s.model_dump() for s in (present, found))
    overrides = tuple(f"verdict.{name}={after[name]:g}" for name in thresholds() if after[name] != before[name])
    return Proposal(overrides, len(judged), int(agree(present).sum()), int(agree(found).sum()), held_out)


def _judged(desk: Desk) -> list[_Judged]:
    """The windows on which people's last words don't contradict each other."""
    last = {(r.reviewer, r.window_id): r for r in desk.ledger.reviews()}
    said: dict[str, set[str]] = {}
    for (_, window_id), review in last.items():
        said.setdefault(window_id, set()).add(review.decision)
    places = {r.window_id: (r.source_id, r.start_ms, r.end_ms) for r in last.values()}
    held: dict[str, Curves] = {}
    found = []
    for window_id, decisions in sorted(said.items()):
        plain = decisions & {"keep", "drop"}
        if len(plain) != 1:
            continue
        source_id, start, end = places[window_id]
        if source_id not in held:
            source, media = desk.ledger.source(source_id), desk.ledger.media(source_id)
            if media is None or not desk.store.exists(desk.files.curves(source, media)):
                continue
            held[source_id] = desk.files.read_curves(source, media)
        found.append(_Judged(held[source_id], int(source_id, 16), start, end, plain == {"keep"}))
    return found


def _agreeing(judged: Sequence[_Judged]) -> Callable[[VerdictSettings], np.ndarray]:
    """A function that tells, [n] bool, with which decisions the rules under some settings agree; it remembers."""
    from pipeline.music import judge

    known: dict[VerdictSettings, np.ndarray] = {}

    def agree(settings: VerdictSettings) -> np.ndarray:
        if settings not in known:
            verdicts = {id(w.curves): judge(w.curves, settings) for w in {id(w.curves): w for w in judged}.values()}
            reasons = [reason_of(w.curves, verdicts[id(w.curves)], settings, w.start_ms, w.end_ms) for w in judged]
            known[settings] = np.array([(not r) == w.keep for r, w in zip(reasons, judged, strict=True)], bool)
        return known[settings]

    return agree


def _search(
    present: VerdictSettings, agree: Callable[[VerdictSettings], np.ndarray], counted: np.ndarray
) -> VerdictSettings:
    """Coordinate ascent over `GRID` on the number of decisions agreed with; `counted` says which decisions count."""
    best, score = present, int(agree(present)[counted].sum())
    for _ in range(SWEEPS):
        began = score
        for name in thresholds():
            tried = {value: best.model_copy(update={name: value}) for value in GRID}
            scores = {value: int(agree(settings)[counted].sum()) for value, settings in tried.items()}
            most = max(scores.values())
            if most > score:
                equal = [value for value in GRID if scores[value] == most]
                best, score = tried[equal[len(equal) // 2]], most
        if score == began:
            break
    return best


def _fold(source: int) -> int:
    return hashlib.sha256(source.to_bytes(8)).digest()[0] % FOLDS
