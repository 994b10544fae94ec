"""The Croissant description: valid to mlcroissant's own eyes, which loads the rows by it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from pipeline.croissant import croissant
from pipeline.release import Release
from pipeline.shards import COLUMNS, read_rows
from pipeline.storage import Store
from tests.pipeline.test_release import TWENTY, release_of, rows_of


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release_of(Store(tmp_path_factory.mktemp("data")), rows_of(*TWENTY))


def test_mlcroissant_finds_nothing_wrong_and_loads_every_row(release: Release) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(Path(release.path) / "croissant.json"))
    assert not dataset.metadata.issues.errors
    assert [str(v) for v in dataset.metadata.conforms_to] == [
        "http://mlcommons.org/croissant/1.0",
        "http://mlcommons.org/croissant/RAI/1.0",
    ]
    records = list(dataset.records("clips"))
    assert len(records) == release.clips == 2 * len(TWENTY)
    assert {name.removeprefix("clips/") for name in records[0]} == set(COLUMNS)


def test_it_says_what_the_manifest_says_of_collection_and_biases(release: Release) -> None:
    said = json.loads((Path(release.path) / "croissant.json").read_text())
    assert said["conformsTo"] == ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]
    assert release.manifest["digest"] in said["description"]
    assert {"rai:dataCollection", "rai:dataBiases", "rai:personalSensitiveInformation"} <= said.keys()


def test_the_values_of_a_record_are_those_of_its_row(release: Release) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(Path(release.path) / "croissant.json"))
    record = next(iter(dataset.records("clips")))
    found = {name.removeprefix("clips/"): value for name, value in record.items()}
    rows = {row["clip_id"]: row for row in read_rows(sorted(Path(release.path).glob("*.parquet")))}
    row = rows[found["clip_id"].decode()]
    assert found["url"].decode() == row["url"]
    assert (found["seconds"], found["reviewed"]) == (row["seconds"], row["reviewed"])
    assert found["lufs"] == pytest.approx(float(row["lufs"]))
    assert list(found["beat_times_s"]) == pytest.approx(list(row["beat_times_s"]))
    assert found["codes"] == row["codes"].tobytes()


def test_its_licence_is_a_name_of_spdx_and_its_address_the_sets_own(release: Release) -> None:
    said = json.loads((Path(release.path) / "croissant.json").read_text())
    assert re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", said["license"])  # SPDX 2.3, annex D
    assert "url" not in said
    manifest = copy.deepcopy(release.manifest)
    manifest["settings"]["values"]["release"]["homepage"] = "https://example.org/films"
    assert croissant(manifest, dict.fromkeys(COLUMNS, ""))["url"] == "https://example.org/films"


def test_an_older_manifest_has_a_description_too(release: Release) -> None:
    manifest = copy.deepcopy(release.manifest)
    del manifest["statistics"], manifest["settings"]["values"]["release"]["homepage"]
    manifest["provenance"] = {}
    assert "rai:dataBiases" in croissant(manifest, dict.fromkeys(COLUMNS, ""))
