"""The Croissant description: valid to mlcroissant's own eyes, which loads the rows by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.release import Release
from pipeline.shards import COLUMNS
from pipeline.storage import Store
from tests.pipeline.test_release import TWENTY, release_of, rows_of


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release_of(Store(tmp_path_factory.mktemp("data")), rows_of(*TWENTY))


def test_mlcroissant_finds_nothing_wrong_and_loads_every_row(release: Release) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(Path(release.path) / "croissant.json"))
    assert not dataset.metadata.issues.errors
    records = list(dataset.records("clips"))
    assert len(records) == release.clips == 2 * len(TWENTY)
    assert {name.removeprefix("clips/") for name in records[0]} == set(COLUMNS)


def test_it_says_what_the_manifest_says_of_collection_and_biases(release: Release) -> None:
    said = json.loads((Path(release.path) / "croissant.json").read_text())
    assert said["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert release.manifest["digest"] in said["description"]
    assert {"rai:dataCollection", "rai:dataBiases", "rai:personalSensitiveInformation"} <= said.keys()
