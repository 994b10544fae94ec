"""What a clip looks like: CLIP's global token once a second, and how far the picture moved 25 times a second.

Both come from one pass of open_clip's image tower over the frames at exact multiples of 1/25 s. Tokens are taken
before CLIP's projection (width 768 for ViT-B/32) and after its last LayerNorm, which open_clip applies to [CLS] and
patches alike. (In transformers' `CLIPVisionModel` this [CLS] is `pooler_output`; `last_hidden_state` stands before
that LayerNorm.)

With p_t the tokens of frame t, a curve is `d_t = 1 - cos(p_t, p_{t-1})` (VidMusician, arXiv 2412.06296), in three
readings: mean over the patches, all patches as one vector, and [CLS] alone. After a LayerNorm all tokens are nearly of
one length, so the first two almost agree (with random weights they are equal).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import weights
from pipeline.clips import samples
from pipeline.config import VisionSettings
from pipeline.errors import MissingWeights, SettingsError
from pipeline.media import frames_at
from pipeline.nano import geometry

if TYPE_CHECKING:
    from torch import Tensor

FPS = 25  # of the curves; every 25th frame gives a global token

# Where the tags of our profiles lie, known without importing open_clip (seconds); other tags are asked of open_clip.
_HUB = {("ViT-B-32-quickgelu", "openai"): "timm/vit_base_patch32_clip_224.openai"}
_HUB_FILE = "open_clip_model.safetensors"
_LICENCES = {"openai": "MIT (OpenAI CLIP)"}


@dataclass(frozen=True)
class VisionFeatures:
    """What is kept of a clip's picture.

    Attributes:
        clip_global: [T1, D] float16, 1 Hz; row i is the [CLS] token of the frame at i s from the clip's start.
        patch_distance: [T25] float16, 25 Hz, 0..2; mean over the patches of each patch's distance.
        patch_distance_flat: [T25] float16; distance of all patch tokens as one vector.
        cls_distance: [T25] float16; distance of the [CLS] tokens.
    """

    clip_global: np.ndarray
    patch_distance: np.ndarray
    patch_distance_flat: np.ndarray
    cls_distance: np.ndarray


class VisionEncoder:
    """open_clip's image tower, resident on its device.

    With `precision: bf16` a distance under 1e-2 is off by at most 1.5e-5 ([CLS]: 3e-5), a larger one by a float16 step:
    1 to 4 % at 1e-4, less above; below that, where the picture stands still, it is noise. (Measured on real film with
    random weights at ViT-B/32's size.)

    Args:
        tower: an open_clip `VisionTransformer` without projection that hands back ([CLS], patch tokens).
        mean, std: per channel, of pixels in 0..1.

    Attributes:
        id: names the model in cards; says so where the weights are random.
        digest: of the weights.
        licence: of the weights.
        dim: D, width of the tokens.
        size: width and height of the frames it takes.
    """

    def __init__(
        self,
        tower: Any,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        settings: VisionSettings,
        id: str,
        digest: str,
        licence: str,
    ) -> None:
        import torch

        self.id, self.digest, self.licence = id, digest, licence
        self.dim: int = tower.class_embedding.shape[0]
        self.size: int = tower.image_size[0]
        self._device = torch.device(weights.device(settings.device))
        self._batch = settings.batch
        self._bf16 = settings.precision == "bf16"
        if self._bf16:
            _keep_fp32(tower.conv1)
        self._tower = tower.eval().requires_grad_(False).to(self._device)
        self._mean = torch.tensor(mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(std, device=self._device).view(3, 1, 1)

    def encode(self, path: str | Path, start_ms: int, end_ms: int) -> VisionFeatures:
        """The features of one clip, straight from the source's file; decoded once, memory flat in the length.

        The frame 1/25 s before the clip is the neighbour of its first, so that curves of adjacent clips join.

        Raises:
            SourceError: no video, or a frame that can't be decoded.
        """
        first, inside = Fraction(start_ms, 1000), start_ms > 0
        times = [first + Fraction(i, FPS) for i in range(-inside, samples(start_ms, end_ms, FPS))]
        return self.encode_frames(frames_at(path, times, size=self.size), neighbour=inside)

    def encode_frames(self, frames: Iterable[np.ndarray], *, neighbour: bool) -> VisionFeatures:
        """The features of frames 1/25 s apart. A frame equal to the one before it isn't encoded; its distance is 0.

        Args:
            frames: [size, size, 3] uint8 RGB each.
            neighbour: whether the first one stands 1/25 s before the clip and only gives d_0; else d_0 = 1.

        Raises:
            ValueError: no frames.
        """
        import torch

        steps: list[int] = []  # per frame, the number of its distinct frame
        distinct = _distinct(frames, steps)
        tokens, gaps = [], []
        last: Tensor | None = None
        while batch := list(islice(distinct, self._batch)):
            now = self._tokens(np.stack(batch))
            chain = torch.cat([now[:1] if last is None else last, now])
            gaps.append(_distances(chain).cpu().numpy())
            tokens.append(now[:, 0].half().cpu().numpy())
            last = now[-1:]
        if len(steps) <= neighbour:
            raise ValueError("no frames to encode")

        index = np.array(steps)
        moved = np.diff(index, prepend=index[0]) > 0
        curves = np.concatenate(gaps)[index] * moved[:, None]
        if neighbour:
            index, curves = index[1:], curves[1:]
        else:
            curves[0] = 1
        patch, flat, cls = np.ascontiguousarray(curves.T, np.float16)
        seconds = (len(index) + FPS // 2) // FPS  # rounds as `samples(start_ms, end_ms, 1)` does, for any clip
        clip_global = np.concatenate(tokens)[index[: seconds * FPS : FPS]]
        return VisionFeatures(clip_global, patch, flat, cls)

    def _tokens(self, frames: np.ndarray) -> Tensor:
        """[B, size, size, 3] uint8 -> [B, 1 + P, D] float32: [CLS], then the patches row by row."""
        import torch

        lower = torch.autocast(self._device.type, torch.bfloat16) if self._bf16 else nullcontext()
        with torch.inference_mode():
            pixels = torch.from_numpy(frames).to(self._device).permute(0, 3, 1, 2).float() / 255
            with lower:
                cls, patches = self._tower((pixels - self._mean) / self._std)
            return torch.cat([cls[:, None], patches], dim=1).float()


@lru_cache(maxsize=2)
def load_vision(settings: VisionSettings) -> VisionEncoder:
    """The encoder the settings name, loaded once per process.

    Raises:
        MissingWeights: its weights are neither here nor reachable, or don't fit.
        SettingsError: no such model, or one whose image tower or preprocessing isn't CLIP's.
    """
    kind, name = weights.kind_and_name(settings.model)
    path = weights_path(settings)
    if not kind:
        tower, preprocess = _named_tower(settings, path)
        source = Path(settings.weights).name
        label, licence = f"open_clip:{name}:{source}", _LICENCES.get(source, f"that of open_clip's weights {source}")
    else:
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        preprocess = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
        if path is None:
            tower = build_tower(geometry.named(geometry.VISION, name))
            label, licence = f"random:{name} (seed {weights.SEED})", weights.RANDOM_LICENCE
        else:
            header = weights.header(path)
            tower = build_tower(geometry.from_header(geometry.VisionGeometry, header))
            weights.fill(tower, path)
            label, licence = f"bundled:{name}", header["licence"]
    return VisionEncoder(
        tower,
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        settings=settings,
        id=label,
        digest=weights_digest(settings),
        licence=licence,
    )


def weights_path(settings: VisionSettings, *, download: bool = True) -> Path | None:
    """The file with the encoder's weights, fetched from the hub if need be; None for `random:NAME`.

    Raises:
        MissingWeights: it is neither here nor, with `download`, reachable.
        SettingsError: open_clip knows no such model or tag.
    """
    kind, name = weights.kind_and_name(settings.model)
    if kind == "random":
        return None
    if kind == "bundled":
        return weights.bundled(name)
    if settings.weights.endswith(".safetensors"):
        return weights.given(settings.weights)
    repo = _HUB.get((name, settings.weights)) or _hub(name, settings.weights)
    return weights.from_hub(repo, _HUB_FILE, download=download)


def weights_digest(settings: VisionSettings, *, download: bool = True) -> str:
    """SHA-256 that changes whenever the weights do; imports no torch for the models of our profiles.

    Raises:
        MissingWeights, SettingsError: as `weights_path`.
    """
    _, name = weights.kind_and_name(settings.model)
    path = weights_path(settings, download=download)
    if path is None:
        return weights.digest_of_random(asdict(geometry.named(geometry.VISION, name)), "torch", "open_clip_torch")
    return weights.digest_of_file(path)


def build_tower(shape: geometry.VisionGeometry) -> Any:
    """A `VisionTransformer` of open_clip with seeded random weights, without projection, handing back all tokens."""
    import torch
    from open_clip.transformer import QuickGELU, VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.SEED)
        tower = VisionTransformer(
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            width=shape.width,
            layers=shape.layers,
            heads=shape.width // 64,
            mlp_ratio=4.0,
            act_layer=QuickGELU if shape.quick_gelu else torch.nn.GELU,
            output_tokens=True,
        )
    tower.proj = None
    return tower


def _hub(model: str, tag: str) -> str:
    """The Hugging Face repository of an open_clip tag."""
    import open_clip

    known = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "")
    if not known.endswith("/"):  # open_clip's way to say: the usual file names
        raise SettingsError(
            f"open_clip has no weights {tag!r} of {model!r} on the hub.",
            hint="Use a model and tag of `open_clip.list_pretrained()`, or the path of a safetensors file.",
        )
    return str(known.rstrip("/"))


def _named_tower(settings: VisionSettings, path: Path | None) -> tuple[Any, dict[str, Any]]:
    """(image tower, preprocessing) of one of open_clip's models, loaded by open_clip."""
    import open_clip
    from open_clip.transformer import VisionTransformer
    from safetensors import SafetensorError

    name, tag = settings.model, settings.weights
    config = open_clip.get_model_config(name)
    if config is None:
        raise SettingsError(f"open_clip knows no model {name!r}.", hint="See `open_clip.list_models()`.")
    trained = open_clip.get_pretrained_cfg(name, tag)  # empty for a file
    if trained and trained.get("quick_gelu", False) != config.get("quick_gelu", False):
        raise SettingsError(
            f"Weights {tag!r} were trained with another activation than {name!r} has.",
            hint="Take the model's name with (or without) -quickgelu.",
        )
    try:
        model = open_clip.create_model(name, pretrained=str(path))
    except (RuntimeError, SafetensorError) as error:
        raise MissingWeights(f"{path} does not hold the weights of {name}: {error}", hint="Fetch it again.") from error
    tower = model.visual
    preprocess = open_clip.get_model_preprocess_cfg(model) | trained
    plain = isinstance(tower, VisionTransformer) and tower.attn_pool is None and not tower.final_ln_after_pool
    if not (plain and tower.pool_type == "tok"):
        raise SettingsError(f"{name} has no [CLS] and patch tokens to take.", hint="Use one of the ViT-* models.")
    if (preprocess["interpolation"], preprocess["resize_mode"]) != ("bicubic", "shortest"):
        raise SettingsError(f"{name} wants frames that are scaled in another way than `media.frames_at` does.")
    tower.proj, tower.output_tokens = None, True
    return tower, preprocess


def _distinct(frames: Iterable[np.ndarray], steps: list[int]) -> Iterator[np.ndarray]:
    """The frames that differ from the one before; notes in `steps`, for every frame, which of them it equals."""
    last: np.ndarray | None = None
    number = -1
    for frame in frames:
        if last is None or not (frame is last or np.array_equal(frame, last)):
            number += 1
            last = frame
            steps.append(number)
            yield frame
        else:
            steps.append(number)


def _distances(tokens: Tensor) -> Tensor:
    """[1 + B, 1 + P, D] float32 -> [B, 3]: patch, flattened-patch and [CLS] distance of each frame to the one before.

    `1 - cos(a, b)` is computed as half the squared distance of the unit vectors: it doesn't cancel where a and b are
    close, as neighbouring frames are.
    """
    import torch
    from torch.nn.functional import normalize

    def distance(vectors: Tensor) -> Tensor:
        return normalize(vectors, dim=-1).diff(dim=0).square().sum(dim=-1) / 2

    each = distance(tokens)
    flat = distance(tokens[:, 1:].flatten(1))
    return torch.stack([each[:, 1:].mean(dim=1), flat, each[:, 0]], dim=1)


def _keep_fp32(layer: Any) -> None:
    """Keeps a layer out of autocast. With the patch embedding in float32 the residual stream stays float32 too, and
    only the matrix products are bfloat16: ten times closer to float32 than bfloat16 throughout, at about its speed.
    """
    import torch

    forward = layer.forward

    def exact(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x)

    layer.forward = exact
