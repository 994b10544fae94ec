"""How many rows a second shards give: `python -m tests.benchmarks.shards [--json] [--rows N]`.

Rows of 30 s at the paper's widths (30x768 float16, 3 x 750 float16, 4x1500 int16: 63 KB each) filled with random
numbers, written to a temporary folder and read from the page cache: every column, page checksums verified, arrays built
for each row. Sequentially and shuffled; best of some rounds each, since other work on the machine only slows one down.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.clips import clip_id
from pipeline.shards import Row, read_rows, shuffled_rows, write_shard
from tests.rows import SPEC, make_row

WIDE = dataclasses.replace(SPEC, vision_dim=768, cardinality=2048)
SHARDS = 4


def measure(rows: int, folder: Path, *, rounds: int = 5) -> dict[str, Any]:
    """Writes `rows` rows to `folder` and reads them back; rates in rows per second."""
    began = time.perf_counter()
    paths = []
    for shard in range(SHARDS):
        paths.append(folder / f"train-{shard:05d}-of-{SHARDS:05d}.parquet")
        write_shard(paths[-1], _rows(f"shard {shard}", rows // SHARDS), WIDE)
    written = time.perf_counter() - began
    return {
        "rows_per_s": {
            "sequential": _rate(lambda: read_rows(paths), rows, rounds),
            "shuffled": _rate(lambda: shuffled_rows(paths, seed=0), rows, rounds),
        },
        "written_per_s": round(rows / written),
        "rows": rows,
        "mb": round(sum(path.stat().st_size for path in paths) / 1e6),
    }


def _rows(source: str, count: int) -> Iterator[Row]:
    """Clips of one source, 30 s each; the noise is drawn once and shifted for each clip."""
    draw = np.random.default_rng(0)
    noise = {
        "clip_global": draw.standard_normal((30 + count, WIDE.vision_dim), np.float32).astype(np.float16),
        "codes": draw.integers(0, WIDE.cardinality, (4, 1500 + count), np.int16),
    }
    first = make_row(source, 0, 30_000, spec=WIDE)
    for i in range(count):
        start_s = 30.0 * i
        yield dataclasses.replace(
            first,
            clip_id=clip_id(first.source_id, 30_000 * i, 30_000 * (i + 1)),
            start_s=start_s,
            end_s=start_s + 30.0,
            clip_global=noise["clip_global"][i : i + 30],
            codes=noise["codes"][:, i : i + 1500],
        )


def _rate(read: Callable[[], Iterable[dict[str, Any]]], rows: int, rounds: int) -> int:
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        count = sum(row["codes"].shape == (4, 1500) and row["clip_global"].shape == (30, 768) for row in read())
        best = min(best, time.perf_counter() - began)
        assert count == rows
    return round(rows / best)


def main() -> None:
    """Prints the rates: as one JSON object with `--json`, else in words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=int, default=12_000, help="rows written and read")
    arguments = parser.parse_args()
    if arguments.rows < SHARDS:
        parser.error(f"--rows must be at least {SHARDS}")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.rows // SHARDS * SHARDS, Path(folder))
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"{figures['rows']} rows of 30 s, {figures['mb']} MB, written at {figures['written_per_s']:,} rows/s")
    for order, rate in figures["rows_per_s"].items():
        print(f"{order:>10}: {rate:,} rows/s")


if __name__ == "__main__":
    main()
