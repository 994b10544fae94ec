"""Three readers of the same rows, timed in one run: `python -m tests.benchmarks.readers [--json] [--rows N]`.

Rows of 30 s at the paper's widths (63 KB each, random numbers) lie on disk as shards, as a prepared Arrow cache of
Hugging Face's `datasets`, and as `webdataset`'s tar files. Each reader gives every row as a dict of all columns, arrays
as numpy arrays in their shapes; all read from the page cache. `datasets` is timed in all its ways, the fastest of which
counts: memory-mapped, as an iterable over that, and streaming the Parquet files. Its binary cells are looked at by
`numpy.frombuffer`, since its own `with_format("numpy")` takes several times as long. Page checksums are verified by
ours only; the others have none. Readers take turns, and the best round of each counts, since other work on the machine
only slows one down.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import webdataset

from pipeline.shards import Shard, read_rows, shuffled_rows, write_shard
from pipeline.shards.schema import BLOBS, LISTS
from tests.benchmarks.shards import SHARDS, WIDE, _rows

BUFFER = 1024  # rows in a shuffle buffer, ours and theirs
Read = Callable[[], Iterable[dict[str, Any]]]


def readers(folder: Path, rows: int) -> dict[str, dict[str, Read]]:
    """Writes the rows in each layout; gives ways to read them, by order and name."""
    shards = [folder / f"train-{i:05d}-of-{SHARDS:05d}.parquet" for i in range(SHARDS)]
    tars = [folder / f"train-{i:05d}.tar" for i in range(SHARDS)]
    for number, (shard, tar) in enumerate(zip(shards, tars, strict=True)):
        write_shard(shard, _rows(f"shard {number}", rows // SHARDS), WIDE)
        _write_tar(tar, shard)
    files: dict[str, Any] = {"data_files": list(map(str, shards)), "split": "train", "cache_dir": str(folder / "cache")}
    mapped = datasets.load_dataset("parquet", **files)
    iterable = mapped.to_iterable_dataset(num_shards=SHARDS)
    streamed = datasets.load_dataset("parquet", streaming=True, **files)
    tar_names = list(map(str, tars))

    def samples(shuffle: bool) -> Iterator[dict[str, Any]]:
        found = webdataset.WebDataset(tar_names, shardshuffle=SHARDS if shuffle else False, seed=0)
        return map(_of_sample, (found.shuffle(BUFFER) if shuffle else found).decode())

    return {
        "sequential": {
            "ours": lambda: read_rows(shards),
            "datasets, memory-mapped": lambda: map(_of_cells, mapped),
            "datasets, iterable": lambda: map(_of_cells, iterable),
            "datasets, streaming": lambda: map(_of_cells, streamed),
            "webdataset": lambda: samples(shuffle=False),
        },
        "shuffled": {
            "ours": lambda: shuffled_rows(shards, seed=0, block=BUFFER // 32),
            "datasets, memory-mapped": lambda: map(_of_cells, mapped.shuffle(seed=0)),
            "datasets, iterable": lambda: map(_of_cells, iterable.shuffle(seed=0, buffer_size=BUFFER)),
            "datasets, streaming": lambda: map(_of_cells, streamed.shuffle(seed=0, buffer_size=BUFFER)),
            "webdataset": lambda: samples(shuffle=True),
        },
    }


def measure(ways: dict[str, Read], rows: int, rounds: int) -> dict[str, int]:
    """Rows per second of each reader."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, read in ways.items():
            began = time.perf_counter()
            found = sum(_is_whole(row) for row in read())
            best[name] = min(best[name], time.perf_counter() - began)
            assert found == rows, f"{name} gave {found} of {rows} rows"
    return {name: round(rows / seconds) for name, seconds in best.items()}


def same_rows(ways: dict[str, Read]) -> bool:
    """Whether all readers give the same values."""
    first, *others = ({row["clip_id"]: row for row in read()} for read in ways.values())
    return all(
        found.keys() == first.keys() and all(_equal(row, found[clip]) for clip, row in first.items())
        for found in others
    )


def _equal(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    for name, value in ours.items():
        other = theirs[name]
        if not isinstance(value, np.ndarray):
            same = value == other
        else:
            same = (value.dtype, value.shape, value.tobytes()) == (other.dtype, other.shape, other.tobytes())
        if not same:
            return False
    return ours.keys() == theirs.keys()


def _is_whole(row: dict[str, Any]) -> bool:
    return bool(row["codes"].shape == (4, 1500) and row["clip_global"].shape == (30, 768) and len(row) == 27)


def _of_cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `datasets`, whose binary cells are bytes and whose lists are Python's."""
    for name in BLOBS:
        blob = WIDE.blobs[name]
        row[name] = np.frombuffer(row[name], blob.dtype).reshape(blob.shape)
    for name in LISTS:
        row[name] = np.asarray(row[name], np.float32)
    return row


def _write_tar(tar: Path, shard: Path) -> None:
    """A sample per row: an .npy file per array, and one JSON file with all else."""
    with webdataset.TarWriter(str(tar)) as file:
        for row in Shard(shard):
            arrays = {f"{name}.npy": value for name, value in row.items() if isinstance(value, np.ndarray)}
            words = {name: value for name, value in row.items() if not isinstance(value, np.ndarray)}
            file.write({"__key__": row["clip_id"], "json": words, **arrays})


def _of_sample(sample: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = sample.pop("json")
    row |= {name.removesuffix(".npy"): value for name, value in sample.items() if name.endswith(".npy")}
    return row


def figures(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Rates in rows per second, and by how much ours is the fastest: the smallest ratio of all orders and ways."""
    by_order = readers(folder, rows)
    rates = {order: measure(ways, rows, rounds) for order, ways in by_order.items()}

    def ratio(other: str, order: str) -> float:
        return min(rates[order]["ours"] / rate for name, rate in rates[order].items() if name.startswith(other))

    found: dict[str, Any] = {"rows": rows, "rounds": rounds, "rows_per_s": rates}
    for other in ("datasets", "webdataset"):
        found |= {f"ratio_{other}_{order}": round(ratio(other, order), 2) for order in rates}
        found[f"ratio_{other}"] = min(found[f"ratio_{other}_{order}"] for order in rates)
    return found


def main() -> None:
    """Prints the figures: as one JSON object with `--json`, else as a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=int, default=4000, help="rows written and read")
    parser.add_argument("--rounds", type=int, default=5, help="times they are read; the best counts")
    arguments = parser.parse_args()
    if arguments.rows < SHARDS:
        parser.error(f"--rows must be at least {SHARDS}")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        found = figures(Path(folder), arguments.rows // SHARDS * SHARDS, arguments.rounds)
    if arguments.json:
        print(json.dumps(found))
        return
    rates = found["rows_per_s"]
    print("| rows per second | sequential | shuffled |\n|---|---:|---:|")
    for name in rates["sequential"]:
        print(f"| {name} | {rates['sequential'][name]:,} | {rates['shuffled'][name]:,} |")
    print(f"\nours is {found['ratio_datasets']} times as fast as datasets, {found['ratio_webdataset']} as webdataset")


if __name__ == "__main__":
    main()
