"""Plans: what would be fetched, what it costs, and where each number comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_profile
from pipeline.ledger import Ledger
from pipeline.plan import BYTES_PER_S, REAL_TIME, REQUESTS, VIDEO_S, make_plan
from pipeline.process import Desk
from pipeline.sources import read_list

PROFILE = load_profile("nano", ["fetch.pause_s=[8,16]", "fetch.per_host=2", "fetch.threads=4"])


def write(path: Path, *addresses: str) -> Path:
    path.write_text("\n".join(addresses) + "\n")
    return path


def youtube(count: int) -> list[str]:
    return [f"video{n:06d}" for n in range(count)]


def test_numbers_follow_from_manners_and_assumptions_that_name_their_source(tmp_path: Path) -> None:
    plan = make_plan([write(tmp_path / "list.txt", *youtube(600))], tmp_path / "data", PROFILE)
    found = plan.as_json()
    assert (found["to_fetch"], found["requests"]) == (600, 600 * REQUESTS["youtube"].value)
    assert found["hours"] == pytest.approx(600 * VIDEO_S.value / 3600)
    assert found["gb"] == pytest.approx(600 * VIDEO_S.value * BYTES_PER_S.value / 1e9)
    assert found["hosts"][0]["wall_s"] == pytest.approx(600 * 12)
    music = next(s for s in found["stages"] if s["stage"] == "music")
    assert music["wall_s"] == pytest.approx(600 * VIDEO_S.value * REAL_TIME["music"], rel=0.01)
    assert all(len(text) > 10 for text in found["assumed"].values())
    assert found["warnings"] == []
    assert not (tmp_path / "data").exists(), "a plan makes nothing"


def test_more_than_a_site_bears_is_warned_of(tmp_path: Path) -> None:
    source_list = write(tmp_path / "list.txt", *youtube(600))
    plan = make_plan([source_list], tmp_path / "data", load_profile("nano"))
    assert "yt-dlp#11426" in " ".join(plan.warnings)


def test_what_would_be_skipped_is_counted_with_its_reason(tmp_path: Path) -> None:
    addresses = [*youtube(8), "http://h.example/v.mp4", "nonsense!", "video000001"]
    source_list = write(tmp_path / "list.txt", *addresses)
    desk = Desk(tmp_path / "data", PROFILE)
    sources = read_list(source_list)[0]
    desk.add(sources)
    ids = [s.source_id for s in sources]
    desk.ledger.set_state(ids[0], "ready", done_key=desk.files.done_key)
    desk.ledger.fail(ids[1], "fetch", "permanent", "gone", seconds=1)
    desk.ledger.fail(ids[2], "fetch", "transient", "timed out", seconds=1)
    desk.ledger.fail(ids[3], "fetch", "too_large", "large", seconds=1)
    for name in ids[4:7]:
        measured(desk.ledger, name)
        desk.ledger.set_state(name, "ready", done_key="of other settings")
    media, row = desk.ledger.media(ids[4]), desk.ledger.source(ids[4])
    assert media is not None
    desk.store.write_text(desk.files.shots(media), "{}")
    desk.store.write_text(desk.files.curves(row, media), "")
    desk.ledger.saw(ids[5], "first", fetched=True)
    desk.ledger.set_state(ids[5], "ready", done_key=desk.files.done_key)
    desk.ledger.saw(ids[5], "second")
    desk.ledger.close()
    only = PROFILE.model_copy(update={"fetch": PROFILE.fetch.model_copy(update={"extractors": ("youtube",)})})
    plan = make_plan([source_list], tmp_path / "data", only)
    assert plan.skipped == {
        "rows that are no source": 2,
        "up to date": 1,
        "measured already; fetched only if the settings now want other clips of it": 1,
        "failed for good (permanent)": 1,
        "failed and not due yet (transient)": 1,
        "failed and wait for a person (too_large)": 1,
        "on h.example, which no extractor of fetch.extractors takes": 1,
    }
    assert plan.to_fetch == 3  # one of them anew, since it changed upstream
    assert plan.listed == plan.to_fetch + sum(plan.skipped.values())


def test_rates_are_those_of_the_ledger_as_soon_as_it_has_some(tmp_path: Path) -> None:
    source_list = write(tmp_path / "list.txt", *youtube(20))
    desk = Desk(tmp_path / "data", PROFILE)
    sources = read_list(source_list)[0]
    desk.add(sources)
    for source in sources[:5]:
        measured(desk.ledger, source.source_id)
    desk.ledger.close()
    found = make_plan([source_list], tmp_path / "data", PROFILE).as_json()
    assert found["to_fetch"] == 20, "fetched, but the media is gone and nothing was computed"
    assert found["hours"] == pytest.approx(20 * 100 / 3600, abs=1e-3)
    assert found["gb"] == pytest.approx(20 * 5e6 / 1e9)
    stages: dict[str, Any] = {stage["stage"]: stage for stage in found["stages"]}
    assert (stages["music"]["wall_s"], stages["music"]["source"]) == (20 * 100 * 0.3, "5 sources in the ledger")
    assert "README" in stages["vision"]["source"]
    assert set(found["assumed"]) == {"requests for a video of youtube"}


def measured(ledger: Ledger, source_id: str) -> None:
    row = {"source_id": source_id, "key": "k", "name": "media/gone.mp4", "sha256": source_id, "bytes": 5_000_000}
    ledger.put_media(row | {"duration_ms": 100_000, "has_video": True, "has_audio": True, "details": {"channel": ""}})
    ledger.succeed(source_id, "fetch", seconds=2.0, bytes=5_000_000)
    ledger.succeed(source_id, "music", seconds=30.0)
