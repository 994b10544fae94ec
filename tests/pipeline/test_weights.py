"""Where weights lie."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline import weights
from pipeline.errors import MissingWeights, SettingsError
from tests.site import Site


def test_the_folder_is_a_setting_of_the_machine(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("DVMSET_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.folder() == tmp_path / "dvmset" / "weights"
    monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path / "here"))
    assert weights.folder() == tmp_path / "here"


def test_a_file_in_the_hubs_cache_is_used_without_asking_the_hub(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--model"
    file = repo / "snapshots" / "abc" / "model.safetensors"
    for path, text in ((repo / "refs" / "main", "abc"), (file, "weights")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert weights.from_hub("someone/model", "model.safetensors", download=False) == file


def test_a_hub_that_is_not_there_is_missed_at_once(tmp_path: Path, monkeypatch):
    def tries_for_minutes(repo: str, name: str) -> None:
        raise AssertionError

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # not listening: connections are refused
        hub = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("DVMSET_WEIGHTS", str(tmp_path))
        for name, value in (("ENDPOINT", hub), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", tries_for_minutes)
        with pytest.raises(MissingWeights, match=rf"of someone/model .*{hub} can't be reached") as caught:
            weights.from_hub("someone/model", "model.safetensors")
    assert str(tmp_path / "someone" / "model" / "model.safetensors") in caught.value.hint


def test_a_hub_that_answers_is_left_to_its_client(tmp_path: Path, monkeypatch):
    fetched = tmp_path / "fetched"
    with Site(tmp_path) as site:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", site.url("no-such-page"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: fetched)
        assert weights.from_hub("someone/model", "model.safetensors") == fetched


def test_a_header_is_read_without_the_tensors(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3)}, path, {"licence": "Apache-2.0"})
    assert weights.header(path) == {"licence": "Apache-2.0"}


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (4).to_bytes(8, "little") + b"[42]", b"\2" + bytes(7) + b"{}"])
def test_a_damaged_header_is_missing_weights(tmp_path: Path, content: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(MissingWeights, match="not a whole safetensors file"):
        weights.header(path)


@pytest.mark.parametrize("setting", ["foo", "cuda:99", "meta", "xla", ""])
def test_a_device_that_is_not_there_is_refused(setting: str):
    with pytest.raises(SettingsError, match=f"can't compute on '{setting}'") as caught:
        weights.device(setting)
    assert caught.value.hint == "Use auto, cpu or cuda."


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (weights.device("auto"), weights.device("cpu")) == ("cpu", "cpu")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.safetensors", b"", "is not a whole safetensors file"),
        ("a.safetensors", b"\xff" * 999, "is not a whole safetensors file"),
        ("a.safetensors", bytes([2]) + bytes(7) + b"{}", "is not a whole safetensors file"),
        ("a.json", b'{"sampling_rate": 32', "is not JSON"),
        ("a.json", b"\xff\xfe", "is not JSON"),
        ("a.json", b"[]", "does not describe a model"),
        ("a.bin", b"PK of no zip", "is not a whole file of torch's"),
    ],
)
def test_a_damaged_file_is_told_without_loading_it(tmp_path: Path, name: str, content: bytes, said: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MissingWeights, match=said) as caught:
        weights.check(path)
    assert str(path) in caught.value.message


def test_whole_files_pass_and_one_byte_less_does_not(tmp_path: Path):
    import torch

    tensors, package, config = tmp_path / "a.safetensors", tmp_path / "a.bin", tmp_path / "config.json"
    save_file({"a": np.zeros(3)}, tensors)
    torch.save({"a": torch.zeros(3)}, package)
    config.write_text("{}")
    for path in (tensors, package, config):
        weights.check(path)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(MissingWeights):
            weights.check(path)
    with pytest.raises(MissingWeights, match="can't be read: No such file"):
        weights.check(tmp_path / "b.safetensors")


def test_a_digest_follows_the_file(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    first = weights.digest_of_file(path)
    assert weights.digest_of_file(path) == first
    path.write_bytes(b"other")
    assert weights.digest_of_file(path) != first


def test_names_are_of_a_library_unless_they_say_otherwise():
    assert weights.kind_and_name("random:nano") == ("random", "nano")
    assert weights.kind_and_name("facebook/encodec_32khz") == ("", "facebook/encodec_32khz")
    with pytest.raises(SettingsError, match="sorcery"):
        weights.kind_and_name("sorcery:nano")


def test_a_given_file_has_to_be_there_and_harmless(tmp_path: Path):
    with pytest.raises(MissingWeights, match="No weights file"):
        weights.given(str(tmp_path / "a.safetensors"))
    with pytest.raises(MissingWeights, match="not a safetensors file"):
        weights.given(str(tmp_path / "a.pt"))


def test_bundled_weights_lie_in_the_folder_of_their_room(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(weights, "BUNDLED", tmp_path / "pipeline")
    for name in ("pipeline/codec", "model/backbone"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.safetensors").touch()
    assert weights.bundled("codec") == tmp_path / "pipeline" / "codec.safetensors"
    assert weights.bundled("backbone", tmp_path / "model").is_file()
    with pytest.raises(MissingWeights, match="No bundled weights 'codec'") as caught:
        weights.bundled("codec", tmp_path / "model")
    assert caught.value.hint == "Bundled are: backbone."
