"""Decoding against audiocraft's own: `python -m tests.benchmarks.decode [--quick] [--json]`.

MusicGen-small's geometry, the same random weights, one clip of 30 semantic tokens, greedy, guidance 3 (two rows). Both
take turns, round by round, in one process; of each the fastest round counts. audiocraft computes in fp32, as its loader
does on a CPU; `ratio_fp32` and `ratio_bf16` are its time over ours in fp32 and in bf16.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.decoder import GEOMETRIES
from tests.model.reference import audiocraft_generate, audiocraft_lm, ours_of

GEOMETRY = GEOMETRIES["small"]
KEYS = 30  # semantic tokens: half a minute of video


def run(frames: int, rounds: int, *, audiocraft_bf16: bool) -> dict[str, object]:
    """Times all ways of decoding `frames` frames; milliseconds are per decoder step."""
    lm = audiocraft_lm(GEOMETRY, memory_efficient=True)  # as in MusicGen's configuration
    fp32 = ours_of(lm, GEOMETRY)
    bf16 = ours_of(lm, GEOMETRY).bfloat16()
    cross = torch.randn(1, KEYS, GEOMETRY.dim, generator=torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[int], Tensor]] = {
        "audiocraft": lambda frames: audiocraft_generate(lm, list(cross), frames),
        "fp32": lambda frames: fp32.generate(cross, frames, greedy=True),
        "bf16": lambda frames: bf16.generate(cross, frames, greedy=True),
    }
    if audiocraft_bf16:
        half = audiocraft_lm(GEOMETRY, memory_efficient=True).bfloat16()
        ways["audiocraft_bf16"] = lambda frames: audiocraft_generate(half, list(cross), frames)
    codes = {}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():  # once unmeasured: allocation, the first choice of kernels
        way(4)
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            codes[name] = way(frames)
            seconds[name].append(time.perf_counter() - start)
    steps = frames + GEOMETRY.codebooks - 1
    ms = {name: 1000 * min(times) / steps for name, times in seconds.items()}
    equal = codes["audiocraft"] == codes["fp32"]
    return {
        "ratio_fp32": ms["audiocraft"] / ms["fp32"],
        "ratio_bf16": ms["audiocraft"] / ms["bf16"],
        "tokens_equal": bool(equal.all()),
        "bf16_tokens_equal": float((codes["audiocraft"] == codes["bf16"]).float().mean()),
        "ms_per_step": ms,
        "frames": frames,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps: under a minute")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args()
    figures = run(16, 2, audiocraft_bf16=False) if options.quick else run(250, 3, audiocraft_bf16=True)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
