"""The commands around downloads: plan, retry and discover say what they do, and refuse what they can't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.errors import BROKEN_STAGE, POLICIES, SourceError
from pipeline.ledger import Ledger, now
from pipeline.process.stage import recorded
from pipeline.sources import canonical_key, source_id

runner = CliRunner()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with three sources that failed."""
    folder = tmp_path / "data"
    folder.mkdir()
    ledger = Ledger(f"sqlite:///{folder}/ledger.sqlite")
    classes = {"throttled": "http://h/a", "corrupt": "http://h/b", "permanent": "http://h/c"}
    for error_class, url in classes.items():
        key = canonical_key(url)
        row = {"source_id": source_id(key), "key": key, "url": url, "category": "", "license": ""}
        ledger.add_sources([row | {"start_s": None, "end_s": None}])
        ledger.fail(row["source_id"], "fetch", error_class, "It failed (http://h).", seconds=1)
    ledger.open_breaker("h", 4e9, 3600, 3600)
    ledger.close()
    return folder


def states(data: Path) -> dict[str, str]:
    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    found = {row.url: row.state for row in ledger.sources()}
    ledger.close()
    return found


def test_retry_takes_a_class_an_age_or_a_source(data: Path) -> None:
    def retry(*arguments: str) -> dict[str, object]:
        result = runner.invoke(app, ["retry", "--data", str(data), "--json", *arguments])
        assert result.exit_code == 0, result.output
        found: dict[str, object] = json.loads(result.output)
        return found

    assert retry("--class", "throttled", "--older-than", "1d")["reopened"] == 0
    assert retry("--class", "throttled", "--class", "corrupt") == {
        "reopened": 2,
        "classes": {"corrupt": 1, "throttled": 1},
    }
    assert retry("--source", "http://h/c", "--older-than", "0s")["reopened"] == 1
    assert set(states(data).values()) == {"new"}


def test_status_blames_a_broken_stage_on_no_site(data: Path) -> None:
    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    broke = source_id(canonical_key("http://h/a"))
    with (
        pytest.raises(SourceError, match="odd shape") as raised,
        recorded(ledger, broke, "music", None),
    ):
        raise ValueError("odd shape")
    ledger.close()
    assert raised.value.hint == BROKEN_STAGE

    def advice() -> str:
        result = runner.invoke(app, ["status", "--data", str(data), "--json"])
        return str(json.loads(result.output)["failures"]["internal"]["advice"])

    assert advice() == BROKEN_STAGE
    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    ledger.fail(source_id(canonical_key("http://h/b")), "fetch", "internal", "Odd page.", seconds=1)
    ledger.close()
    assert advice() == f"{BROKEN_STAGE} {POLICIES['internal'].advice}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["retry"], "Which sources?"),
        (["retry", "--class", "lazy"], "no error class 'lazy'"),
        (["retry", "--class", "geo", "--older-than", "soon"], "Can't read 'soon' as a time"),
        (["discover"], "What is to be found?"),
        (["discover", "--query", "x", "--site", "vimeo"], "no search on 'vimeo'"),
    ],
)
def test_what_cannot_be_done_is_said(data: Path, arguments: list[str], said: str) -> None:
    extra = ["--data", str(data)] if arguments[0] == "retry" else []
    result = runner.invoke(app, [*arguments, *extra])
    assert result.exit_code == 2
    assert said in result.output


def test_status_says_for_each_class_what_follows_and_what_to_do(data: Path) -> None:
    text = runner.invoke(app, ["status", "--data", str(data)]).output
    found = json.loads(runner.invoke(app, ["status", "--data", str(data), "--json"]).output)
    due = found["failures"]["throttled"]["next"]
    assert f"throttled 1: tried again when the host has rested (1 later, the next at {due}). Let the whole" in text
    assert "permanent 1: not tried again. Take it off the list" in text
    assert "rests h until" in text
    assert set(found["failures"]) == {"throttled", "corrupt", "permanent"}
    assert list(found["resting"]) == ["h"]


def test_what_changed_upstream_and_waits_is_shown_and_can_be_tried_again(data: Path) -> None:
    ledger = Ledger(f"sqlite:///{data}/ledger.sqlite")
    (changed, *_) = ledger.sources()
    said = {"name": "media/a.mp4", "sha256": "0" * 64, "bytes": 9, "has_video": True, "has_audio": True, "details": {}}
    ledger.put_media({"source_id": changed.source_id, "key": "k", "duration_ms": 9000, **said})
    ledger.saw(changed.source_id, "first", fetched=True)
    ledger.set_state(changed.source_id, "ready", done_key="d")
    ledger.saw(changed.source_id, "second")
    ledger.fail(changed.source_id, "fetch", "transient", "Nobody answers (http://h/a).", seconds=1)
    text = runner.invoke(app, ["status", "--data", str(data)]).output
    assert "1 changed upstream and keep their clips" in text
    assert "refetch 1 changed upstream: their clips stay until they have come anew" in text
    found = json.loads(runner.invoke(app, ["status", "--data", str(data), "--json"]).output)
    assert (found["refetches"], found["failures"]["transient"]["keep_clips"]) == (1, 1)
    assert ledger.resting(now()) >= {changed.source_id}
    runner.invoke(app, ["retry", "--data", str(data), "--class", "transient"])
    assert changed.source_id not in ledger.resting(now())
    assert (ledger.states()["ready"], ledger.refetches()) == (1, 1)
    ledger.close()


def test_plan_prints_a_table_or_json_and_makes_nothing(tmp_path: Path) -> None:
    source_list = tmp_path / "list.txt"
    source_list.write_text("video000001\nvideo000002\nhttp://h.example/v.mp4\n")
    arguments = ["plan", str(source_list), "--data", str(tmp_path / "none"), "--profile", "nano"]
    text = runner.invoke(app, arguments)
    assert text.exit_code == 0, text.output
    assert "3 sources listed, 3 to fetch" in text.output
    assert "youtube" in text.output
    found = json.loads(runner.invoke(app, [*arguments, "--json"]).output)
    assert {h["host"] for h in found["hosts"]} == {"youtube", "h.example"}
    assert not (tmp_path / "none").exists()
