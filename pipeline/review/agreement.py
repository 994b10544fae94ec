"""How far people agree with each other and with the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from pipeline.ledger import ReviewRow

RULES = "the rules"


@dataclass(frozen=True)
class Agreement:
    """Two judges over the windows that both have judged.

    Attributes:
        windows: how many there are.
        agreed: in how many they say the same.
        kappa: Cohen's; None where it isn't defined, because both say but one and the same thing, or there is no window.
    """

    first: str
    second: str
    windows: int
    agreed: int
    kappa: float | None


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement beyond chance: (p_o - p_e) / (1 - p_e), nominal categories (Cohen 1960, Educ. Psychol. Meas. 20).

    p_o is the share of pairs that are equal, p_e what it would be if each judge drew from their own shares at random.
    None where p_e is 1, or there is no pair.
    """
    n = len(pairs)
    if not n:
        return None
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(first[name] * second[name] for name in first)
    if by_chance == n * n:
        return None
    agreed = sum(a == b for a, b in pairs)
    return (agreed * n - by_chance) / (n * n - by_chance)


def agreements(reviews: Iterable[ReviewRow]) -> list[Agreement]:
    """Each two people, in keep, drop, unsure and split; then each person and the rules, in keep and drop alone.

    Args:
        reviews: that stand, oldest first; of several of one person on one window the last counts. The rules say what
            they said when it was given.
    """
    said: dict[str, dict[str, ReviewRow]] = {}
    for review in reviews:
        said.setdefault(review.reviewer, {})[review.window_id] = review
    found = []
    for a, b in combinations(sorted(said), 2):
        both = sorted(said[a].keys() & said[b].keys())
        found.append(_agreement(a, b, [(said[a][w].decision, said[b][w].decision) for w in both]))
    for name in sorted(said):
        plain = [r for r in said[name].values() if r.decision in ("keep", "drop")]
        found.append(_agreement(name, RULES, [(r.decision, "drop" if r.rules else "keep") for r in plain]))
    return found


def _agreement(first: str, second: str, pairs: Sequence[tuple[str, str]]) -> Agreement:
    kappa = cohens_kappa(pairs)
    rounded = None if kappa is None else round(kappa, 4)
    return Agreement(first, second, len(pairs), sum(a == b for a, b in pairs), rounded)


def counts(reviews: Iterable[ReviewRow]) -> dict[str, dict[str, int]]:
    """For each person, how many windows they decided in each way; the last word on a window counts."""
    last = {(review.reviewer, review.window_id): review.decision for review in reviews}
    found: dict[str, Counter[str]] = {}
    for (reviewer, _), decision in sorted(last.items()):
        found.setdefault(reviewer, Counter())[decision] += 1
    return {reviewer: dict(decided.most_common()) for reviewer, decided in found.items()}
