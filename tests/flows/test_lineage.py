"""The commands that tell where things come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.config import load_profile
from pipeline.process import Desk
from pipeline.sources import Source, canonical_key, source_id
from tests.world import Web, work

FILM = "https://a.example/film.mp4"
runner = CliRunner()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data folder with two releases, of one film and of two."""
    web = Web({FILM: "m" * 30 + "v" * 20, "https://b.example/2.mp4": "m" * 25})
    web.replace_edges(monkeypatch)
    desk = Desk(tmp_path / "data", load_profile("nano"))
    for line, url in enumerate(web.videos, start=1):
        key = canonical_key(url)
        desk.add([Source(source_id(key), key, url, "promo", None, None, "", "list.csv", line)])
        work(desk, desk.pending())
        assert desk.release() is not None
    desk.ledger.close()
    return str(tmp_path / "data")


def run(*arguments: str, code: int = 0) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def answer(*arguments: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json", code=code).splitlines()[-1])
    return found


def test_why_diff_and_rebuild_say_in_words_and_in_json_what_they_found(data: str, tmp_path: Path) -> None:
    story = answer("why", FILM, "--data", data, "--at", "12")
    words = run("why", story["clip"]["clip_id"], "--data", data)
    assert words.splitlines()[0] == story["in_short"]
    assert "list.csv:2, promo" in run("why", "https://b.example/2.mp4", "--data", data)
    for part in ("added", "fetch", "music", story["clip"]["codes"]["sha256"][:12], story["released"]["shard"], "█"):
        assert part in words
    assert "Not a clip: 20.0 s speech." in run("why", FILM, "--data", data, "--at", "40")

    old, new = (release["id"] for release in _releases(data))
    found = answer("diff", old, new, "--data", data)
    assert found["clips"]["added"] == {"clips": 1, "seconds": 25.0, "reasons": {"new in the list": 1}}
    listed = tmp_path / "changes.jsonl"
    assert "added  1 clips" in run("diff", old, f"{data}/releases/{new}", "--data", data, "-o", str(listed))
    assert [json.loads(line)["kind"] for line in listed.read_text().splitlines()] == ["added"]

    manifest = f"{data}/releases/{new}/manifest.json"
    assert "the same release, all 4 shards byte for byte" in run("rebuild", manifest, "--data", data)
    assert answer("rebuild", manifest, "--data", data)["missing"] == []
    run("takedown", "--url", FILM, "--data", data, "--yes")
    lost = answer("rebuild", manifest, "--data", data, code=1)["missing"]
    assert [(gone["url"], gone["clips"], gone["why"]) for gone in lost] == [
        (FILM, [story["clip"]["clip_id"]], "taken down")
    ]
    assert story["clip"]["clip_id"] in run("rebuild", manifest, "--data", data, code=1)


def test_what_cannot_be_told_is_said_in_one_message(data: str) -> None:
    for arguments, said in (
        (("why", "https://nobody.example/1.mp4", "--data", data), "Nothing is known of"),
        (("why", FILM, "--data", data, "--set", "verdict.music_min=0.9"), "--set needs --profile"),
        (("diff", "r-000000000000", "r-111111111111", "--data", data), "There is no release"),
        (("rebuild", "nowhere/manifest.json", "--data", data), "There is no manifest"),
    ):
        assert said in run(*arguments, code=2)


def _releases(data: str) -> list[dict[str, Any]]:
    """Their manifests, oldest first."""
    found = [json.loads(path.read_text()) for path in Path(data, "releases").glob("r-*/manifest.json")]
    return sorted(found, key=lambda manifest: manifest["parent"] is not None)
