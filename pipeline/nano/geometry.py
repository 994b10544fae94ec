"""The shapes that vision towers and codecs are built in where no checkpoint says them: toy ones, and the real ones.

`random:NAME` takes them from here; a bundled file carries its own as JSON in its header (`geometry`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import SettingsError


@dataclass(frozen=True)
class VisionGeometry:
    """A CLIP image tower (open_clip's `VisionTransformer`); heads are 64 wide, as in CLIP."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    quick_gelu: bool = False

    @property
    def patches(self) -> int:
        """Patch tokens of one image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class CodecGeometry:
    """An EnCodec (audiocraft's `EncodecModel`): mono, not causal, no renormalisation, as MusicGen's.

    Attributes:
        filters: channels after the first convolution; each of the four strides doubles them.
        dimension: width of the latent and of the codebooks' entries.
    """

    filters: int
    dimension: int
    lstm: int = 2
    rate: int = 32_000
    ratios: tuple[int, ...] = (8, 5, 4, 4)
    codebooks: int = 4
    cardinality: int = 2048

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.ratios)


VISION = {
    "nano": VisionGeometry(image_size=112, patch_size=16, width=192, layers=4),
    "vit-b-32": VisionGeometry(image_size=224, patch_size=32, width=768, layers=12, quick_gelu=True),
}
CODEC = {
    "nano": CodecGeometry(filters=16, dimension=32, lstm=0, ratios=(4, 5, 8, 4)),
    "encodec-32khz": CodecGeometry(filters=64, dimension=128),
}


Geometry = TypeVar("Geometry", VisionGeometry, CodecGeometry)


def named(table: Mapping[str, Geometry], name: str) -> Geometry:
    """The geometry of `random:NAME`.

    Raises:
        SettingsError: there is none of that name.
    """
    if name not in table:
        raise SettingsError(f"No geometry {name!r} for random weights.", hint=f"Use one of {', '.join(table)}.")
    return table[name]


def from_header(kind: type[Geometry], header: Mapping[str, str]) -> Geometry:
    """The geometry that a bundled file carries (`json.dumps(asdict(geometry))` under `geometry`)."""
    values = json.loads(header["geometry"]).items()
    fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values}
    return kind(**fields)
