"""Commands given what they can't use: one message, no traceback, nothing half done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.config import load_profile
from pipeline.process import Desk
from pipeline.sources import Source, canonical_key, source_id
from tests.world import Web, work

FILM = "https://a.example/film.mp4"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one release; its address has brackets in it."""
    place = tmp_path_factory.mktemp("built") / "data"
    urls = [FILM, "https://b.example/[/bold]?[red]=1"]
    with pytest.MonkeyPatch.context() as patch:
        Web(dict.fromkeys(urls[:1], "m" * 30)).replace_edges(patch)
        desk = Desk(place, load_profile("nano"))
        for line, url in enumerate(urls, start=1):
            key = canonical_key(url)
            desk.add([Source(source_id(key), key, url, "promo", None, None, "", "list.csv", line)])
        work(desk, desk.pending())
        assert desk.release() is not None
        desk.ledger.close()
    return place


@pytest.fixture
def here(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: `data`, its `release`, a copy of that to damage, and what is none."""
    shutil.copytree(built, tmp_path / "data")
    release = tmp_path / "data/releases" / (tmp_path / "data/releases/latest").read_text().strip()
    shutil.copytree(release, tmp_path / "release")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("[/bold] no link\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(here: Path) -> set[Path]:
    return {path for path in here.rglob("*") if not path.name.startswith((".lock", "ledger.sqlite"))}


@pytest.mark.parametrize("command", ["validate", "diff", "export", "rebuild", "push"])
@pytest.mark.parametrize("given", ["nowhere", "empty", "file.txt", "binary", "data", "s3x://bucket/release"])
def test_what_is_no_release_is_said_to_be_none(here: Path, command: str, given: str) -> None:
    before = everything(here)
    more = {"diff": ["release"], "export": ["-o", "out"], "rebuild": ["--data", "data"], "push": ["--repo", "a/b"]}
    done = CliRunner().invoke(app, [command, given, *more.get(command, [])])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in ((1, 2) if command == "validate" else (2,))
    assert given.partition(":")[0] in done.output
    assert everything(here) == before


@pytest.mark.parametrize(
    ("damage", "refused"),
    [
        (lambda place: next(place.glob("train*")).unlink(), {"validate", "export", "push"}),
        (lambda place: next(place.glob("train*")).write_bytes(b"PAR1"), {"validate", "export", "push"}),
        (lambda place: (place / "manifest.json").unlink(), {"validate", "diff", "export", "rebuild"}),
        (lambda place: (place / "manifest.json").write_text("{"), {"validate", "diff", "export", "rebuild", "push"}),
        (lambda place: (place / "sources.jsonl").unlink(), {"validate", "rebuild", "push"}),
        (lambda place: (place / "sources.jsonl").write_bytes(b"\xff"), {"validate", "rebuild", "push"}),
        (lambda place: (place / "report.html").unlink(), {"validate", "push"}),
    ],
)
def test_a_release_that_lacks_something_is_refused_by_who_needs_it(
    here: Path, damage: Callable[[Path], object], refused: set[str]
) -> None:
    damage(here / "release")
    before = everything(here)
    for command in sorted(refused):
        more = {"diff": ["release"], "export": ["-o", "out"], "rebuild": ["--data", "data"], "push": ["--repo", "a/b"]}
        done = CliRunner().invoke(app, [command, "release", *more.get(command, [])])
        assert isinstance(done.exception, SystemExit), (command, done.exception)
        assert done.exit_code == (1 if command == "validate" else 2), (command, done.output)
    assert everything(here) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["why", "nowhere", "--data", "data"], "is no source"),
        (["why", "0" * 16 + "-00000000-00001000", "--data", "data"], "Nothing is known of"),
        (["why", FILM, "--data", "empty"], "is not a data folder"),
        (["why", FILM, "--data", "data", "--at", "inf"], "inf s is no time in a video"),
        (["why", FILM, "--data", "data", "--at", "nan"], "Invalid value for"),
        (["export", "release", "-o", "file.txt"], "is a file"),
        (["export", "release", "-o", "file.txt/out"], "can't be made"),
        (["export", "release", "-o", "data"], "is not empty"),
        (["export", "release", "-o", "out", "--licence", "["], "No clip of this release is chosen"),
        (["export", "release", "-o", "out", "--opt-out", "binary"], "The opt-out list binary can't be read"),
        (["diff", "release", "release", "-o", "file.txt/out"], "can't be written"),
        (["rebuild", "release", "--data", "file.txt"], "can't be a data folder"),
        (["takedown", "--data", "data", "--yes"], "names no source"),
        (["takedown", "--channel", " ", "--data", "data", "--yes"], "names no source"),
        (["takedown", "--url", "file:///x", "--data", "data", "--yes"], "addresses are refused"),
        (["takedown", "--source", "zzz", "--data", "data", "--yes"], "There is no source zzz"),
        (["takedown", "--list", "file.txt", "--data", "data", "--yes"], "(file.txt:1: '[/bold] no link' is neither"),
        (["takedown", "--list", "binary", "--data", "data", "--yes"], "is not UTF-8 text"),
        (["build", "file.txt", "--data", "new", "--profile", "nano"], "bad row file.txt:1: '[/bold] no link' is"),
    ],
)
def test_a_wrong_argument_is_named_and_changes_nothing(here: Path, arguments: list[str], said: str) -> None:
    before = everything(here)
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert everything(here) == before


def test_brackets_in_addresses_are_printed_as_they_are(here: Path) -> None:
    done = CliRunner().invoke(app, ["status", "--data", "data"])
    assert (done.exit_code, "https://b.example/[/bold]?[red]=1" in done.output) == (0, True), done.output
    found = json.loads(CliRunner().invoke(app, ["status", "--data", "data", "--json"]).stdout)
    assert found["states"] == {"failed": 1, "ready": 1}
