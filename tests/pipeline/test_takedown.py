"""Takedowns: what goes, what stays, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import takedown
from pipeline.config import load_profile
from pipeline.errors import DvmsetError
from pipeline.fingerprint.catalogue import KINDS, Catalogue, source_of
from pipeline.process import Desk
from pipeline.process.duplicates import group_sources
from pipeline.process.provenance import figures
from pipeline.rebuild import rebuild
from pipeline.refresh import look_around
from pipeline.release import Wanted, releases_with
from pipeline.shards import Shard, validate
from pipeline.takedown import Request, is_genuine, plan_takedown, take_down
from tests.world import Web, work

PROFILE = load_profile("nano", ["refresh.probe_days=0", "release.buckets={train: 4, validation: 1, test: 1}"])


def url(name: str) -> str:
    return f"https://{name}.example/video.mp4"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web({url(name): "m" * (20 + i) + "v" * 5 for i, name in enumerate("abcde")})
    web.videos[url("copy")] = web.videos[url("b")]
    web.channels = {url("d"): "Some Label", url("e"): "Some Label"}
    web.replace_edges(monkeypatch)
    return web


@pytest.fixture
def desk(tmp_path: Path, web: Web, ledger_url: str) -> Iterator[Desk]:
    """A data folder with all of it."""
    desk = Desk(tmp_path / "data", PROFILE, ledger_url=ledger_url)
    refresh(desk, web, *"abcde", "copy")
    yield desk
    desk.ledger.close()


def refresh(desk: Desk, web: Web, *names: str) -> tuple[str, ...]:
    """Refreshes and releases; returns the addresses that were refused."""
    listed = Path(desk.store.path("list.txt"))
    listed.write_text("".join(f"{url(name)}\n" for name in names))
    found = look_around(desk, [listed], probe=web.probe)
    work(desk, found.pending)
    desk.release()
    return found.lists.refused


def down(desk: Desk, *, purge: bool = False, **asked: Any) -> dict[str, Any]:
    return take_down(desk.store, desk.ledger, plan_takedown(desk.store, desk.ledger, Request(**asked)), purge=purge)


def released(desk: Desk) -> set[str]:
    folder = Path(desk.store.path("releases")) / desk.store.read_text("releases/latest").strip()
    assert validate(folder).problems == ()
    return {row["url"] for path in folder.glob("*.parquet") for row in Shard(path)}


def id_of(desk: Desk, name: str) -> str:
    return next(source.source_id for source in desk.ledger.sources() if source.url == url(name))


def files_of(desk: Desk, source_id: str) -> list[Path]:
    return [path for path in Path(desk.store.root).rglob(f"*{source_id}*") if path.is_file()]


def test_media_features_rows_and_shard_rows_go_with_every_copy(desk: Desk) -> None:
    b, copy = id_of(desk, "b"), id_of(desk, "copy")
    assert files_of(desk, b)
    before, clips = desk.ledger.funnel(), desk.ledger.clips(b)
    receipt = down(desk, urls=(url("b"),))
    assert files_of(desk, b) == files_of(desk, copy) == []
    indexed = {source_of(name) for kind in KINDS for name in Catalogue(desk.store, kind).names}
    assert indexed and not indexed & {b, copy}
    assert released(desk) == {url(name) for name in "acde"}
    assert {source.url for source in desk.ledger.sources()} == {url(name) for name in "acde"}
    assert desk.ledger.clips(b) == []
    funnel = desk.ledger.funnel()
    assert funnel.fetched_ms == before.fetched_ms == funnel.kept_ms + sum(funnel.dropped_ms.values())
    assert funnel.dropped_ms["taken_down"] == 2 * 26_000
    assert receipt["release"]["clips_removed"] == len(clips) == 1
    assert receipt["release"]["seconds_removed"] == (clips[0].end_ms - clips[0].start_ms) / 1000
    assert len(receipt["release"]["shards_rewritten"]) == 1
    assert {source["source_id"] for source in receipt["sources"]} == {b, copy}
    assert receipt["rows"]["clips"] == 1


def test_the_receipt_is_as_it_was_written_or_is_known_not_to_be(desk: Desk) -> None:
    receipt = down(desk, urls=(url("a"),))
    written = json.loads(Path(receipt["path"]).read_text())
    assert is_genuine(written)
    assert written["asked"]["urls"] == [url("a")]
    assert not is_genuine({**written, "files": {"count": 0, "bytes": 0}})


def test_the_release_says_what_it_lost_and_untouched_shards_are_the_same(desk: Desk) -> None:
    releases = Path(desk.store.path("releases"))
    before = json.loads((releases / desk.store.read_text("releases/latest").strip() / "manifest.json").read_text())
    receipt = down(desk, source_ids=(id_of(desk, "c"),))
    manifest = json.loads((releases / receipt["release"]["id"] / "manifest.json").read_text())
    assert manifest["parent"] == before["id"]
    assert manifest["diff"]["removed"]["reasons"] == {"taken down": 1}
    assert manifest["funnel"]["kept"] == sum(split["seconds"] for split in manifest["splits"].values())
    differ = [a for a, b in zip(before["shards"], manifest["shards"], strict=True) if a["sha256"] != b["sha256"]]
    assert [shard["name"] for shard in differ] == receipt["release"]["shards_rewritten"]
    made_from_features = desk.release()
    assert made_from_features and not made_from_features.changed


def test_lists_that_bring_it_again_are_told_and_not_followed(desk: Desk, web: Web) -> None:
    down(desk, urls=(url("a"),))
    web.downloads.clear()
    assert refresh(desk, web, *"abcde", "copy") == (url("a"),)
    assert web.downloads == []
    assert url("a") not in released(desk)
    assert desk.add([]) == 0


def test_the_same_file_under_another_address_is_fetched_once_and_kept_out(desk: Desk, web: Web) -> None:
    down(desk, urls=(url("a"),))
    web.videos[url("new")] = web.videos.pop(url("a"))
    refresh(desk, web, *"bcde", "copy", "new")
    assert url("new") not in released(desk)
    assert files_of(desk, id_of(desk, "new")) == []
    web.downloads.clear()
    assert refresh(desk, web, *"bcde", "copy", "new") == (url("new"),)
    assert web.downloads == []


def test_a_channel_goes_and_whatever_comes_of_it_later(desk: Desk, web: Web) -> None:
    receipt = down(desk, channel="some label")
    assert {source["url"] for source in receipt["sources"]} == {url("d"), url("e")}
    web.videos[url("later")], web.channels[url("later")] = "m" * 40, "Some Label"
    refresh(desk, web, *"abc", "copy", "later")
    assert released(desk) == {url(name) for name in "abc"}
    assert files_of(desk, id_of(desk, "later")) == []


def test_a_list_of_videos_known_or_not_is_kept_out(desk: Desk, web: Web, tmp_path: Path) -> None:
    asked = tmp_path / "notice.txt"
    asked.write_text(f"{url('a')}\nsmudged\n{url('never-seen')}\n")
    with pytest.raises(DvmsetError, match=r"nothing was changed \(.*notice\.txt:2: "):
        down(desk, lists=(asked,))
    asked.write_text(f"{url('a')}\n{url('never-seen')}\n")
    down(desk, lists=(asked,))
    web.videos[url("never-seen")] = "m" * 33
    assert refresh(desk, web, *"abcde", "copy", "never-seen") == (url("a"), url("never-seen"))


def test_older_releases_are_named_or_purged(desk: Desk, web: Web) -> None:
    releases = Path(desk.store.path("releases"))
    first = desk.store.read_text("releases/latest").strip()
    receipt = down(desk, urls=(url("a"),))
    older = receipt["older_releases"]
    assert (older["purged"], list(older["still_hold"])) == ([], [f"releases/{first}"])
    assert "sources.jsonl" in older["still_hold"][f"releases/{first}"]
    second = receipt["release"]["id"]
    receipt = down(desk, urls=(url("b"),), purge=True)
    purged = sorted(f"releases/{name}" for name in (first, second))
    assert receipt["older_releases"] == {"purged": purged, "still_hold": {}}
    assert [path.name for path in releases.iterdir() if path.is_dir()] == [receipt["release"]["id"]]
    assert released(desk) == {url(name) for name in "cde"}


def test_a_source_without_a_clip_leaves_every_page_and_list_of_the_release_which_keeps_its_id(
    tmp_path: Path, web: Web
) -> None:
    desk = Desk(tmp_path / "pages", PROFILE)
    web.videos |= {url("talk"): "v" * 40, url("turned"): "m" * 30}
    refresh(desk, web, "a", "talk", "turned")
    first = desk.store.read_text("releases/latest").strip()
    web.videos[url("turned")] = "v" * 33  # so that the next release tells that its clip went
    refresh(desk, web, "a", "talk", "turned")
    newest = desk.store.read_text("releases/latest").strip()
    talk, turned = id_of(desk, "talk"), id_of(desk, "turned")
    words = [url("talk"), url("turned"), talk, turned]
    place = Path(desk.store.path(f"releases/{newest}"))
    assert turned in (place / "changes.jsonl").read_text() and url("talk") in (place / "report.html").read_text()
    rebuild(place.with_name(first), desk.store.root)

    receipt = down(desk, source_ids=(talk, turned), purge=True)
    assert receipt["release"]["id"] == newest
    assert receipt["release"]["files_renewed"] == ["changes.jsonl", "report.html"]
    assert (receipt["release"]["clips_removed"], receipt["release"]["shards_rewritten"]) == (0, [])
    assert receipt["older_releases"]["purged"] == [f"rebuilt/releases/{first}", f"releases/{first}"]
    assert {path.name for path in place.parent.iterdir()} == {newest, "latest"}
    texts = {path: path.read_bytes().decode(errors="replace") for path in place.rglob("*") if path.is_file()}
    assert [(path.name, word) for path, text in texts.items() for word in words if word in text] == []
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["parent"] == manifest["diff"]["parent"] == first
    assert manifest["diff"]["removed"]["clips"] == 0
    assert validate(place).problems == ()
    again = desk.release()
    assert again and (again.id, again.changed) == (newest, False)
    desk.ledger.close()


@pytest.mark.parametrize("name", ["b", "talk"])
def test_the_card_says_what_the_ledger_says_afterwards(tmp_path: Path, web: Web, name: str) -> None:
    desk = Desk(tmp_path / "card", PROFILE)
    web.videos[url("talk")] = "v" * 40
    refresh(desk, web, *"abc", "talk", "dead")
    receipt = down(desk, urls=(url(name),))
    place = Path(desk.store.path(f"releases/{receipt['release']['id']}"))
    manifest, card = json.loads((place / "manifest.json").read_text()), (place / "README.md").read_text()
    ledger = desk.ledger
    now = figures(ledger, PROFILE.release, group_sources(ledger, PROFILE.release.shared_s))
    assert {name: manifest["provenance"][name] for name in now} == now
    assert now["sources"] == {"failed": 1, "ready": 3}
    assert manifest["provenance"]["command"].startswith("dvmset build")
    assert manifest["funnel"] == ledger.funnel().as_seconds()
    assert manifest["funnel"]["dropped"]["taken_down"] == (40.0 if name == "talk" else 26.0)
    assert f"| alive | 3 | {ledger.survival()['alive']['seconds']:,.3f} |" in card
    ledger.close()


def test_pages_of_older_releases_are_named_by_their_files(tmp_path: Path, web: Web) -> None:
    desk = Desk(tmp_path / "older", PROFILE)
    refresh(desk, web, "a", "b")
    newest = desk.store.read_text("releases/latest").strip()
    web.videos[url("f")] = "m" * 41
    refresh(desk, web, *"abf")
    report = Path(desk.store.path(f"releases/{newest}/report.html"))
    longer = report.read_text().replace(url("a"), "") + f"<code>{url('a')}.orig</code>"
    report.write_text(longer + "<code>HTTPS://A.example:443/video.mp4#t=3</code>")
    receipt = down(desk, urls=(url("a"),))
    assert "report.html" in receipt["older_releases"]["still_hold"][f"releases/{newest}"]
    report.write_text(longer)  # a longer address is another video's
    assert "report.html" not in releases_with(desk.store, Wanted((), (url("a"),)))[f"releases/{newest}"]


def test_the_last_source_leaves_an_empty_release(tmp_path: Path, web: Web) -> None:
    desk = Desk(tmp_path / "one", PROFILE)
    refresh(desk, web, "a")
    receipt = down(desk, urls=(url("a"),), purge=True)
    assert released(desk) == set()
    assert receipt["release"]["clips_removed"] == 1


@pytest.mark.parametrize("step", ["releases_with", "release_without", "forget"])
def test_one_that_is_interrupted_keeps_the_source_out_and_is_finished_by_the_next(
    desk: Desk, web: Web, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = id_of(desk, "a")
    with monkeypatch.context() as patch:
        patch.setattr(takedown, step, Raises(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            down(desk, urls=(url("a"),))
    refresh(desk, web, *"abcde", "copy")
    assert url("a") not in released(desk)
    down(desk, urls=(url("a"),))
    assert files_of(desk, a) == []
    assert a not in {source.source_id for source in desk.ledger.sources()}


@pytest.mark.parametrize("asked", [{"urls": (url("b"),)}, {"channel": "SOME LABEL"}, {"source_ids": ()}])
def test_older_releases_can_be_purged_later_by_the_same_command(desk: Desk, asked: dict[str, Any]) -> None:
    asked = asked if any(asked.values()) else {"source_ids": (id_of(desk, "copy"),)}
    first = desk.store.read_text("releases/latest").strip()
    receipt = down(desk, **asked)
    assert list(receipt["older_releases"]["still_hold"]) == [f"releases/{first}"]
    again = down(desk, **asked, purge=True)
    assert again["older_releases"] == {"purged": [f"releases/{first}"], "still_hold": {}}
    assert (again["sources"], again["files"]["count"], again["release"]["clips_removed"]) == ([], 0, 0)
    assert again["release"]["id"] == receipt["release"]["id"]
    assert again["taken_down_before"] == sorted(source["source_id"] for source in receipt["sources"])
    assert len(again["taken_down_before"]) == 2
    assert desk.store.names("releases") == sorted([receipt["release"]["id"], "latest"])


def test_what_is_not_here_is_said(desk: Desk) -> None:
    with pytest.raises(DvmsetError, match="no source 0123456789abcdef"):
        plan_takedown(desk.store, desk.ledger, Request(source_ids=("0123456789abcdef",)))
    with pytest.raises(DvmsetError, match="names no source"):
        plan_takedown(desk.store, desk.ledger, Request())


class Raises:
    """A function that raises."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Raises."""
        raise self.error
