"""One person's way through the windows of a data folder."""

from __future__ import annotations

import threading
from typing import Any

from pipeline.errors import DvmsetError
from pipeline.ledger import ReviewRow
from pipeline.process import Desk
from pipeline.reasons import COLOURS, CURVES
from pipeline.review.agreement import agreements
from pipeline.review.view import view
from pipeline.review.windows import Window, halves, windows

DECISIONS = ("keep", "drop", "unsure", "split")
LEAST_MS = 1_000  # of either part of a split


class Session:
    """What the page asks for and says; safe to use from several threads.

    Args:
        desk: of the data folder, with the profile that made the newest release.
        reviewer: whose decisions these are.
        sources, dropped: see `windows`.

    Raises:
        DvmsetError: there is nothing to review.
    """

    def __init__(self, desk: Desk, reviewer: str, *, sources: int, dropped: int) -> None:
        self.desk = desk
        self.reviewer = reviewer
        self.lock = threading.Lock()
        self.found = windows(desk, sources=sources, dropped=dropped)
        self.parts: dict[int, list[Window]] = {}  # of a split, by its id
        if not self.found:
            raise DvmsetError(
                f"{desk.store} has nothing to review: no source is ready that was listened to by this version.",
                hint="Run `dvmset build` first.",
            )

    def queue(self) -> dict[str, Any]:
        """All windows in order with this person's decisions, who agrees with whom, and the colours of reasons."""
        with self.lock:
            mine = self._mine()
            decisions = {review.window_id: review.decision for review in mine}
            listed = [
                {
                    "window_id": window.window_id,
                    "seconds": (window.end_ms - window.start_ms) / 1000,
                    "closeness": window.closeness,
                    "decision": decisions.get(window.window_id),
                }
                for window in self._listed(mine).values()
            ]
            last = mine[-1].window_id if mine else None
        said = {"reviewer": self.reviewer, "windows": listed, "last": last, "agreement": self.agreement()}
        return said | {"colours": COLOURS, "curves": CURVES}

    def view(self, window_id: str) -> dict[str, Any]:
        """All that is to be seen of a window; KeyError if there is none of that name."""
        return view(self.desk, self.window(window_id))

    def window(self, window_id: str) -> Window:
        """The window of that name; KeyError if there is none."""
        with self.lock:
            return self._listed(self._mine())[window_id]

    def decide(self, window_id: str, decision: str, split_s: float | None = None) -> dict[str, Any]:
        """Writes a decision down; returns the queue.

        Args:
            decision: one of `DECISIONS`.
            split_s: where one piece of music ends and the next begins, for `split`; seconds of the media.

        Raises:
            KeyError: no such window.
            DvmsetError: no such decision, or a split that isn't within the window.
        """
        window = self.window(window_id)
        if decision not in DECISIONS:
            raise DvmsetError(f"There is no decision {decision!r}.", hint=f"Use one of {', '.join(DECISIONS)}.")
        split_ms = round((split_s or 0.0) * 1000) if decision == "split" else None
        if split_ms is not None and not window.start_ms + LEAST_MS <= split_ms <= window.end_ms - LEAST_MS:
            raise DvmsetError("A split must leave at least a second on either side.", hint="Move the cursor inwards.")
        media = self.desk.ledger.media(window.source_id)
        assert media is not None
        review = ReviewRow(
            source_id=window.source_id,
            sha256=media.sha256,
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            decision=decision,
            split_ms=split_ms,
            rules=window.rules,
            reviewer=self.reviewer,
        )
        self.desk.ledger.add_review(review)
        return self.queue()

    def undo(self) -> dict[str, Any]:
        """Takes this person's last decision back; returns the queue, and the window it was on if there was one."""
        undone = self.desk.ledger.undo_review(self.reviewer)
        return {**self.queue(), "undone": undone.window_id if undone else None}

    def agreement(self) -> list[dict[str, Any]]:
        """Cohen's kappa of each two people, and of each person and the rules."""
        return [vars(found) for found in agreements(self.desk.ledger.reviews())]

    def _mine(self) -> list[ReviewRow]:
        return [review for review in self.desk.ledger.reviews() if review.reviewer == self.reviewer]

    def _listed(self, mine: list[ReviewRow]) -> dict[str, Window]:
        """The windows by name, in order; the parts of one that was split come right behind it."""
        listed = {window.window_id: window for window in self.found}
        for review in mine:
            if review.split_ms is None:
                continue
            if review.id not in self.parts:
                self.parts[review.id] = halves(self.desk, review)
            parts = {window.window_id: window for window in self.parts[review.id]}
            behind: dict[str, Window] = {}
            for name, window in listed.items():
                behind[name] = window
                if name == review.window_id:
                    behind |= parts
            listed = parts | behind if review.window_id not in behind else behind
        return listed
