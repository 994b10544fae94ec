"""The real command on real media behind a loopback site: release, second run, and what goes wrong."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import mlcroissant
import pytest
from huggingface_hub import DatasetCard, DatasetCardData

from pipeline.clips import samples
from pipeline.shards import read_rows
from tests.neighbours import NEIGHBOURS, make, write_list
from tests.site import Site

pytestmark = pytest.mark.slow
SETTINGS = ("--profile", "nano", "--set", "fetch.allow_loopback=true")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "flows", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), check=False, capture_output=True, text=True, timeout=600)


def build(source_list: Path, data: Path) -> subprocess.CompletedProcess[str]:
    return run("build", source_list, "--data", data, *SETTINGS)


def status(data: Path) -> dict[str, object]:
    result: dict[str, object] = json.loads(run("status", "--data", data, "--json").stdout)
    return result


def newest(data: Path) -> Path:
    """The folder of the newest release."""
    return data / "releases" / (data / "releases" / "latest").read_text().strip()


def shard_digests(data: Path) -> list[tuple[str, str]]:
    release = (data / "releases" / "latest").read_text().strip()
    manifest = json.loads((data / "releases" / release / "manifest.json").read_text())
    return [(shard["name"], shard["sha256"]) for shard in manifest["shards"]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    make(folder, film=False)
    with Site(folder) as site:
        yield site


@pytest.fixture(scope="module")
def source_list(site: Site) -> Path:
    path = site.folder.parent / f"{site.folder.name}.csv"
    write_list(path, [n for n in NEIGHBOURS if n.path != "film.mp4"], site.url())
    return path


@pytest.fixture(scope="module")
def built(site: Site, source_list: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of an undisturbed build of the neighbours."""
    data = tmp_path_factory.mktemp("data")
    result = build(source_list, data)
    assert result.returncode == 0, result.stdout + result.stderr
    return data


def test_every_neighbour_ends_where_it_belongs_and_the_seconds_add_up(built: Path) -> None:
    found = status(built)
    seconds = found["seconds"]
    assert isinstance(seconds, dict)
    fate = [n.expected for n in NEIGHBOURS if n.path != "film.mp4"]
    assert set(seconds["dropped"]) >= {e for e in fate if e not in ("keep", "corrupt", "permanent")}
    assert found["errors"] == {"corrupt": 1, "permanent": 1}
    assert found["states"] == {"failed": 2, "ready": len(fate) - 2}
    milliseconds = [round(1000 * s) for s in (seconds["kept"], *seconds["dropped"].values())]
    assert sum(milliseconds) == round(1000 * seconds["fetched"]) > 0
    assert seconds["kept"] > 40


def test_the_release_is_valid_and_its_clips_are_of_the_right_sources(built: Path, site: Site) -> None:
    release = built / "releases" / (built / "releases" / "latest").read_text().strip()
    checked = run("validate", release, "--json")
    assert checked.returncode == 0, checked.stdout
    rows = list(read_rows(sorted(release.glob("*.parquet"))))
    assert {row["url"] for row in rows} == {site.url("trailer.mp4"), site.url("city.mp4")}
    for row in rows:
        assert row["clip_global"].shape[0] == samples(0, round(1000 * row["seconds"]), 1)
        assert row["codes"].shape == (4, samples(0, round(1000 * row["seconds"]), 50))
        assert row["patch_distance"].shape == (samples(0, round(1000 * row["seconds"]), 25),)


def test_card_and_croissant_of_the_build_pass_the_eyes_of_the_hub_and_of_mlcroissant(built: Path, site: Site) -> None:
    release = newest(built)
    data = DatasetCard.load(release / "README.md").data
    known = json.loads((Path(datasets.__file__).parent / "utils/resources/size_categories.json").read_text())
    assert isinstance(data, DatasetCardData) and data.license == "other" and data.to_dict()["license_name"]
    assert data.size_categories == ["n<1K"] and set(data.size_categories) <= set(known)
    configs = {config["config_name"]: config["data_files"] for config in data.to_dict()["configs"]}
    assert all(list(release.glob(part["path"])) for part in configs["default"])
    assert (release / configs["preview"]).is_file()

    described = mlcroissant.Dataset(jsonld=str(release / "croissant.json"))
    assert not described.metadata.issues.errors
    rows = {row["clip_id"]: row for row in read_rows(sorted(release.glob("*.parquet")))}
    records = [{n.removeprefix("clips/"): v for n, v in r.items()} for r in described.records("clips")]
    assert {record["clip_id"].decode() for record in records} == set(rows)
    for record in records:
        row = rows[record["clip_id"].decode()]
        assert record["url"].decode() == row["url"] in (site.url("trailer.mp4"), site.url("city.mp4"))
        assert record["tempo_bpm"] == pytest.approx(float(row["tempo_bpm"]))
        assert record["codes"] == row["codes"].tobytes()


def test_the_card_says_how_the_build_was_made_and_its_way_to_rebuild_works_as_printed(built: Path, site: Site) -> None:
    release = newest(built)
    card = (release / "README.md").read_text()
    assert "\ndvmset build LIST --data DIR --profile nano --set fetch.allow_loopback=true\n" in card
    said = json.loads((release / "manifest.json").read_text())["provenance"]
    assert [(one["rows"], one["versions"]) for one in said["lists"]] == [(len(NEIGHBOURS) - 1, 1)]
    assert said["list"]["languages"][""]["sources"] == 2, "files state no language"
    [printed] = re.findall(r"```sh\n(dvmset rebuild .*)\n```", card)
    words = shlex.split(printed)
    words[words.index("manifest.json")] = str(release / "manifest.json")
    asked = len(site.requests)
    made = run(*[str(built) if word == "DIR" else word for word in words[1:]], "--json")
    assert made.returncode == 0, made.stdout + made.stderr
    assert json.loads(made.stdout)["whole"]
    assert len(site.requests) == asked


def test_a_rebuild_gives_the_same_shards_and_names_exactly_what_is_gone(
    built: Path, site: Site, tmp_path: Path
) -> None:
    release = built / "releases" / (built / "releases" / "latest").read_text().strip()
    manifest = json.loads((release / "manifest.json").read_text())
    asked = len(site.requests)
    stored = run("rebuild", release / "manifest.json", "--data", built, "--json")
    assert stored.returncode == 0, stored.stdout + stored.stderr
    assert len(site.requests) == asked, "all of it is there"

    data = tmp_path / "data"
    fetched = run("rebuild", release, "--data", data, "--json")
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    found = json.loads(fetched.stdout)
    assert (found["whole"], found["rebuilt"], found["missing"]) == (True, manifest["id"], [])
    again = json.loads((Path(found["path"]) / "manifest.json").read_text())
    assert [shard["sha256"] for shard in again["shards"]] == [shard["sha256"] for shard in manifest["shards"]]

    clips = [row for row in read_rows(sorted(release.glob("*.parquet"))) if row["url"] == site.url("city.mp4")]
    for path in [path for path in data.rglob(f"*{clips[0]['source_id']}*") if path.is_file()]:
        path.unlink()
    (site.folder / "city.mp4").rename(site.folder / "aside.mp4")
    try:
        less = run("rebuild", release, "--data", data, "--json")
    finally:
        (site.folder / "aside.mp4").rename(site.folder / "city.mp4")
    assert less.returncode == 1, less.stdout + less.stderr
    (lost,) = json.loads(less.stdout)["missing"]
    assert (lost["url"], lost["clips"]) == (site.url("city.mp4"), [row["clip_id"] for row in clips])
    assert lost["seconds"] == sum(row["seconds"] for row in clips)
    assert lost["why"].startswith("permanent: ")
    held = {shard["name"] for shard in manifest["shards"] for row in clips if shard["split"] == row["split"]}
    assert set(json.loads(less.stdout)["shards"]["different"]) <= held


def test_a_second_run_does_nothing_and_asks_the_site_for_nothing(built: Path, source_list: Path, site: Site) -> None:
    before, asked = shard_digests(built), len(site.requests)
    began = time.perf_counter()
    result = build(source_list, built)
    assert "Nothing to do" in result.stdout
    assert time.perf_counter() - began < 30
    assert (shard_digests(built), len(site.requests)) == (before, asked)


def test_a_new_threshold_recomputes_verdicts_without_a_model_or_a_request(
    built: Path, source_list: Path, site: Site, prefect: None
) -> None:
    asked = len(site.requests)
    result = run("build", source_list, "--data", built, *SETTINGS, "--set", "verdict.music_min=1.0")
    assert result.returncode == 0
    assert [s for s in ("fetch", "music", "vision", "codes") if f" {s} " in result.stdout] == []
    assert len(site.requests) == asked
    again = build(source_list, built)
    assert again.returncode == 0


def test_a_list_with_bad_rows_says_so_and_goes_on_unless_strict(source_list: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.csv"
    mixed.write_text("url,category\nnot an address,promo\nfile:///etc/passwd,promo\n")
    result = run("build", mixed, "--data", tmp_path / "data", *SETTINGS)
    assert result.returncode == 2
    assert f"{mixed}:2" in result.stdout
    assert f"{mixed}:3" in result.stdout
    mixed.write_text(source_list.read_text().splitlines()[0] + "\nnonsense,promo\nhttp://127.0.0.1:9/x.mp4,promo\n")
    strict = run("build", mixed, "--data", tmp_path / "strict", "--strict", *SETTINGS)
    assert strict.returncode == 2
    assert "--strict" in strict.stderr
