"""Stores: files appear whole or not at all, locally and behind fsspec."""

from pathlib import Path

import pytest

from pipeline.storage import Store, digest, file_digest


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / "data" if request.param == "folder" else f"memory://{tmp_path.name}")


def test_a_written_file_can_be_read_back(store: Store) -> None:
    with store.write("a/b.bin") as path:
        path.write_bytes(b"whole")
    with store.read("a/b.bin") as path:
        assert path.read_bytes() == b"whole"
    assert store.names("a") == ["b.bin"]


def test_a_write_that_fails_leaves_what_was_there(store: Store) -> None:
    store.write_text("a/b.txt", "old")
    with pytest.raises(RuntimeError), store.write("a/b.txt") as path:
        path.write_text("half")
        raise RuntimeError
    assert store.read_text("a/b.txt") == "old"
    assert store.names("a") == ["b.txt"]


def test_sweep_removes_only_what_an_interrupted_write_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_text("kept.txt", "x")
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / ".tmp-123-x-film.mp4").write_text("half")
    (tmp_path / "media" / ".tmp-job").mkdir()
    (tmp_path / "media" / ".tmp-job" / "film.mp4.part").write_text("half")
    store.sweep()
    assert store.names() == ["kept.txt", "media"]
    assert list((tmp_path / "media").iterdir()) == []


def test_digest_depends_on_values_not_on_order() -> None:
    assert digest({"a": 1, "b": [1.5]}) == digest({"b": [1.5], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(float("nan"))


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc").startswith("ba7816bf8f01cfea")
