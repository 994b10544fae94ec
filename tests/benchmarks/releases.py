"""What a release of many clips costs: `python -m tests.benchmarks.releases [--clips N ...] [--json]`.

For each number of clips a data folder is made whose ledger says that all sources are ready, eight clips of 5 s each,
with features at toy width; then the release is made by `Desk.release` in a process of its own: wall and CPU seconds,
and peak memory (the kernel's VmHWM) less what the process had when it began. With `--again` the category of every
source is changed after that and released once more, so that every shard is rewritten and every clip compared. The
folder takes about 3.5 KB a clip, twice that with `--again`.

Sources of one kind share the same few artefact files, which are read anew for each clip. A fingerprint has one moment
here, where five minutes of film have up to 600 of sound and as many of picture, of which the index holds 80 bytes each.
Nothing else is left out: groups, rows, checks, checksums, digests, the card. `growth` is the time per clip with most
clips over that with fewest, `memory_growth` the peak likewise: both are 1 where time is linear and memory flat.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert, update

from pipeline.clips import clip_id
from pipeline.config import load_profile
from pipeline.fingerprint import KINDS, Codes
from pipeline.ledger import ClipRow, Ledger, MediaRow, SourceRow, SpanRow
from pipeline.process import Desk
from pipeline.sources import source_id

SETTINGS = ("release.buckets={train: 64, validation: 4, test: 4}",)
CLIPS, CLIP_MS = 8, 5000  # of a source
CHUNK = 2000  # sources put into the ledger at a time


def make_data(data: Path, clips: int) -> None:
    """A data folder in which so many clips are ready."""
    desk = Desk(data, load_profile("nano", SETTINGS))
    draw = np.random.default_rng(0)
    curve = draw.random(CLIP_MS // 40).astype(np.float16)
    features = {"clip_global": draw.random((CLIP_MS // 1000, 64)).astype(np.float16)}
    features |= dict.fromkeys(("patch_distance", "patch_distance_flat", "cls_distance"), curve)
    codes = {"codes": draw.integers(0, 64, (4, CLIP_MS // 20), np.int16)}
    desk.files.write_arrays("vision/all.safetensors", features, model="random:nano (seed 0)", licence="Apache-2.0")
    desk.files.write_arrays(
        "codes/all.safetensors", codes, model="random:nano (seed 0)", licence="", cardinality=64, lufs=-17.5
    )
    sources = -(-clips // CLIPS)
    for first in range(0, sources, CHUNK):
        _put(desk, range(first, min(sources, first + CHUNK)), clips)
    desk.ledger.close()


def _put(desk: Desk, numbers: range, clips: int) -> None:
    done = {"category": "promo", "license": "", "start_s": None, "end_s": None, "state": "ready"}
    done |= {"done_key": desk.files.done_key, "withheld": "", "error_class": ""}
    urls = [f"https://example.org/{i}.mp4" for i in numbers]
    sources = [{"source_id": source_id(url), "key": url, "url": url, **done} for url in urls]
    media = [_media(source["source_id"]) for source in sources]
    spans = [(i * CLIP_MS, (i + 1) * CLIP_MS) for i in range(CLIPS)]
    rows = [_clip(source["source_id"], *span) for source in sources for span in spans]
    wanted = clips - numbers.start * CLIPS
    fates = [{name: row[name] for name in ("source_id", "start_ms", "end_ms")} for row in rows]
    fates = [{**fate, "reason": "" if i < wanted else "no_music"} for i, fate in enumerate(fates)]
    rows = rows[:wanted]
    with desk.ledger.session.begin() as session:
        for table, values in ((SourceRow, sources), (MediaRow, media), (SpanRow, fates), (ClipRow, rows)):
            session.execute(insert(table), values)
    for number, source, its in zip(numbers, sources, media, strict=True):
        for kind in KINDS:
            place = Path(desk.store.path(desk.files.fingerprint(kind, SourceRow(**source), MediaRow(**its))))
            place.parent.mkdir(exist_ok=True)
            Codes(8, 0, np.full((1, 1), 1 + number * 0x9E3779B97F4A7C15 % 2**64, np.uint64)).to_file(place)


def _media(name: str) -> dict[str, Any]:
    details = {"title": f"Film {name}", "channel": "A channel", "license": "", "av_offset_ms": 0.0}
    sizes = {"bytes": 1, "duration_ms": CLIPS * CLIP_MS, "has_video": True, "has_audio": True}
    return {"source_id": name, "key": "k", "name": f"media/{name}.mp4", "sha256": name * 4, "details": details, **sizes}


def _clip(name: str, start_ms: int, end_ms: int) -> dict[str, Any]:
    beats = [round(0.5 * i, 3) for i in range(2 * CLIP_MS // 1000)]
    measures = {"shot_times_s": [1.0, 4.0], "beat_times_s": beats, "tempo_bpm": 120.0, "voice_ratio": 0.01}
    files = {"vision": "vision/all.safetensors", "codes": "codes/all.safetensors"}
    row = {"clip_id": clip_id(name, start_ms, end_ms), "source_id": name, "start_ms": start_ms, "end_ms": end_ms}
    return {**row, "measures": {**measures, "music_score": 0.9}, **files}


def relabel(data: Path) -> None:
    """Gives every source another category."""
    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    with ledger.session.begin() as session:
        session.execute(update(SourceRow).values(category="commercial"))
    ledger.close()


def release_here(data: Path) -> dict[str, Any]:
    """Makes the release in this process."""
    desk = Desk(data, load_profile("nano", SETTINGS))
    desk.files.weights  # noqa: B018  (loads the packages of the models)
    before, began, worked = _memory_mb("VmRSS"), time.perf_counter(), time.process_time()
    made = desk.release()
    assert made is not None and made.changed
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - worked
    rewritten = (made.diff or {}).get("relabelled", {}).get("clips", 0)
    return {
        "clips": made.clips,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_s, 1),
        "peak_mb": round(_memory_mb("VmHWM") - before),
        "relabelled": rewritten,
    }


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def _in_a_process(data: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.releases", "--release", str(data)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def runs(counts: list[int], again: bool, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """A release for each number of clips; its folder is gone before the next is made."""
    found = []
    for clips in sorted(counts):
        with tempfile.TemporaryDirectory(prefix="dvmset-releases-") as text:
            data = Path(text) / "data"
            began = time.perf_counter()
            make_data(data, clips)
            report(f"{clips:,} clips in the ledger after {time.perf_counter() - began:.0f} s")
            run = _in_a_process(data)
            assert run["clips"] == clips
            report(json.dumps(run))
            if again:
                relabel(data)
                second = _in_a_process(data)
                assert second["relabelled"] == clips
                run["again"] = {name: second[name] for name in ("seconds", "cpu_seconds", "peak_mb")}
                report(json.dumps(second))
            found.append(run)
    return found


def main() -> None:
    """Prints the figures: as one JSON object with `--json`, else as a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000], help="sizes of releases")
    parser.add_argument("--again", action="store_true", help="release each once more, every clip changed")
    parser.add_argument("--release", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.release:
        print(json.dumps(release_here(arguments.release)))
        return
    found = runs(arguments.clips, arguments.again, lambda text: print(text, file=sys.stderr, flush=True))
    few, many = found[0], found[-1]
    growth = (many["cpu_seconds"] / many["clips"]) / (few["cpu_seconds"] / few["clips"])
    figures = {"runs": found, "growth": round(growth, 2), "memory_growth": round(many["peak_mb"] / few["peak_mb"], 2)}
    if arguments.json:
        print(json.dumps(figures))
        return
    print("| clips | seconds | CPU seconds | clips a second | peak MB |\n|---:|---:|---:|---:|---:|")
    for run in found:
        rate = run["clips"] / run["seconds"]
        print(f"| {run['clips']:,} | {run['seconds']} | {run['cpu_seconds']} | {rate:,.0f} | {run['peak_mb']} |")
    print(f"\nCPU time per clip grows {growth:.2f}-fold, memory {figures['memory_growth']:.2f}-fold")


if __name__ == "__main__":
    main()
