"""A decoder's weights: from audiocraft's and transformers' checkpoints, in our own files, by seed; names in all ways.

The three naming schemes hold the same rows, cut differently: attention is fused, split or half split, the codebooks'
tables are one or several. `convert` goes from any of them to any other, exactly.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.decoder import GEOMETRIES, Decoder, Geometry
from pipeline import weights
from pipeline.errors import MissingWeights, SettingsError
from pipeline.storage import Store, digest

BUNDLED = Path(__file__).with_name("nano")
AUDIOCRAFT_FILE = "state_dict.bin"
TRANSFORMERS_FILES = ("model.safetensors", "model.safetensors.index.json")
MUSICGEN_LICENCE = "CC-BY-NC-4.0 (MusicGen's weights, Meta)"

T5_PREFIX = "t5."
"""What the names of a T5's weights begin with in a file of `save_backbone`."""

_DAMAGE = (
    KeyError, ValueError, RuntimeError, EOFError, FileNotFoundError, pickle.UnpicklingError, SafetensorError,
    yaml.YAMLError,
)  # fmt: skip

Scheme = Literal["ours", "audiocraft", "transformers"]
State = dict[str, Tensor]
Parts = dict[str, int]  # a name -> how many of its group's equal parts, row by row, it holds


@dataclass(frozen=True)
class Backbone:
    """A decoder and its weights.

    Attributes:
        decoder: in evaluation mode, float32, on the CPU.
        projection: MusicGen's linear from T5's width to D, `weight` [D, T5] and `bias` [D]; empty where there is none.
        id: names the weights in cards; says so where they are random.
        digest: of the weights.
        licence: of the weights.
    """

    decoder: Decoder
    projection: State
    id: str
    digest: str
    licence: str


def load_backbone(name: str, geometry: str | Geometry) -> Backbone:
    """The decoder of that name.

    Args:
        name: `random:SEED`; `bundled:NAME`; a file of `save_backbone`; a folder with audiocraft's `state_dict.bin`, or
            with transformers' `config.json` and safetensors; or a hub repository that has audiocraft's file, such as
            `facebook/musicgen-small`.
        geometry: what the weights must fit, by name or in full.

    Raises:
        MissingWeights: the weights are neither on disk nor to be fetched, or are damaged.
        SettingsError: they are of another geometry, or of something else than MusicGen's plain decoder.
    """
    wanted = _geometry(geometry)
    digested = weights_digest(name, wanted)
    if name.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(name))
            decoder = Decoder(wanted).eval()
        return Backbone(decoder, {}, f"random (seed {_seed(name)})", digested, weights.RANDOM_LICENCE)
    path = place(name)
    licence = MUSICGEN_LICENCE if "musicgen" in name else f"that of the weights in {name}"
    try:
        if path.name == AUDIOCRAFT_FILE:
            found, state = _read_audiocraft(path)
        elif path.name in TRANSFORMERS_FILES:
            found, state = _read_transformers(path)
        else:
            found, state, licence = _read_ours(path)
        if found != wanted:
            raise SettingsError(f"{path} holds a decoder of {found}, wanted is {wanted}.", hint="Take another preset.")
        decoder, projection = _built(found, state)
    except _DAMAGE as error:
        raise MissingWeights(f"{path} is damaged, or of another kind: {error}.", hint="Fetch it again.") from error
    return Backbone(decoder, projection, name, digested, licence)


def save_backbone(
    path: Path,
    decoder: Decoder,
    projection: Mapping[str, Tensor],
    *,
    licence: str,
    t5: Mapping[str, Tensor] | None = None,
    half: bool = False,
    **about: str,
) -> None:
    """One safetensors file, whole or not at all; geometry, licence and `about` stand in its header.

    Args:
        path: of the file.
        decoder: MusicGen's.
        projection: as in `Backbone`.
        licence: of all weights in the file.
        t5: the encoder behind which the projection was trained, where it isn't a published one.
        half: store fp16.
        about: further words for the header.
    """
    state = {**decoder.state_dict(), **{f"projection.{n}": w for n, w in projection.items()}}
    state |= {f"{T5_PREFIX}{n}": w for n, w in (t5 or {}).items()}
    header = {"geometry": json.dumps(asdict(decoder.geometry)), "licence": licence, **about}
    with Store(path.parent).write(path.name) as temporary:
        stored = {n: (w.half() if half else w).detach().cpu().contiguous() for n, w in state.items()}
        save_file(stored, temporary, header)


def weights_digest(name: str, geometry: str | Geometry) -> str:
    """Names the weights without building a model.

    Raises:
        MissingWeights: as `load_backbone`.
    """
    if name.startswith("random:"):
        return weights.digest_of_random({**asdict(_geometry(geometry)), "model_seed": _seed(name)}, "torch")
    path = place(name)
    if path.name != TRANSFORMERS_FILES[1]:
        return weights.digest_of_file(path)
    return digest([weights.digest_of_file(file) for file in (path, *_shards(path))])


def files(name: str) -> list[Path]:
    """All files on this machine that `load_backbone` reads for a name; none for random weights.

    Raises:
        MissingWeights: they aren't here.
    """
    if name.startswith("random:"):
        return []
    path = place(name, download=False)
    if path.name not in TRANSFORMERS_FILES:
        return [path]
    try:
        shards = [] if path.name == TRANSFORMERS_FILES[0] else _shards(path)
    except (ValueError, LookupError, AttributeError) as error:
        raise MissingWeights(f"{path} is damaged: {error}.", hint="Fetch it again.") from error
    return [path.with_name("config.json"), path, *shards]


def place(name: str, *, download: bool = True) -> Path:
    """The file that a name of `load_backbone` leads to.

    Raises:
        MissingWeights: it is neither on disk nor, with `download`, to be fetched.
    """
    if name.startswith("bundled:"):
        return weights.bundled(name.removeprefix("bundled:"), BUNDLED)
    given = Path(name).expanduser()
    if given.is_file():
        return given
    for folder in (given, weights.folder() / name):
        for file in (AUDIOCRAFT_FILE, *TRANSFORMERS_FILES):
            if (folder / file).is_file():
                return folder / file
    return weights.from_hub(name, AUDIOCRAFT_FILE, download=download)


def convert(state: Mapping[str, Tensor], source: Scheme, target: Scheme, geometry: Geometry) -> State:
    """A decoder's weights by other names: rows are cut and joined, nothing is computed.

    `ours` is `Decoder.state_dict()`; `audiocraft` is `LMModel`'s; `transformers` is the composite model's, whose
    decoder alone (`MusicgenForCausalLM`) has the same names without `decoder.`. MusicGen's projection comes along, if
    it is there: as `projection`, as the conditioner `description`, as `enc_to_dec_proj`.

    Raises:
        KeyError: a weight is missing, or isn't one of MusicGen's plain decoder (a bias, a layer scale).
    """
    left = dict(state)
    converted: State = {}
    for group in _groups(geometry):
        old, new = group[source], group[target]
        if next(iter(group["ours"])).startswith("projection") and not old.keys() & left.keys():
            continue
        joined = torch.cat([left.pop(name) for name in old])
        part = len(joined) // sum(new.values())
        converted.update(zip(new, joined.split([part * n for n in new.values()]), strict=True))
    if left:
        raise KeyError(f"unknown weights {', '.join(sorted(left)[:3])}")
    return converted


def _groups(geometry: Geometry) -> Iterator[dict[Scheme, Parts]]:
    """The same rows in the three schemes."""

    def group(ours: Parts, audiocraft: Parts, transformers: Parts) -> dict[Scheme, Parts]:
        return {"ours": ours, "audiocraft": audiocraft, "transformers": transformers}

    def same(ours: str, audiocraft: str, transformers: str, *ends: str) -> Iterator[dict[Scheme, Parts]]:
        for end in ends:
            yield group({f"{ours}.{end}": 1}, {f"{audiocraft}.{end}": 1}, {f"{transformers}.{end}": 1})

    K, top = range(geometry.codebooks), "decoder.model.decoder"
    yield group(
        {"embed.weight": len(K)},
        {f"emb.{k}.weight": 1 for k in K},
        {f"{top}.embed_tokens.{k}.weight": 1 for k in K},
    )
    for i in range(geometry.layers):
        ours, ac, hf = f"blocks.{i}", f"transformer.layers.{i}", f"{top}.layers.{i}"
        yield from same(f"{ours}.norm1", f"{ac}.norm1", f"{hf}.self_attn_layer_norm", "weight", "bias")
        yield from same(f"{ours}.norm_cross", f"{ac}.norm_cross", f"{hf}.encoder_attn_layer_norm", "weight", "bias")
        yield from same(f"{ours}.norm2", f"{ac}.norm2", f"{hf}.final_layer_norm", "weight", "bias")
        yield from same(f"{ours}.self_out", f"{ac}.self_attn.out_proj", f"{hf}.self_attn.out_proj", "weight")
        yield from same(f"{ours}.cross_out", f"{ac}.cross_attention.out_proj", f"{hf}.encoder_attn.out_proj", "weight")
        yield from same(f"{ours}.up", f"{ac}.linear1", f"{hf}.fc1", "weight")
        yield from same(f"{ours}.down", f"{ac}.linear2", f"{hf}.fc2", "weight")
        yield group(
            {f"{ours}.self_qkv.weight": 3},
            {f"{ac}.self_attn.in_proj_weight": 3},
            {f"{hf}.self_attn.{x}_proj.weight": 1 for x in "qkv"},
        )
        yield group(
            {f"{ours}.cross_q.weight": 1, f"{ours}.cross_kv.weight": 2},
            {f"{ac}.cross_attention.in_proj_weight": 3},
            {f"{hf}.encoder_attn.{x}_proj.weight": 1 for x in "qkv"},
        )
    yield from same("out_norm", "out_norm", f"{top}.layer_norm", "weight", "bias")
    yield group(
        {"heads.weight": len(K)},
        {f"linears.{k}.weight": 1 for k in K},
        {f"decoder.lm_heads.{k}.weight": 1 for k in K},
    )
    described = "condition_provider.conditioners.description.output_proj"
    yield from same("projection", described, "enc_to_dec_proj", "weight", "bias")


def _geometry(geometry: str | Geometry) -> Geometry:
    return GEOMETRIES[geometry] if isinstance(geometry, str) else geometry


def _seed(name: str) -> int:
    seed = name.removeprefix("random:")
    if not seed.isdecimal():
        raise SettingsError(f"{name!r} names no seed.", hint="Write random:0, or another number.")
    return int(seed)


def _read_ours(path: Path) -> tuple[Geometry, State, str]:
    header = weights.header(path)
    return Geometry(**json.loads(header["geometry"])), _read([path], leave=(T5_PREFIX,)), header["licence"]


def _read_audiocraft(path: Path) -> tuple[Geometry, State]:
    """Through audiocraft's loader. Its torch.load takes tensors and plain values only (`weights_only` by default)."""
    from audiocraft.models.loaders import load_lm_model_ckpt

    package = load_lm_model_ckpt(path)
    config = yaml.safe_load(package["xp.cfg"])
    lm, fuser = config["transformer_lm"], config["fuser"]
    pattern = config.get("codebooks_pattern") or {"modeling": lm["q_modeling"]}  # the first releases' name for it
    delays = pattern.get("delay", {}).get("delays", list(range(lm["n_q"])))
    _plain(
        path,
        norm_first=lm["norm_first"],
        activation=lm["activation"] == "gelu",
        positions=lm["positional_embedding"] == "sin",
        pattern=pattern["modeling"] == "delay" and delays == list(range(lm["n_q"])),
        condition=fuser["cross"] == ["description"] and not fuser["prepend"] and not fuser["sum"],
        cross_attention_positions=not fuser.get("cross_attention_pos_emb", False),
    )
    geometry = Geometry(
        layers=lm["num_layers"],
        dim=lm["dim"],
        heads=lm["num_heads"],
        ff=int(lm["hidden_scale"] * lm["dim"]),
        codebooks=lm["n_q"],
        cardinality=lm["card"],
    )
    return geometry, convert(package["best_state"], "audiocraft", "ours", geometry)


def _read_transformers(path: Path) -> tuple[Geometry, State]:
    config = json.loads(path.with_name("config.json").read_text())["decoder"]
    _plain(
        path,
        activation=config["activation_function"] == "gelu",
        embedding_scale=not config["scale_embedding"],
        mono=config.get("audio_channels", 1) == 1,
    )
    geometry = Geometry(
        layers=config["num_hidden_layers"],
        dim=config["hidden_size"],
        heads=config["num_attention_heads"],
        ff=config["ffn_dim"],
        codebooks=config["num_codebooks"],
        cardinality=config["vocab_size"],
    )
    files = [path] if path.name == TRANSFORMERS_FILES[0] else _shards(path)
    state = _read(files, leave=("text_encoder.", "audio_encoder.", "decoder.model.decoder.embed_positions."))
    return geometry, convert(state, "transformers", "ours", geometry)


def _plain(path: Path, **conditions: bool) -> None:
    """Refuses a checkpoint whose weights would load, and mean something else."""
    if wrong := [name for name, holds in conditions.items() if not holds]:
        raise SettingsError(
            f"{path} isn't MusicGen's plain mono decoder: {', '.join(wrong)} differ.",
            hint="Take a text-to-music checkpoint (small, medium, large), not melody, stereo or style.",
        )


def _shards(index: Path) -> list[Path]:
    """The files that a `model.safetensors.index.json` speaks of."""
    return sorted({index.with_name(name) for name in json.loads(index.read_text())["weight_map"].values()})


def _read(files: list[Path], leave: tuple[str, ...] = ()) -> State:
    state: State = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names: Any = file.keys()
            state |= {n: file.get_tensor(n) for n in names if not n.startswith(leave)}
    return state


def _built(geometry: Geometry, state: State) -> tuple[Decoder, State]:
    """A decoder around the weights, without making random ones first."""
    owned = {n: w.to(torch.float32, copy=True) for n, w in state.items()}
    projection = {n.removeprefix("projection."): owned.pop(n) for n in list(owned) if n.startswith("projection.")}
    with torch.device("meta"):
        decoder = Decoder(geometry)
    decoder.load_state_dict(owned, assign=True)
    return decoder.eval(), projection
