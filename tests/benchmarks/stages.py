"""Real-time factor, CPU seconds and peak memory of each stage on the film (Big Buck Bunny, 596 s, 720p).

    python -m tests.benchmarks.stages [--profile nano] [--video FILE] [--json]

FILE is taken in place of the film. One process does all stages in turn, as the build does; nothing runs beside it. Peak
memory is what Linux reports as VmHWM, reset before each stage, so it holds the models that stay loaded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from pipeline.config import load_profile
from pipeline.nano import packages
from pipeline.process import Desk, StageEvent
from pipeline.sources import read_list
from tests.site import Site


class Meter:
    """Measures the stages of a desk: a `pipeline.process.Listener`."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.cpu = 0.0

    def __call__(self, event: StageEvent) -> None:
        """Takes a reading when a stage begins or ends."""
        if event.kind == "begin":
            Path("/proc/self/clear_refs").write_text("5")
            self.cpu = time.process_time()
        elif event.kind == "end":
            cpu = time.process_time() - self.cpu
            self.stages[event.stage] = {"wall_s": event.seconds, "cpu_s": cpu, "peak_mb": peak_mb()}
        elif event.kind == "failed":
            raise SystemExit(f"{event.stage} failed: {event.message}")


def peak_mb() -> float:
    """Highest resident size of this process since the last reset, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def measure(profile_name: str, film: Path) -> dict[str, object]:
    """Runs all stages on a film in a fresh data folder."""
    meter = Meter()
    with tempfile.TemporaryDirectory() as scratch, Site(film.parent) as site:
        source_list = Path(scratch) / "list.txt"
        source_list.write_text(site.url(film.name) + "\n")
        profile = load_profile(profile_name, ["fetch.allow_loopback=true"])
        desk = Desk(Path(scratch) / "data", profile, listener=meter)
        sources, _ = read_list(source_list)
        desk.add(sources)
        source_id = sources[0].source_id
        desk.acquire(source_id)
        desk.analyse(source_id)
        desk.encode(source_id)
        seconds = desk.ledger.funnel().as_seconds()
    for stage in meter.stages.values():
        stage["rtf"] = stage["wall_s"] / seconds["fetched"]
    total = {key: sum(stage[key] for stage in meter.stages.values()) for key in ("wall_s", "cpu_s", "rtf")}
    total["peak_mb"] = max(stage["peak_mb"] for stage in meter.stages.values())
    return {"profile": profile_name, "seconds": seconds, "stages": meter.stages, "total": total}


def main() -> None:
    """Prints a table, or one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--profile", default="nano")
    parser.add_argument("--video", type=Path, help="in place of the film")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.profile, options.video or packages.film())
    stages = found["stages"]
    assert isinstance(stages, dict)
    print(f"{'stage':<8}{'wall s':>9}{'CPU s':>9}{'x real time':>13}{'peak MB':>9}")
    for name, row in [*stages.items(), ("total", found["total"])]:
        print(f"{name:<8}{row['wall_s']:>9.1f}{row['cpu_s']:>9.1f}{row['rtf']:>13.3f}{row['peak_mb']:>9.0f}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
