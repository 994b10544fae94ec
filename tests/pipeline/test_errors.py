"""The table of error classes: what follows from each, and when a source is due again."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import ERROR_CLASSES, LONGEST_WAIT_S, POLICIES, DvmsetError, HostRests, SourceError, advice, due
from pipeline.ledger import Ledger

AT = datetime(2026, 11, 22, tzinfo=UTC)


def waits(error_class: str, tries: int) -> list[float | None]:
    found = [due(error_class, n, AT) for n in range(1, tries + 1)]
    return [None if at is None else (at - AT).total_seconds() for at in found]


def test_every_class_has_a_policy_that_says_what_to_do() -> None:
    assert tuple(POLICIES) == ERROR_CLASSES
    for policy in POLICIES.values():
        assert policy.advice.endswith(".")
        if policy.then == "never":
            assert policy.tries == 1


@pytest.mark.parametrize("error_class", ["permanent", "geo", "too_large", "unsupported"])
def test_what_will_not_change_by_itself_is_never_due(error_class: str) -> None:
    assert waits(error_class, 2) == [None, None]


def test_trouble_waits_twice_as_long_each_time_up_to_a_day_and_then_for_a_person() -> None:
    found = waits("transient", 12)
    assert found[:4] == [300, 600, 1200, 2400]
    assert found[10] == LONGEST_WAIT_S
    assert found[11] is None
    assert waits("corrupt", 2) == [86400, None]
    assert waits("blocked", 2) == [3600, None]
    assert None not in waits("throttled", 50)


def test_builds_that_try_thrice_each_take_trouble_up_again_three_times() -> None:
    after_each_build = waits("transient", 12)[2::3]
    assert after_each_build == [20 * 60, 160 * 60, 1280 * 60, None]


def test_yt_dlp_is_blamed_for_downloads_only() -> None:
    assert "yt-dlp" in advice("internal", "fetch")
    for stage in ("shots", "music", "vision", "codes"):
        assert "yt-dlp" not in advice("internal", stage)
        assert "report" in advice("internal", stage)
    assert advice("corrupt", "music") == POLICIES["corrupt"].advice


def test_retry_after_is_never_undercut() -> None:
    assert due("transient", 1, AT, 7.0) == AT + timedelta(seconds=300)
    assert due("transient", 1, AT, 9000.0) == AT + timedelta(seconds=9000)
    assert due("throttled", 1, AT, 90_000.0) == AT + timedelta(seconds=90_000)


def test_failures_are_counted_in_a_row_and_by_stage(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    row = {"category": "", "start_s": None, "end_s": None, "license": ""}
    ledger.add_sources({"source_id": n, "key": n, "url": f"http://h/{n}", **row} for n in "abc")
    for _ in range(2):
        ledger.fail("a", "fetch", "transient", "timed out", seconds=1)
    ledger.succeed("a", "fetch", seconds=1)
    ledger.fail("a", "music", "internal", "broke", seconds=1)
    ledger.succeed("a", "fetch", seconds=1)
    ledger.fail("a", "music", "internal", "broke", seconds=1)
    ledger.fail("b", "fetch", "throttled", "slow down", seconds=1, retry_after_s=500.0)
    found = {f.source_id: f for f in ledger.failures()}
    assert (found["a"].stage, found["a"].failures) == ("music", 2)
    assert found["a"].due == found["a"].at + timedelta(hours=2)
    assert found["b"].due == found["b"].at + timedelta(seconds=500)
    assert "c" not in found
    ledger.reopen(["a", "c"])
    assert [f.source_id for f in ledger.failures()] == ["b"]
    assert ledger.states() == {"failed": 1, "new": 2}
    ledger.fail("a", "music", "internal", "broke", seconds=1)
    assert {f.source_id: f.failures for f in ledger.failures()} == {"a": 3, "b": 1}, "a person's retry forgets nothing"
    ledger.close()


@pytest.mark.parametrize(
    "error",
    [SourceError("gone", "permanent", hint="Leave it.", retry_after_s=3.0), HostRests("h", AT), DvmsetError("x")],
)
def test_errors_survive_the_way_to_another_process(error: DvmsetError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))
