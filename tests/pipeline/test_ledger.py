"""The ledger: append-only attempts, spans that always add up, states and what is still to be done."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DvmsetError
from pipeline.ledger import Ledger, now


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


def source(name: str, **changes: Any) -> dict[str, Any]:
    row = {"source_id": name, "key": f"https://x/{name}", "url": f"https://x/{name}", "category": "promo"}
    return row | {"start_s": None, "end_s": None, "license": ""} | changes


def media(name: str, duration_ms: int = 10_000, sha256: str = "") -> dict[str, Any]:
    row = {"source_id": name, "key": "k", "name": f"media/{name}.mp4", "sha256": sha256 or name, "bytes": 5}
    return row | {"duration_ms": duration_ms, "has_video": True, "has_audio": True, "details": {"title": "t"}}


def clip(name: str, start_ms: int, end_ms: int) -> dict[str, Any]:
    return {"clip_id": f"{name}-{start_ms}", "source_id": name, "start_ms": start_ms, "end_ms": end_ms, "measures": {}}


def test_a_list_read_twice_adds_nothing_but_takes_over_its_labels(ledger: Ledger) -> None:
    assert ledger.add_sources([source("a"), source("b")]) == 2
    assert ledger.add_sources([source("b", category="commercial"), source("c")]) == 1
    assert [(s.source_id, s.category) for s in ledger.sources()] == [
        ("a", "promo"),
        ("b", "commercial"),
        ("c", "promo"),
    ]


def test_pending_leaves_out_what_is_done_and_what_failed_for_good(ledger: Ledger) -> None:
    ledger.add_sources([source(n) for n in "abcd"])
    ledger.set_state("a", "ready", done_key="new")
    ledger.set_state("b", "ready", done_key="old")
    ledger.fail("c", "fetch", "permanent", "gone", seconds=1)
    ledger.fail("d", "fetch", "transient", "timed out", seconds=1)
    assert ledger.pending("new", ("transient",)) == ["b", "d"]
    assert ledger.errors() == {"permanent": 1, "transient": 1}
    assert [(f.source_id, f.message) for f in ledger.failures()] == [("c", "gone"), ("d", "timed out")]


def test_every_try_is_kept(ledger: Ledger) -> None:
    since = now() - timedelta(seconds=1)
    ledger.add_sources([source("a")])
    ledger.fail("a", "fetch", "transient", "timed out", seconds=2)
    ledger.succeed("a", "fetch", seconds=3, bytes=7)
    ledger.set_state("a", "fetched")
    assert ledger.stage_seconds(since) == {"fetch": (5.0, 2)}
    assert ledger.states() == {"fetched": 1}
    assert ledger.errors() == {}


def test_fetched_seconds_are_pending_then_judged_then_failed_and_always_add_up(ledger: Ledger) -> None:
    ledger.add_sources([source("a"), source("b")])
    ledger.put_media(media("a", 10_001))
    assert ledger.funnel().as_seconds() == {"fetched": 10.001, "kept": 0.0, "dropped": {"pending": 10.001}}
    ledger.put_spans("a", [(0, 4_000, ""), (4_000, 10_001, "speech")], [clip("a", 0, 4_000)])
    assert ledger.funnel().dropped_ms == {"pending": 4_000, "speech": 6_001}, "its features are still to come"
    ledger.set_state("a", "ready")
    assert ledger.funnel().as_seconds() == {"fetched": 10.001, "kept": 4.0, "dropped": {"speech": 6.001}}
    ledger.fail("a", "vision", "internal", "broke", seconds=1)
    assert ledger.funnel().as_seconds() == {"fetched": 10.001, "kept": 0.0, "dropped": {"failed": 10.001}}


def test_a_clip_that_stays_keeps_its_artefacts_and_one_that_goes_is_gone(ledger: Ledger) -> None:
    ledger.add_sources([source("a")])
    ledger.put_media(media("a"))
    ledger.put_spans("a", [(0, 5_000, ""), (5_000, 10_000, "")], [clip("a", 0, 5_000), clip("a", 5_000, 10_000)])
    ledger.put_artefact("a-0", vision="v")
    ledger.put_spans("a", [(0, 5_000, ""), (5_000, 10_000, "speech")], [clip("a", 0, 5_000)])
    assert [(c.clip_id, c.vision) for c in ledger.clips("a")] == [("a-0", "v")]


def test_media_that_changed_upstream_loses_its_clips(ledger: Ledger) -> None:
    ledger.add_sources([source("a")])
    ledger.put_media(media("a"))
    ledger.put_spans("a", [(0, 10_000, "")], [clip("a", 0, 10_000)])
    ledger.put_media(media("a"))
    assert len(ledger.clips("a")) == 1
    ledger.put_media(media("a", sha256="other"))
    assert ledger.clips("a") == []
    assert ledger.funnel().dropped_ms == {"pending": 10_000}


def test_the_first_of_the_list_owns_media_that_two_sources_brought(ledger: Ledger) -> None:
    ledger.add_sources([source("a"), source("b"), source("c")])
    for name, sha256 in (("c", "same"), ("b", "same"), ("a", "else")):
        ledger.put_media(media(name, sha256=sha256))
        ledger.set_state(name, "ready")
    assert first(ledger, "same", asking="c") == "b"
    assert [video.source_id for video in ledger.videos()] == ["a", "b", "c"]
    assert ledger.repeated() == [], "none of them is decided on"
    ledger.put_spans("c", [(0, 10_000, "no_audio")], [])
    assert ledger.repeated() == ["c"], "whichever reason it has but this:"
    ledger.put_spans("c", [(0, 10_000, "duplicate")], [])
    assert ledger.repeated() == []


def test_a_source_that_failed_or_left_owns_nothing_but_is_as_good_as_new_to_itself(ledger: Ledger) -> None:
    ledger.add_sources([source("a"), source("b"), source("c")])
    for name in "abc":
        ledger.put_media(media(name, sha256="same"))
        ledger.set_state(name, "ready")
    ledger.fail("a", "music", "internal", "broke", seconds=1)
    assert (first(ledger, "same", asking="b"), first(ledger, "same", asking="a")) == ("b", "a")
    ledger.take_list([source("a"), source("c")], whole=True)
    assert first(ledger, "same", asking="c") == "c"


def first(ledger: Ledger, sha256: str, asking: str) -> str:
    found = ledger.first_with(sha256, asking)
    assert found is not None
    return found.source_id


def test_events_of_a_list_name_the_row_and_not_the_order_in_the_ledger(ledger: Ledger) -> None:
    ledger.add_sources([source("z"), source("a", file="lists/one.csv", line=7)])
    ledger.take_list([source("a", file="two.csv", line=2, category="late"), source("b")], whole=True)
    ledger.take_list([source("z", file="two.csv", line=9)], whole=False)
    told = {name: [(e.kind, e.detail) for e in ledger.record(name).events] for name in "abz"}
    assert told["a"] == [("added", "lists/one.csv:7"), ("relabelled", "two.csv:2")]
    assert told["b"] == [("added", "")], "it came from no file"
    assert told["z"] == [("added", ""), ("removed", ""), ("restored", "two.csv:9")]


def test_a_list_tells_what_is_new_changed_gone_and_back(ledger: Ledger) -> None:
    changes = ledger.take_list([source("a"), source("b"), source("c"), source("b", category="late")], whole=True)
    assert (changes.listed, changes.new) == (3, 3)
    changes = ledger.take_list([source("d"), source("b", license="CC0"), source("a")], whole=True)
    assert (changes.new, changes.relabelled, changes.removed, changes.restored) == (1, 1, 1, 0)
    assert [s.source_id for s in ledger.sources()] == ["a", "b", "c", "d"]
    assert (ledger.source("b").license, ledger.source("b").category) == ("CC0", "promo")
    assert ledger.states() == {"new": 3, "removed": 1}
    assert ledger.pending("k", ()) == ["a", "b", "d"]
    assert ledger.take_list([source("c")], whole=False).restored == 1
    again = ledger.take_list([source(n) for n in "abcd"], whole=True)
    assert (again.new, again.relabelled, again.removed, again.restored) == (0, 1, 0, 0)
    assert ledger.take_list([source(n) for n in "abcd"], whole=True) == type(again)(4)


def test_a_list_that_is_interrupted_changes_nothing(ledger: Ledger) -> None:
    ledger.add_sources([source("a")])

    def rows() -> Iterator[dict[str, Any]]:
        yield source("b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.take_list(rows(), whole=True)
    assert ledger.states() == {"new": 1}
    assert ledger.take_list([source("b")], whole=True).removed == 1


def test_a_lease_is_one_workers_until_it_runs_out_or_is_given_back(ledger: Ledger) -> None:
    assert ledger.take_lease("a", "one", 60)
    assert not ledger.take_lease("a", "two", 60)
    assert ledger.take_lease("a", "one", 60), "its own worker may renew it"
    assert ledger.leases() == {"a": "one"}
    assert ledger.take_lease("b", "two", -1)
    assert ledger.leases() == {"a": "one"}, "what has run out is nobody's"
    assert ledger.take_lease("b", "one", 60)
    assert ledger.renew_leases(["b"], "two", 60) == {"b"}, "too late"
    assert ledger.renew_leases(["a", "b"], "one", 60) == set()
    ledger.release_lease("a", "two")
    assert ledger.leases() == {"a": "one", "b": "one"}
    ledger.release_lease("a", "one")
    assert ledger.leases() == {"b": "one"}
    ledger.clear_leases()
    assert ledger.leases() == {}


def test_of_many_workers_that_want_a_lease_at_once_one_gets_it(ledger_url: str) -> None:
    workers = [Ledger(ledger_url) for _ in range(4)]
    names = [f"s{i}" for i in range(20)]

    def take(ledger: Ledger) -> set[str]:
        return {name for name in names if ledger.take_lease(name, str(id(ledger)), 60)}

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(take, workers))
    assert sorted(name for mine in taken for name in mine) == sorted(names)
    for ledger in workers:
        ledger.close()


def test_workers_that_open_a_new_ledger_and_take_a_list_at_once_agree(ledger_url: str) -> None:
    if ledger_url.startswith("sqlite"):  # a file is opened by one command first
        Ledger(ledger_url).close()

    def take(_: int) -> int:
        ledger = Ledger(ledger_url)
        new = ledger.add_sources([source(f"s{i}") for i in range(50)])
        ledger.close()
        return new

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, range(4))) == [0, 0, 0, 50]


def test_times_come_back_as_they_were_whatever_the_servers_time_zone(ledger: Ledger) -> None:
    ledger.add_sources([source("a")])
    ledger.fail("a", "fetch", "transient", "timed out", seconds=2)
    (failure,) = ledger.failures()
    assert abs(failure.at - now()) < timedelta(minutes=5)
    assert failure.at.utcoffset() == timedelta(0)
    assert ledger.stage_seconds(now() - timedelta(minutes=5)) == {"fetch": (2.0, 1)}
    assert ledger.stage_seconds(now() + timedelta(minutes=5)) == {}


def test_files_of_more_than_four_gigabytes_are_counted(ledger: Ledger) -> None:
    ledger.add_sources([source("a")])
    ledger.put_media(media("a") | {"bytes": 5 << 30})
    ledger.succeed("a", "fetch", seconds=10, bytes=5 << 30)
    assert ledger.rates().bytes_per_second == (5 << 30) / 10
    assert ledger.rates().download_bytes_per_s == (5 << 30) / 10


def test_a_channel_is_found_in_any_case_and_script_and_kept_out_so(ledger: Ledger) -> None:
    names = {"a": "ÉCOLE Straße", "b": "École strasse", "c": "E\u0301cole straße", "d": "ecole strasse", "e": "КИНО"}
    ledger.add_sources([source(name) for name in names])
    for name, channel in names.items():
        ledger.put_media(media(name) | {"details": {"channel": channel}})
    assert [row.source_id for row, _ in ledger.find(channel="école STRASSE")] == ["a", "b", "c"]
    assert [row.source_id for row, _ in ledger.find(channel="кино")] == ["e"]
    ledger.bury([], [], "Кино")
    assert [ledger.tombstone("k", "s", channel) for channel in ("КИНО", "Kino")] == ["channel", ""]


def test_a_ledger_that_cant_be_had_says_why_without_the_password() -> None:
    with pytest.raises(DvmsetError, match=r"postgresql\+psycopg://u:\*\*\*@127.0.0.1:9/x can't be opened"):
        Ledger("postgresql://u:s3same@127.0.0.1:9/x")
    with pytest.raises(DvmsetError, match="can't be kept by 'mysql'"):
        Ledger("mysql://h/x")
    with pytest.raises(DvmsetError, match="can't be read"):
        Ledger("nonsense")


def test_a_ledger_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(FIRST_VERSION)
    ledger = Ledger(f"sqlite:///{path}")
    assert ledger.states() == {"ready": 1}
    assert (ledger.releases()[0].release_id, ledger.releases()[0].event) == ("r-1", 0)
    assert ledger.take_list([source("a", category="promo"), source("b")], whole=True).new == 1
    ledger.close()
    Ledger(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as new:
        made = {row[0] for row in new.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
        assert {"ix_sources_withheld", "ix_sources_key"} <= made
        new.execute("UPDATE ledger SET version = 999")
        new.commit()
    with pytest.raises(DvmsetError, match="has version 999; this dvmset knows"):
        Ledger(f"sqlite:///{path}")


# As dvmset 0.1.0 of 2026-11-22 made them, without the tables that haven't changed.
FIRST_VERSION = """
CREATE TABLE sources (position INTEGER NOT NULL PRIMARY KEY, source_id VARCHAR NOT NULL, "key" VARCHAR NOT NULL,
    url VARCHAR NOT NULL, category VARCHAR NOT NULL, start_s FLOAT, end_s FLOAT, license VARCHAR NOT NULL,
    state VARCHAR NOT NULL, error_class VARCHAR NOT NULL, done_key VARCHAR NOT NULL, added_at DATETIME NOT NULL);
CREATE UNIQUE INDEX ix_sources_source_id ON sources (source_id);
CREATE TABLE attempts (id INTEGER NOT NULL PRIMARY KEY, source_id VARCHAR NOT NULL, stage VARCHAR NOT NULL,
    outcome VARCHAR NOT NULL, error_class VARCHAR NOT NULL, message VARCHAR NOT NULL, seconds FLOAT NOT NULL,
    bytes INTEGER NOT NULL, at DATETIME NOT NULL);
CREATE TABLE releases (number INTEGER NOT NULL PRIMARY KEY, release_id VARCHAR NOT NULL, parent VARCHAR NOT NULL,
    digest VARCHAR NOT NULL, clips INTEGER NOT NULL, seconds FLOAT NOT NULL, created_at DATETIME NOT NULL);
INSERT INTO sources VALUES (1, 'a', 'https://x/a', 'https://x/a', 'promo', NULL, NULL, '', 'ready', '', 'k',
    '2026-11-22 10:00:00.000000');
INSERT INTO releases VALUES (1, 'r-1', '', 'd', 1, 10.0, '2026-11-22 10:00:00.000000');
"""


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 10**7), st.lists(st.integers(1, 99), max_size=4)), max_size=5))
def test_the_funnel_is_exact_for_any_partition(tmp_path_factory: pytest.TempPathFactory, files: list[Any]) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.sqlite")
    for number, (duration, percents) in enumerate(files):
        name = f"s{number}"
        ledger.add_sources([source(name)])
        ledger.put_media(media(name, duration))
        edges = sorted({0, duration, *(duration * p // 100 for p in percents)})
        spans = [(a, b, ("", "speech", "silence")[i % 3]) for i, (a, b) in enumerate(pairwise(edges))]
        ledger.put_spans(name, spans, [])
    funnel = ledger.funnel()
    assert funnel.fetched_ms == sum(d for d, _ in files) == funnel.kept_ms + sum(funnel.dropped_ms.values())
    ledger.close()


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all " * 99)
    with pytest.raises(DvmsetError, match=rf"The ledger {path} is damaged: file is not a database") as caught:
        Ledger(f"sqlite:///{path}")
    assert "Put a copy of it back" in caught.value.hint


def test_damage_that_shows_later_is_the_same_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(f"sqlite:///{path}")) as ledger:
        ledger.add_sources([source("a")])
    with closing(sqlite3.connect(path)) as file:
        (page,) = file.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sources'").fetchone()
        (size,) = file.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = b"\xa5" * size
    path.write_bytes(content)
    with closing(Ledger(f"sqlite:///{path}")) as ledger, pytest.raises(DvmsetError, match="is damaged"):
        ledger.sources()
