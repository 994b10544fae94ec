"""The review page: what its server takes and gives, what survives a crash, and the page itself in a browser."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
from fastapi.testclient import TestClient

from flows.review.preview import Previews
from flows.review.server import make_app
from flows.review.session import Session
from pipeline.errors import DvmsetError
from pipeline.media import probe
from pipeline.process import Desk
from pipeline.process.artefacts import STEM_RATE
from pipeline.recurate import release_profile
from pipeline.storage import Store
from tests.browser import page_in_chromium
from tests.kept import PATTERNS, keep_media


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose media was kept."""
    return keep_media(tmp_path_factory.mktemp("review") / "data")


@pytest.fixture
def data(kept: Path, tmp_path: Path) -> Path:
    """A copy of it, in which nobody has decided anything."""
    return shutil.copytree(kept, tmp_path / "data")


def desk_at(data: Path) -> Desk:
    return Desk(data, release_profile(Store(data)))


@dataclass
class Client:
    """The application without a network."""

    session: Session
    http: TestClient

    def queue(self) -> dict[str, Any]:
        return dict(self.http.get("/api/queue").json())

    def decide(self, window_id: str, decision: str, **more: Any) -> Any:
        return self.http.post("/api/decisions", json={"window_id": window_id, "decision": decision, **more})


def client(data: Path, reviewer: str = "Ada") -> Client:
    session = Session(desk_at(data), reviewer, sources=100, dropped=100)
    previews = data.parent / "previews"
    previews.mkdir(exist_ok=True)
    return Client(session, TestClient(make_app(session, Previews(session.desk, previews)), base_url="http://127.0.0.1"))


def test_windows_come_with_the_closest_to_the_threshold_first_and_dropped_ones_among_them(data: Path) -> None:
    ada = client(data)
    windows = ada.queue()["windows"]
    closeness = [w["closeness"] for w in windows]
    shown = [ada.http.get(f"/api/windows/{w['window_id']}").json() for w in windows]

    assert closeness == sorted(closeness)
    assert {"", "voice", "speech", "silence"} >= {w["rules"] for w in shown} and any(w["rules"] for w in shown)
    assert [w["window_id"] for w in client(data).queue()["windows"]] == [w["window_id"] for w in windows]


def test_a_window_is_shown_with_all_that_is_known_of_it(data: Path) -> None:
    ada = client(data)
    [window] = [w for w in ada.session.found if w.end_ms == 24_000 and w.start_ms == 0 and not w.rules][:1]
    shown = ada.http.get(f"/api/windows/{window.window_id}").json()

    assert (shown["start_s"], shown["end_s"]) == (0, 29)  # five seconds on either side
    assert len(shown["curves"]["music"]) == len(shown["reasons"]) == 29
    assert shown["cuts_s"] == [10.0]
    assert set(shown["curves"]["stems_db"]) == {"vocals", "other"}
    assert max(shown["waves"]["mix"]["high"]) == pytest.approx(0.3, abs=0.05)
    assert shown["waves"]["stem"]["high"] and shown["media"] and shown["stem"]
    assert "of the energy (at most 15%)" in shown["why"]


def test_media_is_played_by_ranges(data: Path) -> None:
    ada = client(data)
    window = ada.session.found[0]
    media = ada.session.desk.ledger.media(window.source_id)
    assert media is not None
    whole = (data / media.name).read_bytes()

    part = ada.http.get(f"/media/{window.window_id}", headers={"Range": "bytes=100-299"})
    stem = ada.http.get(f"/stem/{window.window_id}")

    assert (part.status_code, part.content) == (206, whole[100:300])
    assert part.headers["content-range"] == f"bytes 100-299/{len(whole)}"
    saved = data.parent / "stem.flac"
    saved.write_bytes(stem.content)
    audio, rate = soundfile.read(saved)
    assert rate == STEM_RATE and len(audio) == media.duration_ms * STEM_RATE // 1000


def test_a_preview_is_the_window_and_what_is_around_it(data: Path) -> None:
    ada = client(data)
    window = max(ada.session.found, key=lambda w: w.end_ms - w.start_ms)
    answer = ada.http.get(f"/preview/{window.window_id}")
    path = data.parent / "preview.mp4"
    path.write_bytes(answer.content)
    shown = ada.http.get(f"/api/windows/{window.window_id}").json()

    assert probe(path).duration_ms == pytest.approx(1000 * (shown["end_s"] - shown["start_s"]), abs=100)


def test_without_media_the_page_says_so_and_decisions_go_on(data: Path) -> None:
    for file in [*(data / "media").iterdir(), *(data / "stems").iterdir()]:
        file.unlink()
    ada = client(data)
    first = ada.session.found[0].window_id
    shown = ada.http.get(f"/api/windows/{first}").json()

    assert not shown["media"] and not shown["stem"] and shown["waves"] == {}
    assert ada.http.get(f"/media/{first}").status_code == 404
    assert "keep_media" in ada.http.get(f"/preview/{first}").json()["detail"]
    assert "fetch.keep_media" in ada.http.get("/").text
    assert ada.decide(first, "unsure").status_code == 200


def test_a_split_brings_its_two_parts_and_undo_takes_them_away(data: Path) -> None:
    ada = client(data)
    window = max(ada.session.found, key=lambda w: w.end_ms - w.start_ms)
    before = ada.queue()["windows"]

    after = ada.decide(window.window_id, "split", split_s=window.start_ms / 1000 + 7.5).json()["windows"]

    names = [w["window_id"] for w in after]
    at = names.index(window.window_id)
    cut = window.start_ms + 7_500
    assert names[at + 1 : at + 3] == [
        f"{window.source_id}-{window.start_ms:08d}-{cut:08d}",
        f"{window.source_id}-{cut:08d}-{window.end_ms:08d}",
    ]
    assert ada.http.get(f"/api/windows/{names[at + 1]}").json()["end_ms"] == cut
    undone = ada.http.post("/api/undo").json()
    assert undone["undone"] == window.window_id and undone["windows"] == before


def test_what_makes_no_sense_is_refused_with_a_reason(data: Path) -> None:
    ada = client(data)
    first = ada.session.found[0]

    assert ada.decide("0" * 16 + "-00000000-00001000", "keep").status_code == 404
    assert ada.decide(first.window_id, "burn").json()["detail"].startswith("There is no decision 'burn'.")
    assert ada.decide(first.window_id, "split", split_s=first.end_ms / 1000).status_code == 422
    assert ada.decide(first.window_id, "split").status_code == 422
    assert ada.session.desk.ledger.reviews() == []


def test_other_sites_can_neither_read_nor_decide(data: Path) -> None:
    ada = client(data)
    said = {"window_id": ada.session.found[0].window_id, "decision": "keep"}

    from_elsewhere = ada.http.post("/api/decisions", json=said, headers={"Origin": "https://evil.example"})
    rebound = ada.http.get("/api/queue", headers={"Host": "evil.example"})

    assert (from_elsewhere.status_code, rebound.status_code) == (403, 400)
    assert "default-src 'self'" in ada.http.get("/").headers["content-security-policy"]
    assert ada.http.get("/../server.py").status_code == 404
    assert ada.session.desk.ledger.reviews() == []


def test_two_people_see_the_same_windows_and_their_agreement_is_counted(data: Path) -> None:
    ada, bob = client(data, "Ada"), client(data, "Bob")
    windows = [w["window_id"] for w in ada.queue()["windows"]][:4]
    assert [w["window_id"] for w in bob.queue()["windows"]][:4] == windows
    for name, one, other in zip(
        windows, ("keep", "keep", "drop", "drop"), ("keep", "drop", "drop", "drop"), strict=True
    ):
        ada.decide(name, one)
        bob.decide(name, other)

    found = {(a["first"], a["second"]): a for a in bob.queue()["agreement"]}

    assert (found["Ada", "Bob"]["windows"], found["Ada", "Bob"]["agreed"]) == (4, 3)
    assert found["Ada", "Bob"]["kappa"] == pytest.approx(0.5)  # p_o 3/4, p_e (2*1 + 2*3) / 16
    assert all(w["decision"] is None for w in client(data, "Cy").queue()["windows"])  # blind to the others' decisions


def test_decisions_reach_the_release_and_thresholds_are_learnt_from_them(data: Path) -> None:
    ada = client(data)
    for window in ada.session.found:
        voice = _voice(ada, window.window_id)
        ada.decide(window.window_id, "keep" if voice < 0.05 else "drop")

    learnt = _dvmset("recurate", "--data", data, "--learn", "--json")
    summary = _dvmset("review", "--data", data, "--summary", "--json")

    assert learnt["learnt"]["agreed_then"] > learnt["learnt"]["agreed_now"]
    assert any(s.startswith("verdict.voice_ratio") for s in learnt["settings"])
    assert {c["why"] for c in learnt["changes"] if c["kind"] == "removed"} >= {"dropped: review"}
    assert sum(summary["reviewers"]["Ada"].values()) == len(ada.session.found)


def _voice(ada: Client, window_id: str) -> float:
    shown = ada.http.get(f"/api/windows/{window_id}").json()
    first, last = (int(shown[k] / 1000 - shown["curves"]["first_s"]) for k in ("start_ms", "end_ms"))
    values = shown["curves"]["voice_ratio"][first:last]
    return float(np.mean(values)) if shown["rules"] != "silence" else 1.0


def test_too_few_decisions_teach_nothing(data: Path) -> None:
    from pipeline.review.learn import learn

    with pytest.raises(DvmsetError, match="too few to learn from"):
        learn(desk_at(data))


def _dvmset(*words: object) -> Any:
    command = [sys.executable, "-m", "flows", *map(str, words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@dataclass
class Served:
    """`dvmset review` in a process of its own."""

    process: subprocess.Popen[str]
    url: str


@pytest.fixture
def served(data: Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "flows", "review", "--data", str(data), "--reviewer", "Ada", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "open http" in line:
                yield Served(process, line.partition("open ")[2].split()[0])
                break
    finally:
        process.kill()
        process.wait()


def _decisions(data: Path) -> list[tuple[str, str]]:
    """Reviewer and decision of each row, undone ones left out."""
    with sqlite3.connect(data / "ledger.sqlite") as ledger:
        undone = "select undoes from reviews where undoes is not null"
        query = f"select reviewer, decision from reviews where decision != 'undo' and id not in ({undone}) order by id"
        return list(ledger.execute(query))


def test_a_decision_that_was_answered_survives_a_crash(served: Served, data: Path) -> None:
    windows = requests.get(served.url + "api/queue", timeout=60).json()["windows"]
    said = {"window_id": windows[0]["window_id"], "decision": "drop"}

    answer = requests.post(served.url + "api/decisions", json=said, timeout=60)
    served.process.send_signal(signal.SIGKILL)

    assert answer.status_code == 200
    served.process.wait()
    assert _decisions(data) == [("Ada", "drop")]
    assert client(data).queue()["windows"][0]["decision"] == "drop"


@pytest.mark.slow
def test_twenty_decisions_in_a_browser_with_a_reload_in_the_middle(served: Served, data: Path) -> None:
    keys = ["k", "d", "u", "k"] * 5  # twenty
    with page_in_chromium() as page:
        page.set_default_timeout(120_000)
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith((served.url, "data:")) else None)

        def settle() -> None:
            page.wait_for_selector(f"body[data-settled='{settled[0]}']", state="attached")

        def press(key: str) -> None:
            settled[0] += 1
            page.keyboard.press(key)
            settle()

        settled = [1]
        page.goto(served.url)
        settle()
        for key in keys[:9]:
            press(key)
        assert page.inner_text("#progress").startswith("9 of ")
        assert page.locator("#queue span").count() > 20

        page.reload()
        settled = [1]
        settle()
        assert page.inner_text("#progress").startswith("9 of ")
        for key in keys[9:19]:
            press(key)
        before = page.inner_text("#place")
        press("z")  # undone, and decided once more
        assert page.inner_text("#place") != before
        press(keys[18])
        assert page.inner_text("#place") == before

        page.keyboard.press("r")
        page.wait_for_selector("video")
        start = float(page.evaluate("now()"))
        page.keyboard.press("ArrowRight")
        assert float(page.evaluate("now()")) > start + 0.5
        page.evaluate("video.play()")
        moved = page.evaluate("new Promise(done => { video.ontimeupdate = () => done(video.currentTime); })")
        assert moved > 0
        press("s" if page.evaluate("shown.end_ms - shown.start_ms") >= 4000 else "u")
        assert "20 of" in page.inner_text("#progress")
        assert "Cohen" in page.inner_text("#agreement") or "with the rules" in page.inner_text("#agreement")
        assert page.locator("#message").inner_text() == ""
        assert problems == []

    decided = _decisions(data)
    words = {"k": "keep", "d": "drop", "u": "unsure"}
    assert [decision for _, decision in decided[:19]] == [words[key] for key in keys[:19]]
    assert len(decided) == 20 and {reviewer for reviewer, _ in decided} == {"Ada"}


@pytest.mark.slow
def test_recurate_says_what_it_would_do_and_then_does_it_without_media_or_models(data: Path) -> None:
    strict = ("recurate", "--data", data, "--set", "voice_ratio_max=0.05", "--json")
    foretold = _dvmset(*strict, "--dry-run")
    before = {clip.clip_id for clip in desk_at(data).ledger.clips()}
    assert _dvmset(*strict, "--dry-run") == foretold  # nothing was changed
    assert not any(change["lacks"] for change in foretold["changes"])

    _dvmset(*strict)

    desk = desk_at(data)
    after = {clip.clip_id for clip in desk.ledger.clips()}
    removed = {change["clip_id"] for change in foretold["changes"] if change["kind"] == "removed"}
    assert removed and after == before - removed
    assert desk.profile.verdict.voice_ratio_max == 0.05
    assert len(desk.ledger.releases()) == 2
    assert {attempt.stage for attempt in desk.ledger.attempts(0)} == {"fetch", "shots", "music", "vision", "codes"}
    assert len(desk.ledger.attempts(0)) == 5 * len(PATTERNS)  # those of the first build: no stage ran since
