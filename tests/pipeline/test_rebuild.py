"""Releases made again from their own manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import load_profile
from pipeline.errors import DvmsetError, ShardError
from pipeline.ledger import ReviewRow
from pipeline.process import Desk
from pipeline.rebuild import rebuild
from pipeline.release import Release
from pipeline.shards import validate
from pipeline.sources import Source, canonical_key, source_id
from pipeline.storage import digest
from pipeline.takedown import Request, plan_takedown, take_down
from tests.world import Web, work

SETTINGS = ("release.buckets={train: 4, validation: 1, test: 1}", "release.split_salt=films")
NAMES = "abcdef"


def url(name: str) -> str:
    return f"https://{name}.example/video.mp4"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    """Films of different lengths, and a copy of one of them."""
    web = Web({url(name): "m" * (20 + i) + "s" * 5 for i, name in enumerate(NAMES)})
    web.videos[url("copy")] = web.videos[url("a")]
    web.replace_edges(monkeypatch)
    return web


@pytest.fixture
def desk(tmp_path: Path, web: Web) -> Desk:
    desk = Desk(tmp_path / "data", load_profile("nano", SETTINGS))
    keys = [canonical_key(url(name)) for name in (*NAMES, "copy")]
    desk.add([Source(source_id(key), key, key, "promo", None, None, "CC BY 3.0", "list.csv", 1) for key in keys])
    work(desk, desk.pending())
    return desk


@pytest.fixture
def made(desk: Desk) -> Release:
    release = desk.release()
    assert release is not None
    return release


def test_a_release_is_the_same_when_everything_is_there_and_nothing_is_asked_for(
    desk: Desk, made: Release, web: Web
) -> None:
    web.downloads.clear()
    before = desk.store.read_text("releases/latest"), desk.ledger.states()
    again = rebuild(f"{made.path}/manifest.json", desk.store.root, known=desk.ledger)
    assert again.whole and again.release is not None
    assert (again.release.id, len(again.same), again.different, again.missing) == (made.id, 6, (), ())
    assert Path(again.release.path).parent == Path(desk.store.path("rebuilt/releases"))
    assert validate(again.release.path).ok
    assert web.downloads == []
    assert (desk.store.read_text("releases/latest"), desk.ledger.states()) == before


def test_a_release_is_the_same_in_an_empty_folder_that_fetches_everything(
    made: Release, web: Web, tmp_path: Path
) -> None:
    web.downloads.clear()
    again = rebuild(made.path, tmp_path / "elsewhere")
    assert again.whole
    assert sorted(web.downloads) == sorted(url(name) for name in NAMES), "the copy gave no clip, so nobody asks for it"


def test_what_is_gone_is_named_with_its_clips_and_the_reason_and_the_rest_is_made(
    made: Release, web: Web, tmp_path: Path
) -> None:
    del web.videos[url("b")]
    web.refusals[url("c")] = "geo"
    web.videos[url("d")] += "v" * 9
    again = rebuild(made.path, tmp_path / "elsewhere")
    assert not again.whole and again.release is not None
    named = {lost.url: (lost.why.split(" (")[0], lost.seconds) for lost in again.missing}
    assert named == {
        url("b"): ("permanent: There is no such video", 21.0),
        url("c"): ("geo: Refused", 22.0),
        url("d"): ("the site gives another file now", 23.0),
    }
    lines = [json.loads(line) for line in (Path(made.path) / "sources.jsonl").read_text().splitlines()]
    lost_ids = {lost.source_id for lost in again.missing}
    assert {line["source_id"] for line in lines if line["url"] in named} == lost_ids
    assert all(clip.startswith(lost.source_id) for lost in again.missing for clip in lost.clips)
    assert again.release.clips == made.clips - 3
    assert set(again.same) | set(again.different) == {entry["name"] for entry in made.manifest["shards"]}
    assert again.different and validate(again.release.path).ok


def test_what_was_taken_down_stays_out(desk: Desk, made: Release, web: Web, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    Path(made.path).rename(kept)
    desk.store.remove("releases/latest")
    take_down(desk.store, desk.ledger, plan_takedown(desk.store, desk.ledger, Request(urls=(url("b"),))), purge=False)
    web.downloads.clear()
    again = rebuild(kept, desk.store.root, known=desk.ledger)
    assert [(lost.url, lost.why) for lost in again.missing] == [(url("b"), "taken down")]
    assert web.downloads == []


def test_what_people_have_said_is_heard_again(desk: Desk, tmp_path: Path) -> None:
    name = desk.ledger.sources()[1].source_id
    media = desk.ledger.media(name)
    assert media is not None
    said = {"start_ms": 0, "end_ms": 10_000, "decision": "drop"}
    desk.ledger.add_review(ReviewRow(source_id=name, sha256=media.sha256, reviewer="p", **said))
    work(desk, [name])
    made = desk.release()
    assert made is not None
    assert desk.ledger.spans_of_clips([name]) == {name: [(10_000, 21_000)]}
    assert rebuild(made.path, tmp_path / "elsewhere").whole


def test_a_manifest_or_list_that_was_changed_is_refused(made: Release, tmp_path: Path) -> None:
    manifest = Path(made.path) / "manifest.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"parent": "r-000000000000"}))
    with pytest.raises(ShardError, match="has been changed by hand"):
        rebuild(manifest, tmp_path / "elsewhere")
    manifest.write_text(json.dumps(said))
    with (Path(made.path) / "sources.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ShardError, match=r"sources\.jsonl is not as the manifest says"):
        rebuild(manifest, tmp_path / "elsewhere")
    with pytest.raises(ShardError, match="There is no manifest"):
        rebuild(tmp_path / "nowhere.json", tmp_path / "elsewhere")


def test_other_weights_are_named_before_anything_is_done(made: Release, web: Web, tmp_path: Path) -> None:
    manifest = Path(made.path) / "manifest.json"
    said = json.loads(manifest.read_text())
    said["models"]["vision"]["digest"] = "f" * 64
    manifest.write_text(json.dumps(said | {"digest": digest({k: v for k, v in said.items() if k != "digest"})}))
    web.downloads.clear()
    with pytest.raises(DvmsetError, match=r"other weights: vision \(.*\): ffffffffffff then"):
        rebuild(manifest, tmp_path / "elsewhere")
    assert web.downloads == []
