"""What the rules say of one window, and how far the thresholds would have to move for them to say the opposite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from annotated_types import Ge, Le

from pipeline.config import VerdictSettings

if TYPE_CHECKING:
    from pipeline.music import Curves, Verdict

STEPS = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0)  # shares of the way to a threshold's bound
HEARD = ("speech_min",)  # a least score at which something unwanted is heard: the higher, the more passes
FAR = 1.5  # the closeness of a window that no thresholds would turn


def thresholds() -> dict[str, bool]:
    """The settings of the verdict that are shares; True where more passes the higher it is."""
    return {
        name: name.endswith("_max") or name in HEARD
        for name, field in VerdictSettings.model_fields.items()
        if field.annotation is float and {Ge(0), Le(1)} <= set(field.metadata)
    }


def moved(settings: VerdictSettings, by: float) -> VerdictSettings:
    """All thresholds moved by a share of the way to where everything passes (`by` > 0) or nothing does (`by` < 0)."""
    changed: dict[str, Any] = {}
    for name, rises in thresholds().items():
        value = getattr(settings, name)
        changed[name] = value + abs(by) * (float(rises == (by > 0)) - value)
    return settings.model_copy(update=changed)


def reason_of(curves: Curves, verdict: Verdict, settings: VerdictSettings, start_ms: int, end_ms: int) -> str:
    """Why the rules drop a window, by themselves: the reason of most of its seconds; "" if they keep it."""
    from pipeline.music import window_reason

    reasons = Counter(verdict.reasons[curves.window(start_ms, end_ms)])
    kept = reasons.pop("", 0)
    if reasons.total() > kept:
        return reasons.most_common(1)[0][0]
    return window_reason(curves, verdict, start_ms, end_ms, settings)


class Closeness:
    """How near the windows of one source are to the other side.

    Args:
        curves: of the source.
        settings: the thresholds as they are.
    """

    def __init__(self, curves: Curves, settings: VerdictSettings) -> None:
        from pipeline.music import judge

        self.curves = curves
        self.settings = settings
        self.verdicts: Mapping[float, tuple[VerdictSettings, Verdict]] = {
            by: (shifted, judge(curves, shifted))
            for by in (0.0, *(sign * step for step in STEPS for sign in (1, -1)))
            for shifted in [moved(settings, by)]
        }

    def reason(self, start_ms: int, end_ms: int, by: float = 0.0) -> str:
        """Why the rules drop a window with the thresholds moved; "" if they keep it."""
        settings, verdict = self.verdicts[by]
        return reason_of(self.curves, verdict, settings, start_ms, end_ms)

    def of(self, start_ms: int, end_ms: int) -> float:
        """The least move of the thresholds, as a share of their way, that turns a window; `FAR` if none does."""
        kept = not self.reason(start_ms, end_ms)
        for step in STEPS:
            if any((not self.reason(start_ms, end_ms, sign * step)) != kept for sign in (1, -1)):
                return step
        return FAR
