"""The rhythm study's command: `python -m model.nano.rhythm_study [--quick]`.

Makes the benchmark set, trains all variants, composes for the held-out videos, scores the music and writes one table.
Every piece is kept in the work folder; the command goes on where it was stopped. With `--only VARIANT ...`, rows of
those variants take their place in the table that is in `--out`; `--draw` makes its page and plot anew.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from model.nano.study import VARIANTS, Study, Values, full_study, quick_study, table
from model.nano.study.benchmark import MUSIC, Music, parts, write_release
from model.nano.study.pieces import make_all, makers
from model.nano.study.videos import footage
from pipeline.storage import Store
from pipeline.vision import load_vision

CARDS = Path(__file__).parents[2] / "data_cards"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny, on random weights: shows only that it runs")
    parser.add_argument("--work", type=Path, default=Path("runs/rhythm_study"), help="folder of all pieces")
    parser.add_argument("--out", type=Path, help="folder of the table; data_cards, if it is the whole one")
    parser.add_argument("--jobs", type=int, default=2, help="pieces made at a time, of one thread each")
    names = [variant.name for variant in VARIANTS if not variant.origin]
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="variants wanted; by default all")
    parser.add_argument("--draw", action="store_true", help="do nothing but the page and plot of the table in --out")
    options = parser.parse_args()
    console = Console()
    began = time.monotonic()

    def tell(line: str) -> None:
        console.print(f"{time.monotonic() - began:7.0f} s  {line}", highlight=False)

    study = quick_study() if options.quick else full_study()
    study = replace(study, only=tuple(options.only))
    values = {} if options.draw else run(study, options.work, options.jobs, tell)
    out = options.out or (options.work if options.quick or options.only else CARDS)
    table.write(out, study, values, shlex.join(["python", "-m", "model.nano.rhythm_study", *sys.argv[1:]]))
    for name, metrics in table.table_of(values).items():
        found = metrics[table.MAIN]
        tell(f"{name:24} {table.SHOWN[table.MAIN]} {found.mean:.3f} ({found.low:.3f} to {found.high:.3f})")
    tell(f"{out / table.NAME}.md")


def run(study: Study, folder: Path, jobs: int, tell: Callable[[str], None]) -> Values:
    """Does the whole study, or what is left of it.

    Args:
        study: its size and settings.
        folder: of all pieces.
        jobs: pieces made at a time.
        tell: is given a line for each piece.

    Returns:
        Variant -> metric -> [seeds, videos].
    """
    torch.set_num_threads(1)
    work = Store(folder)
    with makers(jobs) as pool:
        releases = benchmark_set(study, work, pool, tell)
        chosen = [(variant, seed) for variant, seeds in study.variants() for seed in range(seeds)]
        stages = [study.runs(variant, seed, releases) for variant, seed in chosen]
        for stage in (0, 1):
            make_all(dict.fromkeys(runs[stage] for runs in stages if len(runs) > stage), work, pool, tell)
        scores = {(variant.name, seed): study.score(variant, seed, releases) for variant, seed in chosen}
        make_all([s.of for s in scores.values() if not isinstance(s.of, str)], work, pool, tell)
        make_all(scores.values(), work, pool, tell)
    found: Values = {}
    for variant, seeds in study.variants():
        of_seeds = [scores[variant.name, seed].values(work) for seed in range(1 if variant.origin else seeds)]
        found[variant.name] = {metric: np.stack([s[metric] for s in of_seeds]) for metric in of_seeds[0]}
    return found


def benchmark_set(
    study: Study, work: Store, pool: ProcessPoolExecutor | None, tell: Callable[[str], None]
) -> dict[Music, Path]:
    """The release folder with either kind of music, made if need be."""
    size, profile = study.size, study.profile
    for span in (size.train_s, size.test_s):  # first, so that no two pieces decode the same
        footage(work, span, load_vision(profile.vision).size)
    make_all(parts(size, profile), work, pool, tell)
    return {music: write_release(work, size, profile, music) for music in MUSIC}


if __name__ == "__main__":
    main()
