"""From codes to a finished sound: decoded in pieces that overlap, brought to its loudness, written to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from pipeline.codec import Codec

PIECE_S = 30  # seconds decoded at a time
CONTEXT_S = 2  # decoded and thrown away on either side: the codec's convolutions and its LSTM have to settle
CROSSFADE_S = 0.2
END_FADE_S = 0.05  # at the very end, so that it doesn't click


def decoded(codes: np.ndarray, codec: Codec) -> Iterator[np.ndarray]:
    """The sound of codes [K, T] in order, [n] float32 each; all but equal to decoding them whole, in bounded memory.

    Neighbouring pieces overlap, each with context on both sides, and are cross-faded there.
    """
    piece, context, fade = (round(s * codec.frame_rate) for s in (PIECE_S, CONTEXT_S, CROSSFADE_S))
    rise = (np.arange(fade * codec.hop, dtype=np.float32) + 0.5) / (fade * codec.hop)
    held = np.zeros(0, np.float32)  # what the piece before has of this one's beginning
    for at in range(0, codes.shape[1], piece):
        first = max(0, at - context)
        audio = codec.decode(codes[:, first : at + piece + fade + context])[(at - first) * codec.hop :]
        body = audio[: piece * codec.hop].copy()
        share = rise[: len(held)]
        body[: len(held)] = body[: len(held)] * share + held * (1 - share)
        held = audio[piece * codec.hop : (piece + fade) * codec.hop]
        yield body


def render(
    codes: np.ndarray, samples: int, codec: Codec, file: IO[bytes], on_part: Callable[[float, float], None]
) -> np.ndarray:
    """Decodes codes into an open file and maps its first `samples` samples into memory, [N] float32, read-only."""
    fade = min(samples, round(END_FADE_S * codec.rate))
    done = 0
    for piece in decoded(codes, codec):
        kept = piece[: samples - done]
        fall = np.arange(samples - done, samples - done - len(kept), -1) / fade  # 1 and less within the fade
        file.write((kept * np.minimum(fall, 1)).astype("<f4").tobytes())
        done += len(kept)
        on_part(done / codec.rate, samples / codec.rate)
    file.flush()
    return np.memmap(file, np.dtype("<f4"), mode="r", shape=(samples,))
