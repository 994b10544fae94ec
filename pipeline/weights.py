"""Where the models' weights lie, on this machine or on a hub, and the digests that name them. Loads no model library.

A model is named `random:NAME` (seeded random numbers), `bundled:NAME` (`NAME.safetensors` in `pipeline/nano`, or in
`model/nano` for VidMusician's parts), or as its library names it. Weights from a hub are looked for in `folder()`, then
in the hub's own cache, then fetched. Only safetensors files are read: they hold no code.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from socket import gaierror
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from pipeline.errors import MissingWeights, SettingsError
from pipeline.storage import digest, file_digest

BUNDLED = Path(__file__).with_name("nano")
SEED = 0  # of all `random:NAME` weights
_AGAIN = "Fetch or make it again."
RANDOM_LICENCE = "Apache-2.0 (seeded random numbers, not trained)"


def kind_and_name(model: str) -> tuple[str, str]:
    """(`random`, `bundled` or, for a name of the model's library, nothing; the name)."""
    kind, colon, name = model.partition(":")
    if not colon:
        return "", model
    if kind not in ("random", "bundled"):
        raise SettingsError(f"No kind of weights {kind!r} in {model!r}.", hint="Use random:NAME or bundled:NAME.")
    return kind, name


def folder() -> Path:
    """Where weights are put by hand: `$DVMSET_WEIGHTS`, else `dvmset/weights` in the user's cache folder."""
    if place := os.environ.get("DVMSET_WEIGHTS"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvmset" / "weights"


def bundled(name: str, place: Path | None = None) -> Path:
    """The file of `bundled:NAME`.

    Args:
        name: without its ending.
        place: the folder it lies in; None is `pipeline/nano`.

    Raises:
        MissingWeights: no weights of that name come with dvmset.
    """
    place = place or BUNDLED
    path = place / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in place.glob("*.safetensors"))) or "none"
        raise MissingWeights(f"No bundled weights {name!r} ({path}).", hint=f"Bundled are: {names}.")
    return path


def given(path: str) -> Path:
    """A weights file the settings name.

    Raises:
        MissingWeights: it isn't there, or isn't safetensors.
    """
    place = Path(path).expanduser()
    if place.suffix != ".safetensors":
        raise MissingWeights(f"{path} is not a safetensors file.", hint="Convert it: other formats can hold code.")
    if not place.is_file():
        raise MissingWeights(f"No weights file {path}.", hint="Mend the path in the profile.")
    return place


def from_hub(repo: str, name: str, *, download: bool = True) -> Path:
    """A file of a Hugging Face repository.

    Args:
        repo: `owner/name`.
        name: the file in it.
        download: fetch it where it isn't on this machine yet.

    Raises:
        MissingWeights: it isn't on this machine and wasn't or couldn't be fetched.
    """
    place = folder() / repo / name
    if place.is_file():
        return place
    # Asked first: the hub's client would otherwise check the network even for a file it has.
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(repo, name), str):
        return Path(cached)
    reason = "it is not on this machine"
    if download:
        from huggingface_hub import constants
        from huggingface_hub.errors import HFValidationError

        try:
            if not constants.HF_HUB_OFFLINE:
                _reach(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)
            return Path(hf_hub_download(repo, name))
        except (OSError, HFValidationError) as error:  # the hub's network and HTTP errors are OSErrors
            reason = str(error).strip().splitlines()[0]
    raise MissingWeights(
        f"Weights {name} of {repo} are missing: {reason}",
        hint=f"Let this machine reach huggingface.co, or fetch the file elsewhere and put it at {place}; "
        "`dvmset doctor` checks it. Profile and preset nano need no hub.",
    )


def check(path: Path) -> None:
    """Looks whether a file of weights, or of what describes them, is whole, as far as can be told without the tensors.

    Raises:
        MissingWeights: it isn't.
    """
    try:
        match path.suffix:
            case ".safetensors":
                _check_tensors(path)
            case ".json":
                _check_json(path)
            case ".bin" if not zipfile.is_zipfile(path):  # its list of contents stands at the end
                raise MissingWeights(f"{path} is not a whole file of torch's.", hint=_AGAIN)
    except OSError as error:
        raise MissingWeights(f"{path} can't be read: {error.strerror}.", hint=_AGAIN) from error


def header(path: Path) -> dict[str, str]:
    """The metadata that a safetensors file carries in its header (8 bytes of length, then JSON).

    Raises:
        MissingWeights: the file is damaged or carries none.
    """
    try:
        return dict(_head(path)[0]["__metadata__"])
    except (ValueError, LookupError, TypeError) as error:
        raise MissingWeights(f"{path} is not a whole safetensors file.", hint=_AGAIN) from error


def fill(model: Any, path: Path) -> None:
    """Loads a safetensors file into a torch module that it has to fit exactly.

    Raises:
        MissingWeights: it doesn't.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise MissingWeights(f"{path} does not fit the model: {error}", hint=_AGAIN) from error


def digest_of_file(path: Path) -> str:
    """SHA-256 of a weights file; computed once per process as long as the file doesn't change."""
    status = path.stat()
    return _file_digest(path, status.st_mtime_ns, status.st_size)


def digest_of_random(geometry: Mapping[str, Any], *libraries: str) -> str:
    """Names seeded random weights without making them: their geometry, seed and the libraries that draw them."""
    return digest({"geometry": dict(geometry), "seed": SEED, "libraries": {n: version(n) for n in sorted(libraries)}})


def device(setting: str) -> str:
    """The torch device meant by a `device` setting: `auto` is CUDA where there is one, else the CPU.

    Raises:
        SettingsError: torch knows no such device, or this machine has none.
    """
    import torch

    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=setting).item()  # also refuses `meta`, which holds no numbers
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        raise SettingsError(f"torch can't compute on {setting!r} here.", hint="Use auto, cpu or cuda.") from error
    return setting


def _head(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, names and where their tensors lie, and where it ends.

    Raises:
        ValueError, TypeError: it has none.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("cut short")
        return dict(json.loads(file.read(size))), 8 + size


def _check_tensors(path: Path) -> None:
    damaged = MissingWeights(f"{path} is not a whole safetensors file.", hint=_AGAIN)
    try:
        head, begin = _head(path)
        ends = [entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"]
        if begin + max(ends) != path.stat().st_size:
            raise damaged
    except (ValueError, LookupError, TypeError) as error:
        raise damaged from error


def _check_json(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MissingWeights(f"{path} is not JSON: {error}.", hint=_AGAIN) from error
    if not isinstance(found, dict):
        raise MissingWeights(f"{path} does not describe a model.", hint=_AGAIN)


@lru_cache(maxsize=4)
def _reach(hub: str, timeout_s: float) -> None:
    """Asks a hub for anything at all, once in a process: its client tries for minutes to reach one that isn't there.

    Raises:
        OSError: there is no way to it. Any answer will do, bad ones are for the client to judge.
    """
    try:
        urlopen(Request(hub, method="HEAD"), timeout=timeout_s).close()
    except URLError as error:
        if isinstance(error.reason, gaierror | ConnectionError | TimeoutError):
            raise ConnectionError(f"{hub} can't be reached ({error.reason}).") from error
    except (OSError, HTTPException):
        return


@lru_cache(maxsize=16)
def _file_digest(path: Path, _mtime_ns: int, _size: int) -> str:
    return file_digest(path)
