"""What the nano backbone learns from: songs, rendered once, and their tokens for each codec; both in the media cache.

A song's peak is 0.9, which is as loud as the pipeline's normalisation brings it (its true-peak ceiling is met first, by
0.1 dB), so that these tokens are those of a clip of the same music.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Literal

import numpy as np

from pipeline.codec import Codec
from pipeline.nano.packages import cache_folder
from pipeline.nano.songs import RATE, song
from pipeline.storage import Store, digest

VERSION = 1
"""Raised when `pipeline.nano.songs` plays otherwise, so that no stale cache is read."""

SECONDS = 40
PIECE, AROUND = 200, 5  # frames
Split = Literal["train", "test"]
TRAIN, TEST = 400, 24
"""Songs of each split."""


@dataclass(frozen=True)
class Material:
    """Songs of one split, as tokens.

    Attributes:
        codes: [songs, K, T] int16, 50 Hz.
        captions: of each song.
        accents_s: times of each song's accents.
    """

    codes: np.ndarray
    captions: list[str]
    accents_s: list[list[float]]


def material(split: Split, count: int, codec: Codec, threads: int = 2) -> Material:
    """The tokens of a split's songs, which are rendered and encoded if they aren't in the cache.

    Args:
        split: train and test share no score.
        count: how many; fewer are the first of more.
        codec: of the songs' rate.
        threads: that render and encode.
    """
    audio, captions, accents_s = songs(split, count, threads)
    store, name = _store(), f"{_name(split, count)}-{codec.digest[:8]}.npy"
    if not store.exists(name):
        with ThreadPoolExecutor(threads) as pool:
            codes = list(pool.map(partial(_encoded, codec), audio))
        with store.write(name) as path, path.open("wb") as file:
            np.save(file, np.stack(codes))
    return Material(np.load(store.path(name)), captions, accents_s)


def songs(split: Split, count: int, workers: int = 2) -> tuple[np.ndarray, list[str], list[list[float]]]:
    """Songs of a split, rendered if they aren't in the cache: audio [count, samples] int16, captions, accents."""
    store, name = _store(), _name(split, count)
    if not store.exists(f"{name}.json"):
        texts: list[str] = []
        accents: list[list[float]] = []
        with store.write(f"{name}.npy") as path:
            audio = np.lib.format.open_memmap(path, "w+", np.int16, (count, SECONDS * RATE))
            with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
                for i, (samples, caption, times) in enumerate(
                    pool.map(partial(_rendered, split, SECONDS), range(count))
                ):
                    audio[i] = samples
                    texts.append(caption)
                    accents.append(times)
            audio.flush()
        store.write_text(f"{name}.json", json.dumps({"captions": texts, "accents_s": accents}))
    about = json.loads(store.read_text(f"{name}.json"))
    return np.load(store.path(f"{name}.npy"), mmap_mode="r"), about["captions"], about["accents_s"]


def _rendered(split: Split, seconds: int, number: int) -> tuple[np.ndarray, str, list[float]]:
    made = song(np.random.default_rng([split == "test", number]), split, seconds)
    return np.round(made.audio * 32767).astype(np.int16), made.caption, list(made.accents_s)


def _encoded(codec: Codec, samples: np.ndarray) -> np.ndarray:
    """A song [N] int16 -> [K, T] tokens, in pieces that fit a processor's cache: a third less time than whole.

    Each piece is encoded with some sound around it. The nano codec has no recurrent layer, so the tokens are the same.
    """
    audio, parts = samples / np.float32(32767), []
    for first in range(0, len(samples) // codec.hop, PIECE):
        before = min(AROUND, first)
        sound = audio[(first - before) * codec.hop : (first + PIECE + AROUND) * codec.hop]
        parts.append(codec.encode(sound)[:, before : before + PIECE])
    return np.concatenate(parts, 1)


def _name(split: Split, count: int) -> str:
    return f"{split}-{digest([VERSION, count, SECONDS])[:8]}"


def _store() -> Store:
    return Store(cache_folder() / "songs")
