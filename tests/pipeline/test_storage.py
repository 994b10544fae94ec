"""Stores: files appear whole or not at all, locally and behind fsspec."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from pipeline.errors import DvmsetError, SettingsError
from pipeline.storage import Store, digest, file_digest, local_folder


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
    (tmp_path / "media" / ".tmp-job" / ".tmp-123-y-film.mp4").write_text("half")
    store.sweep()
    assert store.names() == ["kept.txt", "media"]
    assert list((tmp_path / "media").iterdir()) == []


def test_sweep_of_a_shared_folder_leaves_what_was_touched_lately(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, young = tmp_path / ".tmp-1-x", tmp_path / ".tmp-2-x"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    store.sweep(idle_s=3600)
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


def test_copies_of_a_killed_process_are_swept_and_those_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = f"""
import os, signal
from pipeline.storage import Store
store = Store("memory://{tmp_path.name}")
with store.write("film.mp4") as path:
    path.write_bytes(bytes(1000))
with store.read("film.mp4"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob("*.mp4")] == ["film.mp4"]
    store = Store(f"memory://{tmp_path.name}")
    store.write_text("here", "in use")
    with store.read("here") as path:
        store.sweep()
        assert list(tmp_path.rglob("*")) == [path.parent, path]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_lies_elsewhere_is_copied(store: Store) -> None:
    store.write_text("r/a.txt", "a")
    store.write_text("r/b.txt", "b")
    with local_folder(store.url("r")) as folder:
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "a", "b.txt": "b"}
    with local_folder(store.url("none")) as folder:
        assert not folder.exists()


def test_a_url_that_nothing_knows_is_told() -> None:
    with pytest.raises(SettingsError, match="can't be a data folder"):
        Store("nonsense://x")


@pytest.fixture
def no_clients() -> Iterator[None]:
    """None of the S3 clients that fsspec remembers, with the credentials of whoever made them; before and after."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_without_credentials_is_told(
    no_clients: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DvmsetError, match="can't be a data folder: Unable to locate credentials"):
        Store("s3://bucket-of-nobody/data")
    with (
        pytest.raises(DvmsetError, match="can't be read: Unable to locate credentials"),
        local_folder("s3://bucket-of-nobody/release"),
    ):
        pass


def test_digest_depends_on_values_not_on_order() -> None:
    assert digest({"a": 1, "b": [1.5]}) == digest({"b": [1.5], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(float("nan"))


def test_file_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc").startswith("ba7816bf8f01cfea")
