"""Runs that were killed between two steps: the next one finishes what they had begun, and nothing is left over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from pipeline import release, takedown
from pipeline.config import load_profile
from pipeline.process import Desk
from pipeline.refresh import look_around
from pipeline.release import Release
from pipeline.takedown import Request, is_genuine, plan_takedown, take_down
from tests.world import Web, work

PROFILE = load_profile("nano", ["refresh.probe_days=0"])


class Killed(BaseException):
    """What a kill looks like from inside: nothing handles it."""


class Breaks:
    """Raises in place of what a function does, or after it; only where its first argument fits a pattern."""

    def __init__(
        self, function: Any, error: BaseException | None = None, *, after: bool = False, on: str = "*"
    ) -> None:
        self.function, self.error, self.after, self.on = function, error or Killed(), after, on

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the function does, unless it is the call to break at."""
        if not fnmatch(str(args[0]), self.on):
            return self.function(*args, **options)
        if self.after:
            self.function(*args, **options)
        raise self.error


def url(name: str) -> str:
    return f"https://{name}.example/video.mp4"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web({url(name): "m" * (20 + i) + "s" * 5 for i, name in enumerate("abc")})
    web.replace_edges(monkeypatch)
    return web


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "data", PROFILE)
    yield desk
    desk.ledger.close()


def refresh(desk: Desk, web: Web, names: str) -> Release | None:
    listed = Path(desk.store.path("list.txt"))
    listed.write_text("".join(f"{url(name)}\n" for name in names))
    work(desk, look_around(desk, [listed], probe=web.probe).pending)
    return desk.release()


def recorded(desk: Desk) -> list[str]:
    return [row.release_id for row in desk.ledger.releases()]


def test_a_release_that_was_published_and_not_recorded_is_recorded_by_the_next_run(
    desk: Desk, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(release, "make_release", Breaks(release.make_release, after=True))
        refresh(desk, web, "ab")
    assert recorded(desk) == []
    same = refresh(desk, web, "ab")
    assert same and not same.changed
    assert recorded(desk) == [same.id]


def test_a_release_that_was_not_recorded_is_not_lost_where_another_follows_and_neither_are_its_reasons(
    desk: Desk, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = refresh(desk, web, "a")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(release, "make_release", Breaks(release.make_release, after=True))
        refresh(desk, web, "ab")
    second = desk.store.read_text("releases/latest").strip()
    third = refresh(desk, web, "abc")
    assert first and third and third.diff
    assert recorded(desk) == [first.id, second, third.id]
    assert third.diff["added"]["reasons"] == {"new in the list": 1}


@pytest.mark.parametrize("step", ["_remove_media", "set_state"])
def test_a_source_that_was_all_but_ready_is_finished_without_a_download_and_leaves_no_media(
    desk: Desk, web: Web, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path(desk.store.path("list.txt"))
    listed.write_text(f"{url('a')}\n")
    (a,) = look_around(desk, [listed], probe=web.probe).pending
    desk.acquire(a)
    desk.analyse(a)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        place: Any = desk if step == "_remove_media" else desk.ledger
        patch.setattr(place, step, Breaks(getattr(place, step)))
        desk.encode(a)
    made = refresh(desk, web, "a")
    assert made and made.clips == 1
    assert (desk.store.names("media"), desk.store.names("stems"), len(web.downloads)) == ([], [], 1)
    assert desk.ledger.states() == {"ready": 1}


def down(desk: Desk, source_id: str) -> dict[str, Any]:
    plan = plan_takedown(desk.store, desk.ledger, Request(source_ids=(source_id,)))
    return take_down(desk.store, desk.ledger, plan, purge=True)


@pytest.mark.parametrize("step", ["count", "publish", "files", "receipt"])
def test_a_takedown_that_was_killed_is_finished_by_the_same_command_with_the_receipt_of_one_that_was_not(
    desk: Desk, web: Web, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = Desk(tmp_path / "twin", PROFILE)
    for one in (desk, twin):
        refresh(one, web, "ab")
    a = next(source.source_id for source in desk.ledger.sources() if source.url == url("a"))
    wanted = down(twin, a)
    twin.ledger.close()
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch, pytest.raises((Killed, OSError)):
        begin, end = "takedowns/*.begun", "takedowns/*.json"
        match step:
            case "count":
                patch.setattr(desk.store, "write_text", Breaks(desk.store.write_text, full, on=begin))
            case "publish":
                patch.setattr(takedown, "release_without", Breaks(takedown.release_without, after=True))
            case "files":
                patch.setattr(desk.store.fs, "rm", Breaks(desk.store.fs.rm, after=True, on="*/curves/*"))
            case "receipt":
                patch.setattr(desk.store, "write_text", Breaks(desk.store.write_text, full, on=end))
        down(desk, a)
    assert [name for name in desk.store.names("takedowns") if name.endswith(".json")] == []
    receipt = down(desk, a)
    told = ("at", "digest", "path")
    assert {k: v for k, v in receipt.items() if k not in told} == {k: v for k, v in wanted.items() if k not in told}
    assert (receipt["release"]["clips_removed"], receipt["rows"]["sources"]) == (1, 1)
    (name,) = desk.store.names("takedowns")
    assert is_genuine(json.loads(desk.store.read_text(f"takedowns/{name}")))
    assert a not in {source.source_id for source in desk.ledger.sources()}
    assert recorded(desk)[-1] == receipt["release"]["id"]
