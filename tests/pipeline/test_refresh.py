"""Refreshes: lists and sites against the ledger, what follows, and what releases say of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.cli.data import print_release
from pipeline import music
from pipeline.config import FetchSettings, load_profile
from pipeline.errors import POLICIES, DvmsetError, ErrorClass, SourceError
from pipeline.process import Desk
from pipeline.refresh import Findings, ask_sites, look_around, summary
from pipeline.release import Release
from pipeline.shards import Shard, validate
from pipeline.sources import Source
from tests.world import Web, work

SETTINGS = ("refresh.probe_days=0", "release.buckets={train: 4, validation: 1, test: 1}")
MUSIC = "m" * 20 + "s" * 5
OTHER = "v" * 5 + "m" * 30


def url(name: str) -> str:
    return f"https://{name}.example/video.mp4"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    """Five videos, each of its own length, on a host of its own."""
    web = Web({url(name): "m" * (20 + i) + "s" * 5 for i, name in enumerate("abcde")})
    web.replace_edges(monkeypatch)
    return web


@pytest.fixture
def desk(tmp_path: Path, ledger_url: str) -> Iterator[Desk]:
    desk = Desk(tmp_path / "data", load_profile("nano", SETTINGS), ledger_url=ledger_url)
    yield desk
    desk.ledger.close()


Refresh = Callable[..., tuple[Findings, Release | None]]


@pytest.fixture
def refresh(desk: Desk, web: Web, tmp_path: Path) -> Refresh:
    def refresh(names: Sequence[str], *, on: Desk = desk, **categories: str) -> tuple[Findings, Release | None]:
        listed = tmp_path / "list.csv"
        rows = (f"{url(name)},{categories.get(name, 'promo')}\n" for name in names)
        listed.write_text("url,category\n" + "".join(rows))
        found = look_around(on, [listed], probe=web.probe)
        work(on, found.pending)
        return found, on.release()

    return refresh


def rows(desk: Desk) -> list[dict[str, Any]]:
    release = Path(desk.store.path("releases")) / desk.store.read_text("releases/latest").strip()
    assert validate(release).problems == ()
    return [row for path in sorted(release.glob("*.parquet")) for row in Shard(path)]


def urls(desk: Desk) -> set[str]:
    return {row["url"] for row in rows(desk)}


def changes(release: Release | None) -> dict[str, Any]:
    assert release is not None and release.changed and release.diff is not None
    return {kind: said["reasons"] for kind, said in release.diff.items() if kind != "parent" and said["clips"]}


def shards(release: Release | None) -> dict[str, str]:
    assert release is not None
    return {shard["name"]: shard["sha256"] for shard in release.manifest["shards"]}


def test_an_unchanged_list_downloads_nothing_and_makes_no_release(refresh: Refresh, web: Web) -> None:
    _, first = refresh("abcde")
    assert sorted(web.downloads) == sorted(map(url, "abcde"))
    found, second = refresh("abcde")
    assert (found.pending, found.sites.asked, len(web.downloads)) == ([], 5, 5)
    assert first and second and not second.changed
    assert second.id == first.id


def test_a_new_source_costs_its_own_work_and_one_shard(refresh: Refresh, web: Web) -> None:
    _, before = refresh("abcd")
    web.downloads.clear()
    found, after = refresh("abcde")
    assert (found.lists.new, web.downloads) == (1, [url("e")])
    assert changes(after) == {"added": {"new in the list": 1}}
    assert sum(shards(before)[name] != sha256 for name, sha256 in shards(after).items()) == 1
    assert after and before and after.manifest["parent"] == before.id


def test_a_changed_category_relabels_clips_without_any_work(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    web.downloads.clear()
    found, after = refresh("abcde", b="commercial")
    assert (found.lists.relabelled, found.pending, web.downloads) == (1, [], [])
    assert changes(after) == {"relabelled": {"changed in the list": 1}}
    assert {row["category"] for row in rows(desk) if row["url"] == url("b")} == {"commercial"}


def test_a_removed_source_leaves_the_release_and_comes_back_without_a_download(
    refresh: Refresh, web: Web, desk: Desk
) -> None:
    _, first = refresh("abcde")
    found, removed = refresh("abde")
    assert found.lists.removed == 1
    assert changes(removed) == {"removed": {"removed from the list": 1}}
    assert urls(desk) == {url(name) for name in "abde"}
    assert desk.ledger.funnel().dropped_ms["removed"] == len(web.videos[url("c")]) * 1000
    web.downloads.clear()
    found, restored = refresh("abcde")
    assert (found.lists.restored, web.downloads) == (1, [])
    assert changes(restored) == {"added": {"back in the list": 1}}
    assert restored and first and restored.id == first.id
    assert desk.ledger.releases()[-1].release_id == first.id


def test_a_list_that_lost_most_of_its_rows_is_taken_for_a_mistake(refresh: Refresh, web: Web, desk: Desk) -> None:
    names = [f"v{i}" for i in range(20)]
    web.videos = {url(name): MUSIC for name in names}
    refresh(names)
    with pytest.raises(DvmsetError, match="15 of 20 sources are not in the lists any more; nothing was changed"):
        refresh(names[:5])
    assert "removed" not in desk.ledger.states()
    with pytest.raises(DvmsetError, match="No usable source"):
        refresh([])
    settings = load_profile("nano", [*SETTINGS, "refresh.most_removed=0.9"])
    meant = Desk(desk.store.root, settings, ledger_url=desk.ledger_url)
    assert refresh(names[:5], on=meant)[0].lists.removed == 15


def test_what_changed_upstream_is_fetched_and_computed_anew(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    web.downloads.clear()
    web.videos[url("b")] = OTHER
    found, after = refresh("abcde")
    assert (found.sites.changed, web.downloads) == (1, [url("b")])
    assert changes(after) == {"added": {"changed upstream": 1}, "removed": {"changed upstream": 1}}
    assert [(r["start_s"], r["end_s"]) for r in rows(desk) if r["url"] == url("b")] == [(10.0, 35.0)]


def test_clips_stay_until_what_changed_upstream_has_come(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    web.videos[url("b")] = OTHER

    def build() -> Release | None:
        work(desk, desk.pending())
        return desk.release()

    assert ask_sites(desk, web.probe).changed == 1
    web.refusals[url("b")] = "transient"
    for _ in range(2):  # the second time it isn't due
        after = build()
        assert after and not after.changed
    assert desk.pending() == []
    assert url("b") in urls(desk)
    others = Desk(desk.store.root, load_profile("nano", [*SETTINGS, "clips.min_s=12"]), ledger_url=desk.ledger_url)
    work(others, others.pending())
    assert changes(others.release()) == {"removed": {"failed: transient": 1}}, "its clips are of other settings"
    del web.refusals[url("b")]
    desk.ledger.reopen([failure.source_id for failure in desk.ledger.failures()])
    assert changes(build()) == {"added": {"changed upstream": 1}}


def test_a_site_that_is_down_while_settings_change_does_not_empty_the_release(
    refresh: Refresh, web: Web, desk: Desk
) -> None:
    refresh("abcde")
    for name in "ab":
        web.refusals[url(name)] = "transient"
    others = Desk(desk.store.root, load_profile("nano", [*SETTINGS, "vision.batch=7"]), ledger_url=desk.ledger_url)
    work(others, others.pending())
    with pytest.raises(DvmsetError, match="2 of the 5 sources of the last release can't be had now"):
        others.release()
    assert {url("a"), url("b")} <= urls(desk)
    work(desk, desk.pending())  # what is stored is enough under the settings of before, and nothing has to rest
    after = desk.release()
    assert after is not None and not after.changed
    assert desk.ledger.states() == {"ready": 5}
    willing = [*SETTINGS, "vision.batch=7", "refresh.most_removed=1"]
    resigned = Desk(desk.store.root, load_profile("nano", willing), ledger_url=desk.ledger_url)
    work(resigned, resigned.pending())
    assert changes(resigned.release())["removed"] == {"failed: transient": 2}


def test_clips_leave_when_what_changed_upstream_can_not_be_had(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    web.videos[url("b")] = OTHER
    ask_sites(desk, web.probe)
    web.refusals[url("b")] = "unsupported"
    work(desk, desk.pending())
    assert changes(desk.release()) == {"removed": {"failed: unsupported": 1}}


@pytest.mark.parametrize("steps", [("acquire",), ("acquire", "analyse")])
def test_a_source_that_came_anew_is_finished_before_anything_is_released(
    refresh: Refresh, web: Web, desk: Desk, steps: tuple[str, ...]
) -> None:
    refresh("abcde")
    web.videos[url("b")] = OTHER
    ask_sites(desk, web.probe)
    (source_id,) = desk.pending()
    for step in steps:  # then the build was killed
        getattr(desk, step)(source_id)
    assert desk.pending() == [source_id]
    with pytest.raises(DvmsetError, match="1 source came anew"):
        desk.release()
    assert url("b") in urls(desk)
    work(desk, desk.pending())
    assert changes(desk.release()) == {"added": {"changed upstream": 1}, "removed": {"changed upstream": 1}}


def test_each_question_to_a_site_holds_the_limits_that_workers_share(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("ab")
    held: list[str] = []

    @contextmanager
    def hold(address: str) -> Iterator[None]:
        held.append(address)
        yield
        held.pop()

    def probe(source: Source, settings: FetchSettings) -> dict[str, Any]:
        assert held == [source.url]
        return web.probe(source, settings)

    assert ask_sites(desk, probe, hold).asked == 2
    assert held == []


def test_a_refetch_that_waits_is_shown_and_can_be_asked_for(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    web.videos[url("b")] = OTHER
    ask_sites(desk, web.probe)
    assert (desk.ledger.refetches(), desk.ledger.failures()) == (1, [])
    web.refusals[url("b")] = "transient"
    work(desk, desk.pending())
    (failure,) = desk.ledger.failures()
    assert (failure.url, failure.error_class, failure.keeps_clips) == (url("b"), "transient", True)
    for _ in range(2):
        assert desk.pending() == []
        desk.ledger.reopen([failure.source_id])
        assert desk.pending() == [failure.source_id]
        work(desk, desk.pending())
        after = desk.release()
        assert after and not after.changed, "its clips stay all the while"
    del web.refusals[url("b")]
    desk.ledger.reopen([failure.source_id])
    work(desk, desk.pending())
    assert changes(desk.release())["added"] == {"changed upstream": 1}
    assert (desk.ledger.refetches(), desk.ledger.failures()) == (0, [])


@pytest.mark.parametrize("error_class", ["transient", "internal"])
def test_a_source_that_has_had_all_its_tries_is_asked_for_like_a_dead_one(
    refresh: Refresh, web: Web, desk: Desk, error_class: ErrorClass
) -> None:
    web.refusals[url("b")] = error_class
    refresh("abcde")
    (failure,) = desk.ledger.failures()
    for _ in range(POLICIES[error_class].tries - 2):
        desk.ledger.fail(failure.source_id, "fetch", error_class, "Nobody answers.", seconds=0.0)
    web.probes.clear()
    assert ask_sites(desk, web.probe).returned == 0
    assert url("b") not in web.probes, "it is tried again anyway"
    desk.ledger.fail(failure.source_id, "fetch", error_class, "Nobody answers.", seconds=0.0)
    del web.refusals[url("b")]
    refresh("abcde")
    assert url("b") in web.probes
    assert url("b") in urls(desk)


def test_media_of_a_source_that_failed_for_good_is_removed(
    refresh: Refresh, web: Web, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise SourceError("There is no sound in it.", "unsupported" if url("a") in web.downloads[:1] else "internal")

    monkeypatch.setattr(music, "measure", broken)
    refresh("a")
    assert desk.store.names("media") == []
    web.downloads.clear()
    refresh("b")
    assert len(desk.store.names("media")) == 1, "it is tried again in an hour"


def test_what_is_gone_upstream_stays_by_default_and_is_counted(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    web.refusals[url("c")] = "permanent"
    found, after = refresh("abcde")
    assert after and not after.changed
    assert found.sites.gone == 1
    assert desk.ledger.survival()["gone: permanent"] == {"sources": 1, "seconds": 27.0}
    del web.refusals[url("c")]
    found, _ = refresh("abcde")
    assert (found.sites.returned, list(desk.ledger.survival())) == (1, ["alive"])


def test_what_is_gone_upstream_goes_where_the_settings_say_so(refresh: Refresh, web: Web, desk: Desk) -> None:
    strict = Desk(desk.store.root, load_profile("nano", [*SETTINGS, "refresh.gone=drop"]), ledger_url=desk.ledger_url)
    refresh("abcde", on=strict)
    web.refusals[url("c")] = "permanent"
    _, after = refresh("abcde", on=strict)
    assert changes(after) == {"removed": {"gone upstream": 1}}
    del web.refusals[url("c")]
    web.downloads.clear()
    _, back = refresh("abcde", on=strict)
    assert (changes(back), web.downloads) == ({"added": {"back upstream": 1}}, [])


def test_a_dead_link_that_comes_alive_is_found_by_asking_for_it(refresh: Refresh, web: Web, desk: Desk) -> None:
    web.refusals[url("a")] = "permanent"
    refresh("abcde")
    assert desk.ledger.errors() == {"permanent": 1}
    web.downloads.clear()
    refresh("abcde")
    assert web.downloads == []
    del web.refusals[url("a")]
    found, after = refresh("abcde")
    assert (found.sites.returned, web.downloads) == (1, [url("a")])
    assert changes(after) == {"added": {"back upstream": 1}}


def test_sites_are_asked_for_few_sources_at_a_time_oldest_first(refresh: Refresh, web: Web, desk: Desk) -> None:
    slow = Desk(desk.store.root, load_profile("nano", [*SETTINGS, "refresh.probes=2"]), ledger_url=desk.ledger_url)
    refresh("abcde", on=slow)
    asked = [sorted(web.probes[-2:]) for _ in range(3) if refresh("abcde", on=slow)]
    assert asked[:2] == [sorted(map(url, "ab")), sorted(map(url, "cd"))]
    assert url("e") in asked[2]
    patience = load_profile("nano", [*SETTINGS, "refresh.probe_days=30"])
    patient = Desk(desk.store.root, patience, ledger_url=desk.ledger_url)
    assert refresh("abcde", on=patient)[0].sites.asked == 0


def test_nothing_is_concluded_from_trouble_with_the_network(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    web.refusals |= {url("a"): "transient", url("b"): "throttled"}
    found, after = refresh("abcde")
    assert (found.sites.gone, found.sites.silent, list(desk.ledger.survival())) == (0, 2, ["alive"])
    assert after and not after.changed
    found, _ = refresh("abcde")
    assert found.sites.resting == {"b.example"}


def test_other_thresholds_run_no_model_and_ask_for_nothing(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    web.downloads.clear()
    longer = Desk(desk.store.root, load_profile("nano", [*SETTINGS, "clips.min_s=21"]), ledger_url=desk.ledger_url)
    found, after = refresh("abcde", on=longer)
    assert (len(found.pending), web.downloads) == (5, [])
    assert changes(after) == {"removed": {"dropped: too_short": 1}}


def test_another_split_is_named_as_a_change_of_settings(refresh: Refresh, desk: Desk) -> None:
    refresh("abcde")
    others = Desk(
        desk.store.root, load_profile("nano", [*SETTINGS, "release.test_share=0.8"]), ledger_url=desk.ledger_url
    )
    after = others.release()
    (reason,) = changes(after)["relabelled"]
    assert reason == "another group, title or channel, or another split under other settings"
    shown = io.StringIO()
    print_release(after, Console(file=shown, width=200), new=True)
    assert "settings not those of the release before: release.test_share" in shown.getvalue()


def test_a_duplicate_takes_the_place_of_the_first_when_that_goes(refresh: Refresh, web: Web, desk: Desk) -> None:
    web.videos[url("mirror")] = web.videos[url("b")]
    refresh(["a", "b", "c", "mirror"])
    assert url("mirror") not in urls(desk)
    found, after = refresh(["a", "c", "mirror"])
    assert found.revived == 1
    assert urls(desk) == {url("a"), url("c"), url("mirror")}
    assert changes(after)["removed"] == {"removed from the list": 1}


def test_every_clip_that_changed_is_listed_with_its_reason(refresh: Refresh, web: Web, desk: Desk) -> None:
    refresh("abcde")
    found, after = refresh("abde", b="commercial")
    assert after is not None
    said = [json.loads(line) for line in (Path(after.path) / "changes.jsonl").read_text().splitlines()]
    assert [(c["kind"], c["reason"]) for c in said if c["kind"] == "removed"] == [("removed", "removed from the list")]
    assert {c["kind"] for c in said} == {"removed", "relabelled"}
    text = summary(desk, found, after.diff, after.id)
    assert "4 sources, 0 new, 1 changed, 1 removed" in text
    assert "| 1 | 22.000 | removed | 1 removed from the list |" in text
    assert "dropped: removed" in text


def test_the_last_source_may_go(refresh: Refresh, desk: Desk, web: Web) -> None:
    refresh("a")
    web.videos[url("b")] = "s" * 20
    _, after = refresh("b")
    assert after and after.clips == 0 and rows(desk) == []
