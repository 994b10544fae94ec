"""The ledger: append-only attempts, spans that always add up, states and what is still to be done."""

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ledger import Ledger, now


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
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
    assert [(e.source_id, e.message) for e in ledger.last_errors()] == [("c", "gone"), ("d", "timed out")]


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
    assert ledger.first_with("same").source_id == "b"
    assert ledger.first_keys() == {"same": "https://x/b", "else": "https://x/a"}
    assert sorted(ledger.repeated()) == ["b", "c"]


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
