"""The story of a clip, and of what is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import lineage
from pipeline.config import load_profile
from pipeline.errors import DvmsetError
from pipeline.process import Desk
from pipeline.release import latest_release
from pipeline.release.between import Place, changes_between, differences
from pipeline.sources import Source, canonical_key, source_id
from pipeline.takedown import Request, plan_takedown, take_down
from tests.world import Web, work

FILM = "https://a.example/film.mp4"
TALK = "https://b.example/talk.mp4"
GONE = "https://c.example/gone.mp4"


def put(desk: Desk, url: str, category: str = "promo", start_s: float | None = None, end_s: float | None = None) -> str:
    key = canonical_key(url)
    name = source_id(key, start_s, end_s)
    desk.add([Source(name, key, url, category, start_s, end_s, "CC BY 3.0", "list.csv", 1)])
    return name


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A film with a talk at its end, a talk, and a dead link; released."""
    Web({FILM: "m" * 30 + "s" * 3 + "v" * 20, TALK: "v" * 40}).replace_edges(monkeypatch)
    desk = Desk(tmp_path / "data", load_profile("nano"))
    for url in (FILM, TALK, GONE):
        put(desk, url)
    work(desk, desk.pending())
    assert desk.release() is not None
    yield desk
    desk.ledger.close()


def ask(desk: Desk, what: str, at_s: float | None = None) -> dict[str, Any]:
    story = lineage.why(desk.store, desk.ledger, lineage.find(desk.ledger, what, at_s))
    json.dumps(story, allow_nan=False)
    return story


def test_a_clip_is_told_from_its_list_row_to_its_tokens(desk: Desk) -> None:
    clip = desk.ledger.clips()[0]
    story = ask(desk, clip.clip_id)
    release = latest_release(desk.store)
    assert release is not None
    assert story["in_short"] == f"It is a clip, in {story['released']['split']} of {release.id}."
    assert (story["source"]["url"], story["source"]["row"]) == (FILM, "list.csv:1")
    assert [e["what"] for e in story["listed"]] == ["added"]
    assert [a["stage"] for a in story["attempts"]] == ["fetch", "shots", "music", "vision", "codes"]
    assert story["media"]["seconds"] == 53.0
    assert story["shots"]["cuts_s"] == [10.0]
    assert story["curves"]["series"]["music"] == {"least": 1.0, "mean": 1.0, "most": 1.0, "shape": [1.0] * 30}
    assert story["verdict"] == [{"start_s": 0.0, "end_s": 30.0, "says": "keep"}]
    assert story["spans"] == [{"start_s": 0.0, "end_s": 30.0, "fate": "clip"}]
    for name, shape in (("vision", [30, 4]), ("codes", [4, 1500])):
        file = story["clip"][name]
        assert Path(desk.store.path(file["file"])).is_file() and len(file["sha256"]) == 64
        assert shape in file["arrays"].values()
    entry = next(e for e in release.manifest["shards"] if e["name"] == story["released"]["shard"])
    assert story["released"]["sha256"] == entry["sha256"]
    assert story["settings"]["digest"] == desk.profile.digest()


def test_a_moment_that_was_dropped_says_why(desk: Desk) -> None:
    story = ask(desk, FILM, 45)
    assert story["in_short"] == "Not a clip: 20.0 s speech."
    assert story["curves"]["series"]["speech"]["mean"] == 1.0
    assert story["clip"] is None and story["released"] is None
    assert ask(desk, FILM, 500)["in_short"] == "That is not within the media that was fetched."
    assert ask(desk, FILM)["in_short"] == "30.0 s clip, 20.0 s speech, 3.0 s silence."
    assert ask(desk, TALK)["in_short"] == "40.0 s speech."


def test_a_source_that_failed_or_is_out_says_why(desk: Desk) -> None:
    assert ask(desk, GONE)["in_short"] == f"It failed (permanent) at fetch: There is no such video ({GONE})."
    film = source_id(canonical_key(FILM))
    old = desk.ledger.clips()[0].clip_id
    take_down(desk.store, desk.ledger, plan_takedown(desk.store, desk.ledger, Request((film,))), purge=False)
    story = ask(desk, old)
    assert story["in_short"] == "Its rows are gone: it was taken down."
    assert [e["what"] for e in story["listed"]] == ["added", "taken_down"]
    assert [(r["what"], r["why"]) for r in story["releases"]] == [("removed", "taken down")]


def test_what_is_not_known_or_not_clear_is_said_so(desk: Desk) -> None:
    with pytest.raises(DvmsetError, match="Nothing is known of https://nobody"):
        lineage.find(desk.ledger, "https://nobody.example/1.mp4")
    with pytest.raises(DvmsetError, match="Nothing is known of 0000000000000000-"):
        ask(desk, "0000000000000000-00000000-00010000")
    first, second = put(desk, "https://d.example/1.mp4", "", 0, 20), put(desk, "https://d.example/1.mp4", "", 20, 40)
    with pytest.raises(DvmsetError, match=f"several sections: {first} .*, {second}"):
        lineage.find(desk.ledger, "https://d.example/1.mp4")
    assert lineage.find(desk.ledger, "https://d.example/1.mp4", 30).source_id == second


def test_releases_are_compared_with_reasons_and_settings(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    old = latest_release(desk.store)
    new_url = "https://e.example/new.mp4"
    assert old is not None
    put(desk, FILM, "commercial")
    put(desk, new_url)
    Web({new_url: "m" * 25}).replace_edges(monkeypatch)
    other = Desk(desk.store.root, load_profile("nano", ["release.split_salt=other"]))
    work(other, other.pending())
    made = other.release()
    assert made is not None
    first, second = Place.at(old.path), Place.at(made.path)
    found = {(change.kind, reason) for change, reason in changes_between(first, second)}
    assert found == {("relabelled", "changed in the list"), ("added", "new in the list")}
    assert list(changes_between(first, first)) == []
    assert {reason for _, reason in changes_between(second, first)} == {"not stated"}
    assert differences(first, second) == {
        "settings": {"release.split_salt": {"then": "dvmset", "now": "other"}}, "models": {}, "tools": {}
    }  # fmt: skip
