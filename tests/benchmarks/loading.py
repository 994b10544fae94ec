"""How fast the loader is: `python -m tests.benchmarks.loading [RELEASE] [--json] [--rows N] [--steps N]`.

Apart from training: rows of 30 s at the paper's widths (63 KB each, random numbers), shuffled, checksums verified,
cropped and batched as for training, from the page cache; best of some rounds, since other work on the machine only
slows one down. In training: the share of preset nano's steps that is spent waiting for data, from the first step on; on
RELEASE, which has to be of the nano profile, or else on a made-up one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from model.data import Clips, Loader
from model.settings import load_preset
from model.train import Job, train
from pipeline.shards import write_shard
from tests.benchmarks.shards import SHARDS, WIDE, _rows
from tests.model.releases import toy_release

BATCH = 16  # clips


def rows_per_second(folder: Path, rows: int, rounds: int) -> int:
    """Of the loader alone, over whole epochs."""
    paths = []
    for shard in range(SHARDS):
        paths.append(folder / f"train-{shard:05d}-of-{SHARDS:05d}.parquet")
        write_shard(paths[-1], _rows(f"shard {shard}", rows // SHARDS), WIDE)
    loader = Loader(Clips(paths, crop_s=30, reduction="patch_distance"), BATCH, seed=0)
    stream = iter(loader)
    next(stream)  # the first buffer is on its way
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        for batch in islice(stream, rows // BATCH):
            assert batch.codes.shape == (BATCH, 4, 1500)
        best = min(best, time.perf_counter() - began)
    stream.close()
    return round(rows // BATCH * BATCH / best)


def waiting(folder: Path, steps: int, release: Path | None = None) -> dict[str, Any]:
    """Of a training run of preset nano, in a folder."""
    settings = [f"train.{n}={steps}" for n in ("steps", "log_every", "eval_every", "save_every")]
    release = release or toy_release(folder, sources=200, spans=((0, 30_000), (30_000, 60_000)))
    train(Job(release, load_preset("nano", (*settings, "train.eval_clips=1")), 1, folder / "run"))
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    found = next(line for line in lines if line["kind"] == "train")
    return {name: found[name] for name in ("waiting_share", "tokens_per_s")}


def main() -> None:
    """Prints the figures: as one JSON object with `--json`, else in words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", nargs="?", type=Path, metavar="RELEASE", help="folder of a release to train on")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=int, default=8000, help="rows written and read")
    parser.add_argument("--rounds", type=int, default=5, help="times they are read; the best counts")
    parser.add_argument("--steps", type=int, default=20, help="steps that are trained")
    arguments = parser.parse_args()
    if arguments.rows < 2 * BATCH * SHARDS:
        parser.error(f"--rows must be at least {2 * BATCH * SHARDS}")
    with tempfile.TemporaryDirectory() as folder:
        alone = rows_per_second(Path(folder), arguments.rows // SHARDS * SHARDS, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        shares = waiting(Path(folder), arguments.steps, arguments.release)
    figures = {
        "rows_per_s": alone,
        **shares,
        "steps": arguments.steps,
        "release": arguments.release.name if arguments.release else None,
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"loader alone: {alone:,} rows of 30 s a second")
    on = f" on {figures['release']}" if figures["release"] else ""
    print(f"training nano{on}: {figures['waiting_share']:.2%} of the time spent waiting for data")
    print(f"               {figures['tokens_per_s']:,.0f} tokens/s")


if __name__ == "__main__":
    main()
