"""What a refresh over an unchanged list costs: `python -m tests.benchmarks.refresh [--json]`.

Makes a data folder with a ledger of 10,000 sources with two clips each, and a release of them, then runs the real
`dvmset refresh` on their list in a process of its own: wall time from its start to its end, and its peak memory. Then
once more with one row of the list relabelled, and all again with 100,000 sources. The features are made up and the same
for all clips; no site is asked, for none is due; Prefect is not started, since no source has work left.

At last one of the 10,000 has changed at its site: what that costs in requests, attempts and shards, Prefect included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from sqlalchemy import func, insert, select, update

from pipeline.clips import clip_id
from pipeline.config import load_profile
from pipeline.fingerprint import Catalogue, Codes
from pipeline.ledger import ClipRow, Ledger, MediaRow, SourceRow, SpanRow, now
from pipeline.ledger.tables import AttemptRow, UpstreamRow
from pipeline.media import encode
from pipeline.process import Desk
from pipeline.sources import Source, iter_list
from tests.site import Site

SETTINGS = (
    "refresh.probes=1", "fetch.allow_loopback=true", "fetch.free_bytes=0",
    "release.buckets={train: 16, validation: 1, test: 1}",
)  # fmt: skip
CLIPS, CLIP_MS = 2, 10_000
CHUNK = 2000
# The real command, which leaves its /proc/self/status behind: wait4's peak holds that of the process it came from.
_COMMAND = """
import atexit, pathlib, sys
place = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: place.write_text(pathlib.Path("/proc/self/status").read_text()))
from flows.cli import app
app()
"""


@dataclass(frozen=True)
class Place:
    """A list and a data folder in which all of its sources are ready; the first one is of a site on this machine."""

    listed: Path
    data: Path

    @classmethod
    def of(cls, sources: int, folder: Path, site: Site) -> Place:
        """With so many sources."""
        place = cls(folder / f"list-{sources}.csv", folder / f"data-{sources}")
        urls = (site.url("mute.mp4"), *(f"https://example.org/{i}.mp4" for i in range(1, sources)))
        place.listed.write_text("url,category\n" + "".join(f"{url},promo\n" for url in urls))
        make_data(place.listed, place.data)
        return place

    def unchanged(self) -> Run:
        """A refresh when nothing has changed."""
        run = refresh(self.listed, self.data)
        assert not run.report["changed"], "nothing had changed, yet there is a new release"
        return run

    def relabelled(self) -> Run:
        """A refresh when a row of the list has another category."""
        self.listed.write_text(self.listed.read_text().replace("/7.mp4,promo", "/7.mp4,commercial"))
        run = refresh(self.listed, self.data)
        assert run.report["diff"]["relabelled"]["clips"] == CLIPS
        return run

    def changed_upstream(self, site: Site) -> tuple[Run, dict[str, int]]:
        """A refresh when the site has another video than before, one without sound; and what it cost."""
        before, asked = shards(self.data), len(site.requests)
        ledger = Ledger(f"sqlite:///{self.data}/ledger.sqlite")
        first = ledger.sources()[0].source_id
        ledger.saw(first, "another", fetched=True)
        with ledger.session.begin() as session:
            session.execute(update(UpstreamRow).values(checked_at=now() - timedelta(days=30)))
        run = refresh(self.listed, self.data)
        assert run.report["diff"]["removed"]["clips"] == CLIPS
        with ledger.session() as session:
            worked_on = session.scalar(select(func.count(AttemptRow.source_id.distinct())))
        ledger.close()
        assert worked_on == 1
        rewritten = sum(sha256 != before[name] for name, sha256 in shards(self.data).items())
        cost = {"worked_on": run.report["worked_on"], "requests": len(site.requests) - asked, "shards": rewritten}
        return run, cost


def make_data(listed: Path, data: Path) -> None:
    """A data folder in which all sources of a list are ready and released."""
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
    desk.files.read_arrays = lru_cache(desk.files.read_arrays)  # type: ignore[method-assign]  # the same for all clips
    chunk: list[Source] = []
    for source in (row for row in iter_list(listed) if isinstance(row, Source)):
        chunk.append(source)
        if len(chunk) == CHUNK:
            _put(desk, chunk)
            chunk = []
    _put(desk, chunk)
    nothing = Codes(8, 0, np.zeros((0, 1), np.uint64))  # fingerprints that have nothing in common with any other
    with (
        patch.object(Catalogue, "_codes", lambda *_: nothing),
        patch.object(Catalogue, "_shared", lambda *_, **__: iter(())),
    ):
        made = desk.release()
    assert made is not None
    desk.ledger.close()


def _put(desk: Desk, sources: list[Source]) -> None:
    desk.add(sources)
    if not sources:
        return
    ids = [source.source_id for source in sources]
    with desk.ledger.session.begin() as session:
        session.execute(insert(MediaRow), [_media(desk, source_id) for source_id in ids])
        session.execute(insert(SpanRow), [span for source_id in ids for span in _spans(source_id)])
        session.execute(insert(ClipRow), [clip for source_id in ids for clip in _clips(source_id)])
        ready = SourceRow.__table__.update().where(SourceRow.source_id.in_(ids))
        session.execute(ready.values(state="ready", done_key=desk.files.done_key))


def _media(desk: Desk, source_id: str) -> dict[str, Any]:
    details = {"title": f"Film {source_id}", "channel": "A channel", "license": "", "av_offset_ms": 0.0}
    sizes = {"bytes": 1, "duration_ms": 3 * CLIP_MS, "has_video": True, "has_audio": True}
    name, sha256 = f"media/{source_id}.mp4", source_id * 4
    return {"source_id": source_id, "key": "k", "name": name, "sha256": sha256, "details": details, **sizes}


def _spans(source_id: str) -> Iterator[dict[str, Any]]:
    for i in range(3):
        reason = "" if i < CLIPS else "speech"
        yield {"source_id": source_id, "start_ms": i * CLIP_MS, "end_ms": (i + 1) * CLIP_MS, "reason": reason}


def _clips(source_id: str) -> Iterator[dict[str, Any]]:
    beats = [round(0.5 * i, 3) for i in range(2 * CLIP_MS // 1000)]
    measures = {"shot_times_s": [1.0, 4.0], "beat_times_s": beats, "tempo_bpm": 120.0, "voice_ratio": 0.01}
    files = {"vision": "vision/all.safetensors", "codes": "codes/all.safetensors"}
    for i in range(CLIPS):
        span = {"start_ms": i * CLIP_MS, "end_ms": (i + 1) * CLIP_MS}
        name = clip_id(source_id, span["start_ms"], span["end_ms"])
        yield {"clip_id": name, "source_id": source_id, **span, "measures": {**measures, "music_score": 0.9}, **files}


def shards(data: Path) -> dict[str, str]:
    """Digest of each shard of the newest release."""
    release = data / "releases" / (data / "releases" / "latest").read_text().strip()
    manifest = json.loads((release / "manifest.json").read_text())
    return {shard["name"]: shard["sha256"] for shard in manifest["shards"]}


@dataclass(frozen=True)
class Run:
    """One run of the command: wall and CPU seconds, peak memory in MB, what it reports."""

    seconds: float
    cpu_seconds: float
    rss_mb: float
    report: dict[str, Any]


def refresh(listed: Path, data: Path) -> Run:
    """Runs the command in a process of its own."""
    command = ["refresh", str(listed), "--data", str(data), "--profile", "nano", "--json"]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    with tempfile.TemporaryFile("w+") as said, tempfile.NamedTemporaryFile("r") as status:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", _COMMAND, status.name, *command], stdout=said)
        _, code, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        assert os.waitstatus_to_exitcode(code) == 0
        said.seek(0)
        report = json.loads(said.read())
        peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Run(round(seconds, 2), round(cpu_seconds, 2), round(peak_kib * 1024 / 1e6), report)


def main() -> None:
    """Prints the figures: as one JSON object with `--json`, else in words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        encode(folder / "mute.mp4", np.zeros((50, 36, 64, 3), np.uint8), Fraction(25), None, 44100)
        with Site(folder) as site:
            place = Place.of(10_000, folder, site)
            few, few_relabelled = place.unchanged(), place.relabelled()
            changed, cost = place.changed_upstream(site)
            place = Place.of(100_000, folder, site)
            many, many_relabelled = place.unchanged(), place.relabelled()
    figures = {
        "seconds_10k_unchanged": few.seconds,
        "seconds_100k_unchanged": many.seconds,
        "rss_mb": many.rss_mb,
        "rss_mb_10k": few.rss_mb,
        "cpu_seconds_10k_unchanged": few.cpu_seconds,
        "cpu_seconds_100k_unchanged": many.cpu_seconds,
        "seconds_10k_one_relabelled": few_relabelled.seconds,
        "seconds_100k_one_relabelled": many_relabelled.seconds,
        "seconds_10k_one_changed": changed.seconds,
        "sources_worked_on_10k_one_changed": cost["worked_on"],
        "requests_10k_one_changed": cost["requests"],
        "shards_rewritten_10k_one_changed": cost["shards"],
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<34}{value:>10}")


if __name__ == "__main__":
    main()
