"""A whole release under `validate`: whatever file of it is damaged, missing, older or changed by hand is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.card import render_card
from pipeline.faces import SILENT, without_sound
from pipeline.release import Release
from pipeline.shards import validate
from pipeline.storage import Store, digest
from tests.pipeline.test_release import TWENTY, release_of, rows_of

SHARD = "train-00001-of-00004.parquet"


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, Release]:
    """One, and the next, which has changes."""
    store = Store(tmp_path_factory.mktemp("data"))
    return release_of(store, rows_of(*TWENTY)), release_of(store, rows_of(*TWENTY[1:], "newcomer"))


@pytest.fixture
def folder(releases: tuple[Release, Release], tmp_path: Path) -> Path:
    """A copy of the second."""
    return Path(shutil.copytree(releases[1].path, tmp_path / "release"))


def problems(folder: Path) -> list[tuple[str, str]]:
    return [(problem.file, problem.why) for problem in validate(folder).problems]


def test_the_manifest_has_a_digest_of_every_other_file(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    named = {*manifest["files"], *manifest["faces"], *(entry["name"] for entry in manifest["shards"]), "manifest.json"}
    assert named == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert problems(folder) == []


@pytest.mark.parametrize("name", ["sources.jsonl", "changes.jsonl", "preview/preview.parquet", SHARD])
def test_one_flipped_byte_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[40] ^= 1
    (folder / name).write_bytes(content)
    assert {file for file, _ in problems(folder)} == {name}
    assert "SHA-256" in problems(folder)[0][1]


@pytest.mark.parametrize(
    "name", ["sources.jsonl", "changes.jsonl", "README.md", "croissant.json", "report.html", SHARD, "manifest.json"]
)
def test_what_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in {file for file, _ in problems(folder)}
    if name != "manifest.json":
        assert problems(folder) == [(name, "is in the manifest, but not in the folder")]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("README.md", lambda text: text.replace("600.000", "900.000")),
        ("croissant.json", lambda text: text.replace("600.000", "900.000")),
        ("report.html", lambda text: text.replace("600.000", "900.000")),
        ("README.md", lambda text: text + "\nAnd more.\n"),
    ],
)
def test_a_figure_changed_by_hand_is_named(folder: Path, name: str, change: Callable[[str], str]) -> None:
    before = (folder / name).read_text()
    (folder / name).write_text(change(before))
    assert (folder / name).read_text() != before
    assert problems(folder) == [(name, "has been changed since it was made from the manifest")]


def test_a_card_older_than_its_manifest_is_named(folder: Path, releases: tuple[Release, Release]) -> None:
    shutil.copy(Path(releases[0].path) / "README.md", folder)
    said = "was made from another manifest than the one beside it, so its figures may be others"
    assert problems(folder) == [("README.md", said)]


def test_a_manifest_edited_by_hand_is_named_and_one_whose_digest_was_mended_disowns_its_faces(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["funnel"]["fetched"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert problems(folder) == [("manifest.json", "has been changed by hand: its digest isn't that of its content")]
    manifest["digest"] = digest({key: value for key, value in manifest.items() if key != "digest"})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert [file for file, _ in problems(folder)] == ["README.md", "croissant.json", "report.html"]


@pytest.mark.parametrize("broken", ['{"shards": 3}', "[]", "null", "{", '{"shards": [], "files": {"x": 1}}', "\xff"])
def test_what_is_no_manifest_is_said_to_be_none(folder: Path, broken: str) -> None:
    (folder / "manifest.json").write_bytes(broken.encode("latin-1"))
    ((file, why),) = problems(folder)
    assert (file, why.partition(":")[0]) == ("manifest.json", "can't be read as a manifest")


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("id", None, "its id can't be null"),
        ("splits", 3, "its splits can't be 3"),
        ("splits", {"train": {}}, "train has no clips in it"),
        ("shards", {}, "its shards can't be {}"),
        ("shards", [3], "one of its shards has no name, split"),
        ("settings", {}, "its settings have no digest"),
        ("files", None, "its files can't be null"),
        ("files", {"../list.txt": {"sha256": ""}}, "'../list.txt' is no file of a release"),
        ("files", {"/etc/passwd": {"sha256": ""}}, "'/etc/passwd' is no file of a release"),
        ("faces", 3, "its faces can't be 3"),
        ("provenance", [], "its provenance can't be []"),
    ],
)
def test_a_part_of_another_kind_is_named(folder: Path, part: str, value: Any, why: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, part: value}))
    ((file, said),) = problems(folder)
    assert file == "manifest.json" and said.startswith(f"can't be read as a manifest: {why}")
    for command in (["diff", str(folder), str(folder)], ["export", str(folder), "-o", str(folder.parent / "out")]):
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, isinstance(done.exception, SystemExit)) == (2, True)
        assert "can't be read" in done.stderr
    assert not (folder.parent / "out").exists()


def test_a_face_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"\xff\xfe" + (folder / "README.md").read_bytes())
    assert [file for file, _ in problems(folder)] == ["README.md"]


def test_a_report_is_the_same_without_its_sound(releases: tuple[Release, Release], tmp_path: Path) -> None:
    heard = {
        "name": "x", "source_id": "x", "url": "https://example.org/x", "title": "x", "category": "promo",
        "start_s": 0.0, "end_s": 1.0, "reason": "", "sound": "data:audio/ogg;base64,T2dnUw==", "stem": "",
    }  # fmt: skip
    exhibits = {"sources": 1, "stretches": [heard], "scores": {}}
    made = release_of(Store(tmp_path / "data"), rows_of("a"), exhibits=lambda: exhibits)
    folder = Path(made.path)
    page = (folder / "report.html").read_text()
    assert "data:audio/ogg" in page
    (folder / "report.html").write_text(without_sound(page))
    silent = (folder / "report.html").read_text()
    assert "data:audio" not in silent and SILENT in silent
    assert problems(folder) == []
    assert (folder / "README.md").read_text() == render_card(made.manifest)


def test_lists_beside_the_shards_are_no_part_of_a_releases_id(tmp_path: Path) -> None:
    first = release_of(Store(tmp_path / "a"), rows_of(*TWENTY[:3]))
    release_of(Store(tmp_path / "b"), rows_of(*TWENTY[3:5]))
    second = release_of(Store(tmp_path / "b"), rows_of(*TWENTY[:3]))
    assert second.id == first.id and second.manifest["files"] != first.manifest["files"]
    assert not release_of(Store(tmp_path / "b"), rows_of(*TWENTY[:3])).changed
