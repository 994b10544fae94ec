"""Plans: what would be fetched, what it costs, and where each number comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_profile
from pipeline.ledger import Ledger, is_ledger
from pipeline.plan import BYTES_PER_S, REAL_TIME, REQUESTS, VIDEO_S, Plan, make_plan
from pipeline.process import Desk
from pipeline.sources import read_list
from tests.world import Web, work

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
    for name in ids[5:7]:
        measured(desk.ledger, name)
        desk.ledger.set_state(name, "ready", done_key="of other settings")
    desk.ledger.bury([sources[4].key], [])
    desk.ledger.saw(ids[5], "first", fetched=True)
    desk.ledger.set_state(ids[5], "ready", done_key=desk.files.done_key)
    desk.ledger.saw(ids[5], "second")
    desk.ledger.close()
    only = PROFILE.model_copy(update={"fetch": PROFILE.fetch.model_copy(update={"extractors": ("youtube",)})})
    plan = make_plan([source_list], tmp_path / "data", only)
    assert plan.skipped == {
        "rows that are no source": 2,
        "up to date": 1,
        "taken down": 1,
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


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web({f"https://a.example/{n}.mp4": "m" * (20 + n) for n in range(3)})
    web.replace_edges(monkeypatch)
    return web


def seconds_of(plan: Plan) -> dict[str, int]:
    """Seconds of media that each stage is reckoned to work on."""
    return {stage.stage: round(stage.wall_s / stage.rate) for stage in plan.stages if stage.stage in REAL_TIME}


@pytest.mark.parametrize(
    ("setting", "downloads"),
    [("verdict.music_min=0.6", 0), ("vision.batch=32", 3), ("clips.max_s=15", 3), ("codec.lufs=-20", 3)],
)
def test_what_other_settings_make_a_build_fetch_again_is_foretold(
    web: Web, tmp_path: Path, setting: str, downloads: int
) -> None:
    source_list = write(tmp_path / "list.txt", *web.videos)
    before = Desk(tmp_path / "data", load_profile("nano"))
    before.add(read_list(source_list)[0])
    work(before, before.pending())
    after = load_profile("nano", [setting])
    found = make_plan([source_list], tmp_path / "data", after).as_json()
    web.downloads.clear()
    desk = Desk(tmp_path / "data", after)
    work(desk, desk.pending())
    assert found["to_fetch"] == len(web.downloads) == downloads
    assert found["skipped"] == ({} if downloads else {"fetched already; only its verdict is made anew": 3})


def test_models_are_reckoned_for_what_was_fetched_and_not_worked_on(web: Web, tmp_path: Path) -> None:
    source_list = write(tmp_path / "list.txt", *web.videos)
    desk = Desk(tmp_path / "data", load_profile("nano"))
    desk.add(read_list(source_list)[0])
    for source_id in desk.pending():
        desk.acquire(source_id)
    first, second, *_ = desk.pending()
    desk.analyse(first)
    desk.ledger.fail(second, "music", "internal", "broke", seconds=1)
    plan = make_plan([source_list], tmp_path / "data", load_profile("nano"))
    assert plan.to_fetch == 0
    assert plan.skipped == {"fetched already; its features are missing": 2, "failed and not due yet (internal)": 1}
    assert seconds_of(plan) == {"shots": 0, "music": 22, "vision": 20 + 22, "codes": 20 + 22}
    desk.ledger.reopen([second])
    plan = make_plan([source_list], tmp_path / "data", load_profile("nano"))
    assert (plan.to_fetch, seconds_of(plan)["music"]) == (0, 21 + 22), "its media is still there"


def test_nothing_is_made_where_the_named_ledger_or_the_data_folder_is_not_there(
    tmp_path: Path, ledger_url: str
) -> None:
    source_list = write(tmp_path / "list.txt", *youtube(2))
    plan = make_plan([source_list], tmp_path / "data", PROFILE, ledger_url=ledger_url)
    assert plan.to_fetch == 2
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]
    assert not is_ledger(ledger_url)
    desk = Desk(tmp_path / "elsewhere", PROFILE, ledger_url=ledger_url)
    desk.add(read_list(source_list)[0])
    desk.ledger.fail(desk.pending()[0], "fetch", "permanent", "gone", seconds=1)
    desk.ledger.close()
    assert is_ledger(ledger_url)
    plan = make_plan([source_list], tmp_path / "data", PROFILE, ledger_url=ledger_url)
    assert plan.skipped == {"failed for good (permanent)": 1}
    assert not (tmp_path / "data").exists()


def test_rates_of_the_models_are_those_that_the_readme_has_measured() -> None:
    text = Path(__file__).parents[2].joinpath("README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    column = next(row for row in rows if row[0] == "stage").index("x real time (wall)")
    said = {re.split(r"\W", row[0])[0]: row[column] for row in rows if len(row) > column}
    assert {stage: float(said[stage]) for stage in REAL_TIME} == REAL_TIME


def measured(ledger: Ledger, source_id: str) -> None:
    row = {"source_id": source_id, "key": "k", "name": "media/gone.mp4", "sha256": source_id, "bytes": 5_000_000}
    ledger.put_media(row | {"duration_ms": 100_000, "has_video": True, "has_audio": True, "details": {"channel": ""}})
    ledger.succeed(source_id, "fetch", seconds=2.0, bytes=5_000_000)
    ledger.succeed(source_id, "music", seconds=30.0)
