"""Distributions are counted shard by shard and sum up to those of all rows."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.release.statistics import Statistics, beat_distances, summed
from tests.rows import make_row


def entry(*rows):
    statistics = Statistics()
    for row in rows:
        statistics.add(row)
    return {"statistics": statistics.as_dict()}


def test_shards_sum_up_to_the_whole():
    rows = [make_row(f"s{i}", channel=f"c{i % 3}", tempo_bpm=60.0 + 10 * i) for i in range(12)]
    whole, parts = summed([entry(*rows)]), summed([entry(*rows[:5]), entry(*rows[5:])])
    assert whole == parts
    tempo = whole["measures"]["tempo_bpm"]
    assert (tempo["n"], tempo["mean"], tempo["min"], tempo["max"]) == (12, 115.0, 60.0, 170.0)
    assert sum(tempo["counts"]) == 12
    assert whole["channels"]["channels"] == 3
    assert whole["channels"]["share_of_largest"] == pytest.approx(1 / 3, abs=1e-4)


def test_distances_run_to_the_nearest_beat():
    row = make_row("s", shot_times_s=[0.1, 0.74, 9.9], beat_times_s=np.arange(0, 10, 0.5, np.float32))
    assert beat_distances(row) == pytest.approx([0.1, 0.24, 0.4], abs=1e-6)
    assert len(beat_distances(make_row("s", beat_times_s=[]))) == 0


def test_chance_is_the_time_that_lies_near_a_beat():
    row = make_row("s", shot_times_s=[0.05, 3.3], beat_times_s=np.arange(0, 10, 0.5, np.float32))
    beats = summed([entry(row)])["on_beat"]
    assert (beats["share"], beats["by_chance"]) == (0.5, pytest.approx(0.39, abs=1e-3))


def test_a_shard_made_before_they_were_counted_leaves_them_out():
    assert summed([entry(make_row("s")), {}]) is None
