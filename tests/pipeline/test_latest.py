"""`releases/latest` where a person names a release."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from model.data import open_release
from pipeline.errors import ShardError
from pipeline.shards import release_folder
from pipeline.storage import Store
from tests.model.releases import toy_release


def test_latest_stands_for_the_release_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy_release(tmp_path)
    monkeypatch.chdir(folder.parent)
    assert release_folder(f"{folder.parent}/latest/") == str(folder)
    assert release_folder("latest") == folder.name
    assert release_folder(folder) == str(folder)
    assert open_release(folder.parent / "latest").path == folder
    Store("memory://latest-data").write_text("releases/latest", "r-1\n")
    Store("memory://latest-data/releases/r-1")
    assert release_folder("memory://latest-data/releases/latest") == "memory://latest-data/releases/r-1"


def test_a_folder_called_latest_is_itself(tmp_path: Path) -> None:
    folder = toy_release(tmp_path)
    copy = folder.rename(tmp_path / "latest")
    assert open_release(copy).path == copy


@pytest.mark.parametrize("named", ["r-0123456789ab", "../releases", ""])
def test_latest_that_names_nothing_here_is_refused_by_every_command(tmp_path: Path, named: str) -> None:
    folder = toy_release(tmp_path)
    latest = folder.parent / "latest"
    latest.write_text(named)
    for command in (
        ["validate", latest],
        ["diff", latest, folder],
        ["export", latest, "-o", tmp_path / "out"],
        ["push", latest, "--repo", "a/b"],
        ["rebuild", latest, "--data", tmp_path / "anew"],
        ["train", latest, "--preset", "nano", "--out", tmp_path / "run"],
    ):
        done = CliRunner().invoke(app, [*map(str, command)])
        assert done.exit_code == 2
        assert f"{latest} names the release {named!r}, which is not there." in done.output
    assert not (tmp_path / "run").exists()


def test_commands_follow_latest(tmp_path: Path) -> None:
    folder = toy_release(tmp_path)
    latest = str(folder.parent / "latest")
    for command, said in (
        (["validate", latest], "5 shards, 24 rows, all good"),
        (["diff", latest, str(folder)], f"{folder.name} -> {folder.name}"),
        (["export", latest, "-o", str(tmp_path / "out")], "24 clips"),
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert said in done.output


def test_what_is_no_pointer_is_said_to_be_no_release(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="latest is not a release"):
        open_release(tmp_path / "latest")
