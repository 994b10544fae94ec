"""Pushing to the Hub: what goes there, what stays here, and what is refused; the Hub is a stand-in on loopback."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from flows.cli import app
from pipeline.export import Choice, OptOuts, export
from pipeline.release import Release
from pipeline.shards import validate
from pipeline.storage import Store
from tests.hub import TOKEN, Hub
from tests.pipeline.test_release import TWENTY, release_of, rows_of

REPO = "someone/music"
SHOWN = {
    "name": "x", "source_id": "x", "url": "https://example.org/dropped", "title": "x", "category": "promo",
    "start_s": 0.0, "end_s": 1.0, "reason": "speech", "sound": "data:audio/ogg;base64,T2dnUw==", "stem": "",
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """One with sound in its report; its first source has a channel."""
    rows = [dataclasses.replace(row, channel="Some Label" * (i < 2)) for i, row in enumerate(rows_of(*TWENTY))]
    exhibits = {"sources": 1, "stretches": [SHOWN], "scores": {}}
    return release_of(Store(tmp_path_factory.mktemp("data")), rows, exhibits=lambda: exhibits)


@pytest.fixture
def near(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The stand-in for commands in this process, where huggingface_hub may have read its variables already."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def push(folder: str | Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["push", str(folder), "--repo", REPO, *more])


def test_a_release_is_on_the_hub_as_it_is_here_but_for_its_sound(hub: Hub, release: Release, tmp_path: Path) -> None:
    folder = Path(release.path)
    assert "data:audio" in (folder / "report.html").read_text()
    command = [sys.executable, "-m", "flows", "push", str(folder), "--repo", REPO, "--private"]
    variables = {**os.environ, **hub.environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"{hub.address}/datasets/{REPO}/commit/")
    assert "report.html went without its sound" in done.stdout
    assert hub.private == {REPO: True}
    there = hub.files[REPO]
    here = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert there.keys() == here.keys()
    assert [name for name in here if there[name] != here[name]] == ["report.html"]
    assert b"data:audio" not in there["report.html"] and b"https://example.org/dropped" in there["report.html"]
    for name, content in there.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert validate(tmp_path).problems == (), "who downloads it can check it"


def test_sound_goes_along_where_a_flag_says_so_and_rows_of_an_older_release_go(near: Hub, release: Release) -> None:
    old = {"train-00007-of-00008.parquet": b"rows that were taken down", "changes.jsonl": b"{}", "LICENSE": b"mine"}
    near.files[REPO] = {**old, ".gitattributes": b""}
    done = push(release.path, "--with-previews")
    assert done.exit_code == 0, done.output
    there = near.files[REPO]
    assert there["report.html"] == (Path(release.path) / "report.html").read_bytes()
    assert old.keys() & there.keys() == {"LICENSE"} and ".gitattributes" in there


@pytest.mark.parametrize("form", ["hf", "webdataset", "fiftyone"])
def test_what_opted_out_is_not_pushed(near: Hub, release: Release, tmp_path: Path, form: Any) -> None:
    listed = tmp_path / "out.txt"
    listed.write_text("some LABEL\nhttps://nobody.example/1\n")
    whole, part = tmp_path / "whole", tmp_path / "part"
    export(release.path, whole, form, Choice())
    done = push(whole, "--opt-out", str(listed))
    assert (done.exit_code, near.files) == (2, {})
    assert "(some LABEL); nothing was uploaded" in done.stderr
    export(release.path, part, form, Choice(opted_out=OptOuts(["some LABEL"])))
    done = push(part, "--opt-out", str(listed))
    assert done.exit_code == 0, done.stderr
    assert "named by 'some LABEL'" in done.stderr and "named by 'https://nobody.example/1'" in done.stderr
    assert "README.md" in near.files[REPO]


def test_a_release_whose_report_shows_what_opted_out_is_not_pushed(near: Hub, release: Release, tmp_path: Path) -> None:
    listed = tmp_path / "out.txt"
    listed.write_text("HTTPS://Example.org:443/dropped#t=10\n")
    done = push(release.path, "--opt-out", str(listed))
    assert (done.exit_code, near.files) == (2, {})
    assert "a source that report.html shows" in done.stderr


def test_what_is_damaged_or_no_release_or_refused_is_said_in_one_message(
    near: Hub, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media/a.mp4").write_bytes(b"media")
    copy = tmp_path / "copy"
    export(release.path, copy, "hf", Choice())
    (copy / "manifest.json").write_text(json.dumps(release.manifest))
    for folder, said in (
        (tmp_path, "is neither a release nor an export"),
        (tmp_path / "nowhere", "There is no folder"),
        (copy, "is damaged: "),
    ):
        done = push(folder)
        assert (done.exit_code, said in done.stderr) == (2, True), done.output
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = push(release.path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for done in (refused, push(release.path), CliRunner().invoke(app, ["push", release.path, "--repo", "a/b/c"])):
        assert (done.exit_code, "The Hub didn't take" in done.stderr) == (2, True), done.output
    assert near.files == {}


def test_no_export_has_the_report_or_its_sound(release: Release, tmp_path: Path) -> None:
    for form in ("hf", "webdataset", "fiftyone"):
        export(release.path, tmp_path / form, form, Choice())  # type: ignore[arg-type]
        files = [path for path in (tmp_path / form).rglob("*") if path.is_file()]
        assert files and all(b"data:audio" not in path.read_bytes() for path in files)
        assert not [path for path in files if path.suffix == ".html"]
