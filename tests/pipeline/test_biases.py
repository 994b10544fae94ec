"""What a release leans towards and where it may fail: sentences whose numbers are the manifest's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.biases import biases, failure_modes, quantile
from pipeline.release.statistics import Statistics, summed
from pipeline.storage import Store
from tests.pipeline.test_release import release_of
from tests.rows import make_row


def test_quantiles_are_those_of_the_values_to_within_a_bin() -> None:
    tempos = np.random.default_rng(0).uniform(30, 260, 500)  # beyond both edges
    counted = Statistics()
    for i, tempo in enumerate(tempos):
        counted.add(make_row(f"s{i}", tempo_bpm=float(tempo)))
    found = summed([{"statistics": counted.as_dict()}])
    assert found is not None
    for q in (0.02, 0.1, 0.5, 0.9, 0.99):
        assert quantile(found["measures"]["tempo_bpm"], q) == pytest.approx(np.quantile(tempos, q), abs=10)


def test_sentences_tell_what_the_rows_are(tmp_path: Path) -> None:
    rows = [
        make_row(
            f"s{i}", category="promo" if i < 6 else "film", license="" if i < 3 else "CC0",
            channel="ann" if i < 5 else "", voice_ratio=0.03 if i else 0.12, music_score=0.52 if i < 2 else 0.9,
            av_offset_ms=0.0 if i else 60.0, tempo_bpm=100.0 + 10 * i, shot_times_s=[0.52, 0.75],
        )
        for i in range(10)
    ]  # fmt: skip
    provenance = {"sources": {"ready": 10, "failed": 10}, "failed": {"permanent": 10}}
    manifest = release_of(Store(tmp_path), rows, provenance=provenance).manifest
    leans, fails = biases(manifest), failure_modes(manifest)
    assert leans[:4] == [
        "The largest of 2 categories, promo, holds 60.0% of the time.",
        "30.0% of the time states no licence.",
        "The largest of 1 channels holds 50.0% of the time, the ten largest 50.0%.",
        "50.0% of the time names no channel.",
    ]
    assert any(line.startswith("Tempo: eight tenths of the clips lie between ") for line in leans)
    assert fails[1] == "10 of 20 sources failed (50.0%): the set has what could be had then."
    assert fails[2].startswith(
        "10.0% of the clips have a voice share from 0.1 to 0.15, next to the threshold verdict.v"
    )
    assert fails[3].startswith("20.0% of the clips have a mean music score from 0.5 to 0.55, next to the threshold")
    assert fails[4] == "No clip was confirmed by a person: the rules alone say that they belong here."
    assert "50.0% within 0.1 s; by chance" in fails[5]
    assert fails[6].startswith(
        "In 10.0% of the clips the sound starts more than 40 ms before or after the picture (0 to 60"
    )
    manifest["splits"]["test"] |= {"clips": 3, "groups": 2}
    assert failure_modes(manifest)[-1].startswith("The test split has 3 clips of 2 groups of sources")


def test_a_release_without_clips_or_statistics_says_what_is_left(tmp_path: Path) -> None:
    manifest = release_of(Store(tmp_path), [make_row("s")]).manifest
    manifest["statistics"] = None
    for totals in manifest["splits"].values():
        totals |= {"clips": 0, "groups": 0, "categories": {}, "licenses": {}}
    assert [line for line in biases(manifest) if "Language" not in line] == []
    assert failure_modes(manifest)[-1].startswith("The test split has no clip")
