"""How many re-uploads are found again, and what unrelated videos are taken for one another.

python -m tests.truth.duplicates
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from pipeline.config import ReleaseSettings
from pipeline.fingerprint import KINDS, Catalogue, Codes, Groups, Leakage, Pair, leakage
from pipeline.release import split_of
from pipeline.storage import Store
from tests.truth import reencodes
from tests.truth.card import show, table

SETTINGS = ReleaseSettings(validation_share=0.1, test_share=0.1)
FILM_S = (36, 96, 150, 216, 288, 360)  # where the film's originals begin
MADE = (1, 2)  # seeds of the made ones


@dataclass(frozen=True)
class Found:
    """What came of a set of sources.

    Attributes:
        pairs: all that share anything, by their names.
    """

    pairs: dict[frozenset[str], Pair]
    seconds: float
    sources: int

    def joined(self, one: str, other: str) -> bool:
        """Whether two sources are taken for one work."""
        pair = self.pairs.get(frozenset((one, other)))
        return pair is not None and pair.joins(SETTINGS.shared_s)


def source_id(name: str) -> str:
    """An id as a source's."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def find(sources: dict[str, dict[str, Codes]], folder: Path, batches: int = 4) -> Found:
    """Brings sources into the index of a data folder, in a few goes as refreshes would, and gathers what they share."""
    store, names = Store(folder), {source_id(name): name for name in sources}
    seconds = dict.fromkeys(KINDS, 0.0)
    shared: dict[frozenset[str], dict[str, float]] = {}
    for kind in KINDS:
        files = {}
        for name, codes in sources.items():
            files[name] = f"fingerprints/{source_id(name)}-{kind}.npz"
            with store.write(files[name]) as path:
                codes[kind].to_file(path)
        began = time.perf_counter()
        for batch in range(batches):
            for _, found in Catalogue(store, kind).take(list(files.values())[batch::batches]):
                for stretch in found:
                    pair = frozenset((names[stretch.source_id], names[stretch.other_id]))
                    lengths = shared.setdefault(pair, dict.fromkeys(KINDS, 0.0))
                    lengths[kind] += stretch.match.seconds
        seconds[kind] = time.perf_counter() - began
    pairs = {pair: Pair(*sorted(pair), lengths["sound"], lengths["picture"]) for pair, lengths in shared.items()}
    return Found(pairs, sum(seconds.values()), len(sources))


def recall(found: Found, copies: dict[str, tuple[str, str]]) -> list[tuple[str, int, int, int, int]]:
    """Per kind of re-encode: its name, copies, those joined with their original, by sound alone, by picture alone."""
    rows = []
    for kind in dict.fromkeys(kind for _, kind in copies.values()):
        mine = [found.pairs.get(frozenset((copy, of))) for copy, (of, k) in copies.items() if k == kind]
        counts = [
            sum(p is not None and test(p) >= SETTINGS.shared_s for p in mine)
            for test in (_either, lambda p: p.sound_s, lambda p: p.picture_s)
        ]
        rows.append((kind, len(mine), *counts))
    return rows


def leaks(found: Found, sources: Sequence[str]) -> tuple[Leakage, Leakage]:
    """What splits by group tear apart, and what splits by source id would have."""
    groups = Groups()
    for name in sources:
        groups.add(name)
    joined = [pair for pair in found.pairs.values() if pair.joins(SETTINGS.shared_s)]
    for pair in joined:
        groups.join(pair.first, pair.second)
    by_group = leakage(joined, lambda name: split_of(groups.id(name), SETTINGS))
    return by_group, leakage(joined, lambda name: split_of(source_id(name), SETTINGS))


def interval(hits: int, of: int) -> str:
    """The Wilson 95 % interval of a share."""
    if not of:
        return ""
    z, p = 1.96, hits / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return f"{max(0.0, (middle - half) / (1 + z * z / of)):.3f} to {min(1.0, (middle + half) / (1 + z * z / of)):.3f}"


def originals(folder: Path, film_s: Sequence[float], made: Sequence[int]) -> dict[str, Path]:
    """Videos to be uploaded again."""
    found = {f"original {s:g} s": reencodes.film_excerpt(folder / f"film{s:g}.mp4", s) for s in film_s}
    return found | {f"original made {seed}": reencodes.made_video(folder / f"made{seed}.mp4", seed) for seed in made}


def make_set(
    folder: Path, film_s: Sequence[float], made: Sequence[int], kinds: Sequence[str]
) -> tuple[dict[str, dict[str, Codes]], dict[str, tuple[str, str]]]:
    """(fingerprints by name, copies: name to (original, kind))."""
    sources, copies = {}, {}
    for name, path in originals(folder, film_s, made).items():
        sources[name] = reencodes.fingerprints(path)
        for kind in kinds:
            copy = reencodes.reencode(path, kind, folder)
            copies[f"{name}, {kind}"] = name, kind
            sources[f"{name}, {kind}"] = reencodes.fingerprints(copy)
            copy.unlink()
    return sources, copies


def _either(pair: Pair) -> float:
    return max(pair.sound_s, pair.picture_s)


def main() -> None:
    """Measures and writes the card's tables."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources, copies = make_set(folder, FILM_S, MADE, list(reencodes.REENCODES))
        others = dict(reencodes.unrelated(500, list(FILM_S)))
        found = find(sources | others, folder / "data")
    show("duplicates", *_report(found, sources, copies, others))


def _report(found: Found, sources: dict, copies: dict, others: dict) -> list[Table | str]:
    rows = recall(found, copies)
    first = table(
        "Re-uploads joined with their original", "what was done", "copies", "joined", "by sound", "by picture"
    )
    for kind, count, *joined in rows:
        first.add_row(kind, str(count), *map(str, joined))
    hits, of = sum(row[2] for row in rows), sum(row[1] for row in rows)
    family = {name: copies[name][0] if name in copies else name for name in [*sources, *others]}
    wrong = [p for p in found.pairs.values() if family[p.first] != family[p.second] and p.joins(SETTINGS.shared_s)]
    by_group, by_id = leaks(found, [*sources, *others])
    second = table("All together", "what", "measured")
    second.add_row("recall over all re-uploads", f"{hits / of:.3f} ({hits} of {of}; 95 % {interval(hits, of)})")
    second.add_row(f"pairs joined wrongly, {len(others)} unrelated videos among them", str(len(wrong)))
    second.add_row("joined pairs whose splits differ, split by group", f"{by_group.apart} of {by_group.pairs}")
    second.add_row(
        "... split by source id", f"{by_id.apart} of {by_id.pairs}, {by_id.apart_s / 60:.1f} minutes of shared media"
    )
    second.add_row("index and look-up, per source", f"{1000 * found.seconds / found.sources:.0f} ms")
    return [first, second, *(f"Joined wrongly: {p.first} and {p.second} ({p.kind})." for p in wrong[:9])]


if __name__ == "__main__":
    main()
