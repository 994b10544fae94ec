"""A data folder whose media was kept: measured by the world's stages, with media that plays in its place."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import load_profile
from pipeline.media import encode
from pipeline.process import Desk
from pipeline.sources import Source, canonical_key, source_id
from tests.world import Web, work

PATTERNS = (  # a second each; see `tests.world`; a cut at 10 s in each
    "m" * 24 + "v" * 6 + "1" * 20,
    "1" * 24 + "s" * 4 + "m" * 18,
    "2" * 12 + "m" * 30,
    "m" * 12 + "3" * 9 + "m" * 12,
    "v" * 15 + "m" * 15,
    "m" * 40 + "v" * 5 + "1" * 14,
    "1" * 30 + "v" * 8,
    "m" * 22 + "v" * 9 + "m" * 22,
    "s" * 7 + "m" * 26 + "v" * 10,
    "v" * 8 + "1" * 25 + "s" * 6 + "m" * 14,
)


def keep_media(folder: Path) -> Path:
    """Makes the data folder, with ten sources and a release of them."""
    with pytest.MonkeyPatch.context() as patch:
        web = Web({f"https://s{i}.example/video.mp4": heard for i, heard in enumerate(PATTERNS)})
        web.replace_edges(patch)
        buckets = "release.buckets={train: 1, validation: 1, test: 1}"
        desk = Desk(folder, load_profile("nano", ["fetch.keep_media=true", buckets]))
        keys = {url: canonical_key(url) for url in web.videos}
        desk.add([Source(source_id(k, None, None), k, url, "promo", None, None, "", "", 1) for url, k in keys.items()])
        work(desk, desk.pending())
        for source in desk.ledger.sources():
            media = desk.ledger.media(source.source_id)
            assert media is not None
            _film(Path(desk.store.path(media.name)), media.duration_ms // 1000)
        assert desk.release() is not None
    desk.ledger.close()
    return folder


def newest_release(data: Path) -> Path:
    """Its folder."""
    return data / "releases" / (data / "releases" / "latest").read_text().strip()


def _film(path: Path, seconds: int) -> None:
    """A clock hand that goes round every five seconds, and a tone that rises by a step each second."""
    t = np.arange(seconds * 16_000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (220 + 20 * np.floor(t)) * t)
    frames = np.full((seconds * 5, 72, 128, 3), 40, np.uint8)
    for i, frame in enumerate(frames):
        frame[:, (i % 25) * 5 : (i % 25) * 5 + 5] = 220
    encode(path, frames, Fraction(5), tone[None].astype(np.float32), 16_000)
