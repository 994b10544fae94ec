"""Stems: Demucs over audio of any length, in overlapping chunks, in memory that doesn't grow with the length.

Weights are safetensors whose header says which demucs class they belong to and with which arguments (`klass`, `args`,
`kwargs` as JSON), as demucs 4.1 publishes them. They come from one of three places:

- `bundled:NAME` is `pipeline/nano/NAME.safetensors`;
- a model name such as `htdemucs` is looked for in `$DVMSET_WEIGHTS/demucs/NAME/` (by default
  `~/.cache/dvmset/weights/demucs/NAME/`), as `NAME.yaml` and one `SIGNATURE.safetensors` for each model it lists;
- what is not there is fetched by the Hugging Face hub client into its own cache.

The older `.th` packages are pickles, which can run code when they are loaded; they are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from pipeline.config import SeparateSettings
from pipeline.errors import MissingWeights
from pipeline.storage import file_digest

if TYPE_CHECKING:
    from demucs.apply import BagOfModels
    from demucs.demucs import Demucs
    from demucs.hdemucs import HDemucs
    from demucs.htdemucs import HTDemucs

BUNDLED = Path(__file__).with_name("nano")
_CLASSES = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs")
_OVERLAP = 0.25
"""Share of a model segment that overlaps the next one inside a chunk: demucs' own default."""


class Separator:
    """A Demucs model (or bag of them) that takes audio block by block.

    Args:
        model: a demucs model or bag; moved to the device of the settings.
        model_id: what records call it.
        digest: of its weights.
        settings: chunk and context length, device.

    Attributes:
        sources: names of the stems, in the order in which `stream` gives them.
        rate: sample rate of blocks and stems, Hz.
        channels: of blocks and stems.
    """

    def __init__(self, model: HTDemucs | BagOfModels, model_id: str, digest: str, settings: SeparateSettings) -> None:
        import torch

        self.id, self.digest = model_id, digest
        self.sources: tuple[str, ...] = tuple(model.sources)
        self.rate: int = int(model.samplerate)
        self.channels: int = int(model.audio_channels)
        self._chunk = round(settings.chunk_s * self.rate)
        self._context = round(settings.context_s * self.rate)
        name = settings.device
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
        self._model = model.to(self._device).eval()

    def stream(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Separates consecutive blocks.

        Args:
            blocks: [C, n] float32 at `rate`, of any sizes: the result doesn't depend on them.

        Yields:
            [S, C, m] float32: consecutive, together as long as the blocks.

        The audio is separated in chunks of `chunk_s` with `context_s` more on both sides. Neighbours so share
        2 x `context_s`, over which they fade into one another (linearly; the gains sum to one). Held at a time: one
        chunk with its contexts and the shared end of the one before.
        """
        chunk, context = self._chunk, self._context
        held = np.zeros((self.channels, 0), np.float32)
        shared: np.ndarray | None = None  # the end of the chunk before, already faded out: [S, C, 2 x context]
        rise = (np.arange(2 * context, dtype=np.float32) + 0.5) / max(1, 2 * context)
        at_start = True

        def finish(piece: np.ndarray, ends: bool) -> np.ndarray:
            nonlocal shared
            stems = self._separate(piece)
            if shared is not None:
                stems[..., : 2 * context] = stems[..., : 2 * context] * rise[: stems.shape[-1]] + shared
            if ends:
                return stems
            shared = stems[..., stems.shape[-1] - 2 * context :] * (1 - rise)
            return stems[..., : stems.shape[-1] - 2 * context]

        for block in blocks:
            held = np.concatenate([held, np.asarray(block, np.float32)], axis=1)
            # The first chunk has no audio before it. A chunk is taken only when more follows its right context by
            # at least another context, so that the last one is never shorter than what it shares.
            while held.shape[1] >= (need := chunk + (1 if at_start else 2) * context) + context:
                yield finish(held[:, :need], ends=False)
                held = held[:, need - 2 * context :].copy()
                at_start = False
        if held.shape[1]:
            yield finish(held, ends=True)

    def _separate(self, audio: np.ndarray) -> np.ndarray:
        """[C, n] -> [S, C, n]. Digital silence has silent stems; the model is not asked."""
        if not audio.any():
            return np.zeros((len(self.sources), *audio.shape), np.float32)
        import torch
        from demucs.apply import apply_model

        mix = torch.from_numpy(np.ascontiguousarray(audio))[None]
        stems = apply_model(self._model, mix, shifts=0, split=True, overlap=_OVERLAP, device=self._device)
        return stems[0].numpy()


@lru_cache(maxsize=2)
def load_separator(settings: SeparateSettings) -> Separator:
    """The separator of these settings, kept in memory.

    Raises:
        MissingWeights: a file is neither on disk nor reachable, or is not what it should be.
    """
    from demucs.apply import BagOfModels

    files = weight_files(settings.model)
    if settings.model.startswith("bundled:"):
        model: HTDemucs | BagOfModels = load_weights(files[0])
    else:
        bag = _read_bag(files[0])
        models: list[Demucs | HDemucs | HTDemucs] = [load_weights(path) for path in files[1:]]
        model = BagOfModels(models, bag.get("weights"), bag.get("segment"))
    return Separator(model, settings.model, weights_digest(settings), settings)


def licence(settings: SeparateSettings) -> str:
    """Of the weights: Demucs states MIT for its own; bundled ones are ours."""
    return "Apache-2.0" if settings.model.startswith("bundled:") else "MIT"


def weights_digest(settings: SeparateSettings) -> str:
    """SHA-256 over the digests of the model's files; reads them, but loads no model.

    Raises:
        MissingWeights: a file is neither on disk nor reachable.
    """
    digests = [_digest(path, path.stat().st_mtime_ns) for path in weight_files(settings.model)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@cache
def _digest(path: Path, _modified: int) -> str:
    return file_digest(path)


def weights_folder() -> Path:
    """Where weights put down by hand are looked for: `$DVMSET_WEIGHTS`, by default `~/.cache/dvmset/weights`."""
    if folder := os.environ.get("DVMSET_WEIGHTS"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvmset" / "weights"


def weight_files(model: str, *, download: bool = True) -> tuple[Path, ...]:
    """The files of a model: the one bundled file, or the bag's YAML and then its models in order.

    Args:
        model: as `SeparateSettings.model`.
        download: ask the hub for what is not on disk.

    Raises:
        MissingWeights: names the first file that is neither on disk nor reachable, and its place.
    """
    if model.startswith("bundled:"):
        path = BUNDLED / f"{model.removeprefix('bundled:')}.safetensors"
        if not path.is_file():
            raise MissingWeights(
                f"No bundled separator {path.name} in {BUNDLED}.",
                hint="Make it with `python -m pipeline.nano.separator`, or choose another separate.model.",
            )
        return (path,)
    if not model.replace("_", "").isalnum():
        raise MissingWeights(
            f"{model!r} is no demucs model.", hint="Set separate.model to a name like htdemucs, or bundled:separator."
        )
    bag = _weight_file(model, f"{model}.yaml", download)
    return (bag, *(_weight_file(model, f"{name}.safetensors", download) for name in _read_bag(bag)["models"]))


def hub_repository(model: str) -> str:
    """The Hugging Face repository demucs publishes a model in; the rule of `demucs.hf`, which would import torch."""
    if model == "htdemucs":
        return "adefossez/HTDemucs"
    if model.startswith("htdemucs_"):
        return f"adefossez/HTDemucs-{model.removeprefix('htdemucs_')}"
    return f"adefossez/Demucs-{model}"


def _weight_file(model: str, name: str, download: bool) -> Path:
    """A file of a demucs model: from the weights folder, else from the Hugging Face cache or hub."""
    folder = weights_folder() / "demucs" / model
    if (folder / name).is_file():
        return folder / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = hub_repository(model)
    try:
        return Path(hf_hub_download(repository, name, local_files_only=not download))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = f"could not be fetched from {repository} on the Hugging Face hub" if download else "not in its cache"
        pickles = sorted(p.name for p in folder.glob("*.th"))
        refused = f" {', '.join(pickles)} there is a pickle, which could run code, and is not read." if pickles else ""
        raise MissingWeights(
            f"The separator {model} needs {name}: it is not in {folder} and {reason}.{refused}",
            hint=f"Put {name} of {repository} into {folder} ($DVMSET_WEIGHTS moves that folder) and check with "
            "`dvmset doctor`; or use the nano profile, which needs no download.",
        ) from error


def _read_bag(path: Path) -> dict[str, Any]:
    """`models`: signatures; `weights`: optional gains per model and source; `segment`: optional override, seconds."""
    bag = yaml.safe_load(path.read_text())
    names = bag.get("models") if isinstance(bag, dict) else None
    if not names or not all(isinstance(name, str) and name.isalnum() for name in names):
        raise MissingWeights(f"{path} is not a list of demucs models.", hint="Fetch or copy it again.")
    return bag


def load_weights(path: Path) -> HTDemucs:
    """A demucs model from a safetensors file whose header names its class and arguments; weights as float32.

    Does what `demucs.hf.load_safetensors_model` does, but builds only demucs' own classes: the header of a file from
    outside must not name any function of Python.

    Raises:
        MissingWeights: the header or the weights are not those of a demucs model.
    """
    import importlib

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a mapping)
    except SafetensorError as error:
        raise MissingWeights(f"{path} is not a safetensors file: {error}.", hint="Fetch or copy it again.") from error
    if header.get("klass") not in _CLASSES or "structure" in header:
        raise MissingWeights(
            f"{path} does not hold a plain demucs model (its header names {header.get('klass')!r}).",
            hint="Quantised models are not supported; use htdemucs, htdemucs_ft or bundled:separator.",
        )
    module, name = header["klass"].rsplit(".", 1)
    try:
        args, kwargs = (_decode(json.loads(header[key])) for key in ("args", "kwargs"))
        model = getattr(importlib.import_module(module), name)(*args, **kwargs)
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise MissingWeights(f"The weights in {path} don't fit their header: {error}", hint="Copy it again.") from error
    return model.eval()


def _decode(value: Any) -> Any:
    """JSON of demucs' constructor arguments: fractions (the segment length) are objects with `_type`."""
    if isinstance(value, dict):
        if value.get("_type") == "fraction":
            return Fraction(value["numerator"], value["denominator"])
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value
