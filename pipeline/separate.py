"""Stems: Demucs over audio of any length, in overlapping chunks, in memory that doesn't grow with the length.

Weights are safetensors whose header names a demucs class and its arguments (`klass`, `args`, `kwargs` as JSON), as
demucs 4.1 publishes them. `bundled:NAME` is one such file; a model name such as `htdemucs` is a repository with
`NAME.yaml` and a `SIGNATURE.safetensors` for each model the YAML lists (`weights.py` says where they are looked for).
The older `.th` packages are pickles, which can run code when they are loaded; they are refused.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from pipeline import weights
from pipeline.config import SeparateSettings
from pipeline.errors import MissingWeights, SettingsError
from pipeline.storage import digest

if TYPE_CHECKING:
    from demucs.apply import BagOfModels
    from demucs.demucs import Demucs
    from demucs.hdemucs import HDemucs
    from demucs.htdemucs import HTDemucs

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
        self.id, self.digest = model_id, digest
        self.sources: tuple[str, ...] = tuple(model.sources)
        self.rate: int = int(model.samplerate)
        self.channels: int = int(model.audio_channels)
        self._chunk = round(settings.chunk_s * self.rate)
        self._context = round(settings.context_s * self.rate)
        self._device = weights.device(settings.device)
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

    files = weights_paths(settings)
    if len(files) == 1:
        model: HTDemucs | BagOfModels = load_weights(files[0])
    else:
        bag = _read_bag(files[0])
        models: list[Demucs | HDemucs | HTDemucs] = [load_weights(path) for path in files[1:]]
        model = BagOfModels(models, bag.get("weights"), bag.get("segment"))
    return Separator(model, settings.model, weights_digest(settings), settings)


def weights_digest(settings: SeparateSettings, *, download: bool = True) -> str:
    """SHA-256 that names the model's weights; computed from its files, without torch.

    Raises:
        MissingWeights: a file is neither here nor, with `download`, reachable.
    """
    return digest([weights.digest_of_file(path) for path in weights_paths(settings, download=download)])


def licence(settings: SeparateSettings) -> str:
    """The licence of the model's weights, for the data card; without torch."""
    kind, name = weights.kind_and_name(settings.model)
    if kind == "bundled":
        return weights.header(weights.bundled(name))["licence"]
    return f"as stated by {_repository(name)} on the Hugging Face hub"


def weights_paths(settings: SeparateSettings, *, download: bool = True) -> tuple[Path, ...]:
    """The files of the model: the bundled one, or the YAML and then the models it lists.

    Raises:
        MissingWeights: one is neither here nor, with `download`, reachable.
    """
    kind, name = weights.kind_and_name(settings.model)
    if kind == "bundled":
        return (weights.bundled(name),)
    if kind or not name.replace("_", "").isalnum():
        raise SettingsError(
            f"{settings.model!r} is no separator.", hint="Set separate.model to bundled:separator or htdemucs."
        )
    bag = _from_hub(name, f"{name}.yaml", download)
    return (bag, *(_from_hub(name, f"{signature}.safetensors", download) for signature in _read_bag(bag)["models"]))


def _from_hub(model: str, name: str, download: bool) -> Path:
    repository = _repository(model)
    try:
        return weights.from_hub(repository, name, download=download)
    except MissingWeights as error:
        pickles = sorted(path.name for path in (weights.folder() / repository).glob("*.th"))
        if not pickles:
            raise
        refused = f"{', '.join(pickles)} beside it is a pickle, which could run code, and is not read."
        raise MissingWeights(f"{error.message} {refused}", hint=error.hint) from error


def _repository(model: str) -> str:
    """The Hugging Face repository of a demucs model: the rule of `demucs.hf`, which would import torch."""
    if model == "htdemucs":
        return "adefossez/HTDemucs"
    if model.startswith("htdemucs_"):
        return f"adefossez/HTDemucs-{model.removeprefix('htdemucs_')}"
    return f"adefossez/Demucs-{model}"


def _read_bag(path: Path) -> dict[str, Any]:
    """`models`: signatures; `weights`: optional gains per model and source; `segment`: optional override, seconds.

    Raises:
        MissingWeights: the file is damaged.
    """
    again = "Fetch or copy it again."
    try:
        bag = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise MissingWeights(f"{path} can't be read: {error}.", hint=again) from error
    names = bag.get("models") if isinstance(bag, dict) else None
    if not isinstance(names, list) or not names or not all(str(name).isalnum() for name in names):
        raise MissingWeights(f"{path} is not a list of demucs models.", hint=again)
    return bag


def load_weights(path: Path) -> HTDemucs:
    """A demucs model from a safetensors file whose header names its class and arguments; weights as float32.

    Does what `demucs.hf.load_safetensors_model` does, but builds only demucs' own classes: the header of a file from
    outside must not name any function of Python.

    Raises:
        MissingWeights: the header or the weights are not those of a demucs model.
    """
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
