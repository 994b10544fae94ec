"""A build that is killed again and again, and one whose disk is full, end as one that nobody disturbed.

    python -m tests.chaos --kills 30 --seed 0 -v   # tells each kill, and exits with 1 if anything differs

The real command builds the list of all faults, with songs among them, from the loopback site. It is killed (SIGKILL)
once in each stage, and the same command is run again. Then the parent or a process that downloads is killed at random
times, each time a few requests or attempts after the build has begun to work. Where a build ends before its kill, the
list gets more songs. After that the
data folder is a small tmpfs that grows each time the build has stopped for want of space. In the end both data folders
hold the same release as that of one undisturbed build, shard for shard, and nothing half done is left anywhere.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.ledger import Ledger
from pipeline.media import encode
from pipeline.nano.mixtures import RATE, render
from pipeline.storage import file_digest
from tests import faults
from tests.neighbours import city_frames, loop
from tests.site import Site

log = logging.getLogger(__name__)

SONG_S = 16
LOOK_S = 0.1
TOLD_S = 0.02  # between two looks at where a build is
DIES_S = 20.0  # for what a killed process had started to be gone
GROWS = 3 << 20  # bytes of tmpfs, each time it was full
# The real command, with a thread that writes into a file, again and again, the functions that its threads are in.
_COMMAND = """
import os, sys, threading, time, traceback
where = sys.argv.pop(1)
def tell():
    while True:
        stacks = sys._current_frames().values()
        names = {frame.f_code.co_name for top in stacks for frame, _ in traceback.walk_stack(top)}
        with open(where + "~", "w") as file:
            file.write(" ".join(names))
        os.replace(where + "~", where)
        time.sleep(0.02)
threading.Thread(target=tell, daemon=True).start()
from flows.cli import app
app()
"""
STAGES = {  # by the function that a thread is in
    "_fetch": "fetch",
    "_find_shots": "shots",
    "_measure_music": "music",
    "_encode_vision": "vision",
    "_encode_codes": "codes",
    "make_release": "release",
}
LOADING = {"load_separator", "load_vision", "load_codec", "_find_and_load"}  # stages that do so are not at work yet


@dataclass
class Course:
    """What happened on the way of a disturbed build.

    Attributes:
        kills: number by what was killed, `parent` or `download`.
        hits: number of kills by stage that was at work; one kill may hit several, `between` is none.
        builds: how often the command was started.
        full: how often it stopped because the disk was full, by what it said of the place.
    """

    kills: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    builds: int = 0
    full: Counter[str] = field(default_factory=Counter)


@dataclass
class Ground:
    """Where builds take place: a folder of its own, its site, and the list, which may grow.

    Attributes:
        paths: of the site, in the order of the list.
        songs: how many of them are songs.
    """

    folder: Path
    site: Site
    paths: list[str]
    songs: int = 0

    @property
    def source_list(self) -> Path:
        return self.folder / "list.txt"

    def add_songs(self, number: int) -> None:
        """Puts more songs at the end of the list."""
        for _ in range(number):
            self.paths.append(faults.another(self.site.folder / "song.mp4", self.songs))
            self.songs += 1
        self.source_list.write_text("".join(self.site.url(path) + "\n" for path in self.paths))

    def command(self, data: Path) -> list[str]:
        """The arguments of a build."""
        manners = (f"fetch.cookies={self.folder / 'cookies.txt'}", *faults.MANNERS)
        return faults.building(self.source_list, data, *manners)

    def environment(self) -> dict[str, str]:
        """Prefect's history and all temporary files are in the folder."""
        places = {name: self.folder / name for name in ("prefect", "tmp")}
        for place in places.values():
            place.mkdir(exist_ok=True)
        return {**os.environ, "PREFECT_HOME": str(places["prefect"]), "TMPDIR": str(places["tmp"])}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        command = [sys.executable, "-m", "flows", *arguments]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=1800, env=self.environment()
        )

    def build(self, data: Path) -> None:
        """Builds to the end."""
        ended = self.run(*self.command(data))
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def settle(self, data: Path, fates: dict[str, str]) -> None:
        """Sources that failed since they or their build were killed get their turn now, and not in an hour."""
        for _ in range(3):
            hurt = [url for url, fate in faults.fates(data).items() if fate != fates[url]]
            if not hurt:
                break
            ended = self.run("retry", "--data", str(data), *(word for url in hurt for word in ("--source", url)))
            assert ended.returncode == 0, ended.stdout + ended.stderr
            self.build(data)


@contextmanager
def ground(folder: Path, paths: list[str], songs: int) -> Iterator[Ground]:
    """The site with its files, and a list of some of its faults and some songs."""
    files = folder / "site"
    files.mkdir()
    faults.make(files)
    song = loop(render("music", np.random.default_rng(1)), SONG_S)
    encode(files / "song.mp4", city_frames(SONG_S), Fraction(25), song, RATE)
    faults.write_cookies(folder / "cookies.txt")
    with Site(files) as site:
        site.password = faults.COOKIE
        made = Ground(folder, site, list(paths))
        made.add_songs(songs)
        yield made


# kills


def kill_in_each_stage(place: Ground, data: Path) -> Course:
    """Builds with a `SIGKILL` of the parent in each stage, while it is at work and before its outcome is recorded."""
    course = Course()
    for function, stage in STAGES.items():
        while not course.hits[stage]:
            process = _start(place, data, course)
            while process.poll() is None:
                time.sleep(TOLD_S)
                if not _is_at_work(function, place) or (stage == "fetch" and not _downloads(process)):
                    continue
                outcomes = _outcomes(data, stage)
                _kill(process, course)
                if _is_at_work(function, place) and _outcomes(data, stage) == outcomes:  # it hadn't ended meanwhile
                    course.hits[stage] += 1
                    log.info("killed in %s, build %d", stage, course.builds)
            if process.returncode != -signal.SIGKILL:
                assert process.returncode == 0, _said(place)
                place.add_songs(1)  # it ended first: more to do
    return course


def kill_and_restart(place: Ground, data: Path, kills: int, seed: int) -> Course:
    """Builds with so many kills on the way, each `SIGKILL` of the parent or of a process that downloads."""
    draw = random.Random(seed)
    course = Course()
    while course.kills.total() < kills:
        process = _start(place, data, course)
        while course.kills.total() < kills and wait_for_work(place, data, process, draw):
            if (downloads := _downloads(process)) and draw.random() < 0.3:
                draw.choice(downloads).kill()
                course.kills["download"] += 1
                course.hits["fetch"] += 1
                log.info("kill %d: a download", course.kills.total())
                continue
            stages = {STAGES[name] for name in _functions(place) & STAGES.keys()} or {"between"}
            _kill(process, course)
            course.hits.update(stages)
            log.info("kill %d: the parent, at %s", course.kills.total(), ", ".join(sorted(stages)))
        if process.wait() != -signal.SIGKILL:
            assert process.returncode == 0, _said(place)
            place.add_songs(2)  # it ended first: more to do
    return course


def _start(place: Ground, data: Path, course: Course) -> subprocess.Popen[Any]:
    """The build, which can be asked where it is."""
    where, said = place.folder / "where.txt", place.folder / "said.txt"
    where.unlink(missing_ok=True)
    command = [sys.executable, "-c", _COMMAND, str(where), *place.command(data)]
    with said.open("w") as file:
        process = subprocess.Popen(command, env=place.environment(), stdout=file, stderr=file, start_new_session=True)
    course.builds += 1
    return process


def _said(place: Ground) -> str:
    return (place.folder / "said.txt").read_text()


def _kill(process: subprocess.Popen[Any], course: Course) -> None:
    """Kills the parent; all that it had started has to end by itself."""
    everyone = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    course.kills["parent"] += 1
    process.wait()
    _, orphans = psutil.wait_procs(everyone, timeout=DIES_S)
    assert not orphans, f"{[_command_of(child) for child in orphans]} outlived the build"


def _downloads(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "pipeline.fetch.child" in _command_of(child)]


def wait_for_work(place: Ground, data: Path, process: subprocess.Popen[Any], draw: random.Random) -> bool:
    """Waits for a random number of signs of work, then for a random time; false if the build ended meanwhile."""
    wanted = _signs(place, data) + draw.randint(1, 8)
    while process.poll() is None and _signs(place, data) < wanted:
        time.sleep(LOOK_S)
    with suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(0.0, 3.0))
    return process.poll() is None


def _signs(place: Ground, data: Path) -> int:
    """Requests at the site, attempts in the ledger, a release in the making."""
    attempts = 0
    with suppress(sqlite3.OperationalError), closing(_read_only(data / "ledger.sqlite")) as ledger:
        attempts = int(ledger.execute("SELECT count(*) FROM attempts").fetchone()[0])
    return len(place.site.requests) + attempts + 8 * any((data / "releases").glob(".tmp-*"))


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


def _functions(place: Ground) -> set[str]:
    """The functions that the threads of the build are in, or were when it was killed."""
    where = place.folder / "where.txt"
    return set(where.read_text().split()) if where.exists() else set()


def _is_at_work(function: str, place: Ground) -> bool:
    functions = _functions(place)
    return function in functions and not functions & LOADING


def _outcomes(data: Path, stage: str) -> int:
    """How many attempts of a stage have ended, or how many releases there are."""
    asked = "releases" if stage == "release" else "attempts WHERE stage = ?"
    with suppress(sqlite3.OperationalError), closing(_read_only(data / "ledger.sqlite")) as ledger:
        return int(ledger.execute(f"SELECT count(*) FROM {asked}", (stage,) * ("?" in asked)).fetchone()[0])
    return 0


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# a full disk


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of so many bytes.

    Raises:
        PermissionError: this process may not mount one, which takes root and CAP_SYS_ADMIN.
    """
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(options, check=False, capture_output=True).returncode:
        raise PermissionError("a small tmpfs can't be mounted here; as root with CAP_SYS_ADMIN it can")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_and_grow(place: Ground, disk: Path, size: int, grows: int = GROWS) -> Course:
    """Builds on a disk of so many bytes, which gets more each time it is full, until the build ends well."""
    course = Course()
    while True:
        before = _finished(disk)
        ended = place.run(*place.command(disk))
        course.builds += 1
        assert _finished(disk) >= before, "something that was finished is lost"
        if ended.returncode == 0:
            return course
        said = re.findall(r"^error .*disk is full(?: \(at (\w+))?", ended.stderr, re.M)
        clear = len(said) == 1 and "Traceback" not in ended.stdout + ended.stderr
        assert ended.returncode == 2 and clear, ended.stdout + ended.stderr
        course.full[said[0] or "ledger"] += 1
        size += grows
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def _finished(data: Path) -> set[str]:
    """What the ledger knows to be done: sources that are ready."""
    with suppress(sqlite3.OperationalError), closing(_read_only(data / "ledger.sqlite")) as ledger:
        return {row[0] for row in ledger.execute("SELECT source_id FROM sources WHERE state = 'ready'")}
    return set()


# the outcome


def outcome(data: Path) -> dict[str, Any]:
    """All that must be the same: the release by id, its shards by digest, the seconds, the fate of each source."""
    name = (data / "releases" / "latest").read_text().strip()
    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    seconds = ledger.funnel().as_seconds()  # the manifest's are those of the day of the release
    ledger.close()
    return {
        "release": name,
        "shards": {path.name: file_digest(path) for path in (data / "releases" / name).glob("*.parquet")},
        "seconds": seconds,
        "fates": faults.fates(data),
    }


def leftovers(place: Ground, data: Path) -> list[str]:
    """Temporary files, media, leases and processes that should not be there any more."""
    found = [str(path) for path in data.rglob(".tmp-*")] + [str(path) for path in (data / "media").glob("*")]
    found += [str(path) for path in (place.folder / "tmp").rglob("*") if path.is_file()]
    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    found += [f"breaker of {host}" for host in ledger.open_breakers()]
    found += [f"lease of {name}" for name in ledger.leases()]
    ledger.close()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(place.folder) in process.environ().get("TMPDIR", ""):
                found.append(f"process {process.pid}: {' '.join(process.cmdline())}")
    return found


def check(place: Ground, data: Path, undisturbed: dict[str, Any]) -> None:
    """Compares a data folder with what an undisturbed build came to.

    Raises:
        AssertionError: it differs, or something half done is left.
    """
    place.settle(data, undisturbed["fates"])
    got = outcome(data)
    for what in ("fates", "seconds", "shards", "release"):
        assert got[what] == undisturbed[what], f"{what} differ: {got[what]} is not {undisturbed[what]}"
    assert leftovers(place, data) == []


def main() -> None:
    """Runs all of it and prints the course."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--songs", type=int, default=4, help="in the list at first")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell each kill")
    options = parser.parse_args()
    if options.verbose:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        log.setLevel(logging.INFO)
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        ground(Path(folder), list(faults.FATES), options.songs) as place,
    ):
        began = time.monotonic()
        data = Path(folder) / "killed"
        print(f"{kill_in_each_stage(place, data)}", flush=True)
        killed = kill_and_restart(place, data, options.kills, options.seed)
        print(f"{time.monotonic() - began:.0f} s: {killed}", flush=True)
        place.build(data)
        place.site.visits.clear()
        place.build(Path(folder) / "undisturbed")
        undisturbed = outcome(Path(folder) / "undisturbed")
        print(f"{time.monotonic() - began:.0f} s: undisturbed, {undisturbed['release']}", flush=True)
        check(place, data, undisturbed)
        print(f"{options.kills} kills, and the same {len(undisturbed['shards'])} shards.", flush=True)
        with small_disk(Path(folder) / "full", GROWS) as disk:
            place.site.visits.clear()
            filled = fill_and_grow(place, disk, GROWS)
            print(f"{time.monotonic() - began:.0f} s: {filled}", flush=True)
            check(place, disk, undisturbed)
        print(f"{filled.full.total()} times a full disk, and the same shards.")


if __name__ == "__main__":
    main()
