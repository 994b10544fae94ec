"""The demo: a source list on a site of this machine becomes a released data set. `make demo` runs it.

Media comes from Python packages (pip) into a cache, is served on loopback, and goes through the real command.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.neighbours import make, write_list
from tests.site import Site

FOLDER = Path(".demo")
PORT = 8642  # fixed, because a source's identity is its address: two runs give the same clips
# Puts the film and its trailer, which are one film, into train, and the city into validation.
SETTINGS = ("fetch.allow_loopback=true", "release.split_salt=bunny")


def main() -> int:
    """Builds `.demo/data` with the real command, then says what to open."""
    began = time.perf_counter()
    print("fetching and making the media (Big Buck Bunny, CC BY 3.0, (c) 2008 Blender Foundation) ...", flush=True)
    neighbours = make(FOLDER / "site")
    prepared = time.perf_counter()
    try:
        site = Site(FOLDER / "site", PORT)
    except OSError as error:
        print(f"Port {PORT} of this machine is taken ({error}). Free it and run `make demo` again.")
        return 1
    with site:
        write_list(FOLDER / "list.csv", neighbours, site.url())
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        command = ["build", str(FOLDER / "list.csv"), "--data", str(FOLDER / "data"), "--profile", "nano", *settings]
        print("$ dvmset " + " ".join(command), flush=True)
        code = dvmset(*command)
    if code:
        return code
    release = json.loads(_output("status", "--data", str(FOLDER / "data"), "--json"))["release"]
    dvmset("validate", release)
    plot = FOLDER / "film.png"
    if not plot.exists():
        print(f"drawing {plot} (half a minute) ...", flush=True)
        dvmset("inspect", str(FOLDER / "site/film.mp4"), "--plot", str(plot), "--json", quiet=True)
    minutes = (time.perf_counter() - began) / 60
    print(f"\nDone in {minutes:.1f} minutes ({(prepared - began) / 60:.1f} of them for the media). Open:")
    print(f"  {release}/README.md   the data card")
    print(f"  {plot}                what the pipeline heard and saw in the film")
    print(f"  python -c \"import pandas; print(pandas.read_parquet('{release}/train-00000-of-00002.parquet'))\"")
    print("Run it again: nothing is done twice.")
    return 0


def dvmset(*arguments: str, quiet: bool = False) -> int:
    """Runs the command line; returns its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments], check=False, stdout=subprocess.DEVNULL if quiet else None
    ).returncode


def _output(*arguments: str) -> str:
    command = [sys.executable, "-m", "flows", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
