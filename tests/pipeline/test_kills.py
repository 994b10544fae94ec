"""Runs that were killed between two steps: the next one finishes what they had begun, and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import release
from pipeline.config import load_profile
from pipeline.process import Desk
from pipeline.refresh import look_around
from pipeline.release import Release, make_release
from tests.world import Web, work

PROFILE = load_profile("nano", ["refresh.probe_days=0"])


class Killed(BaseException):
    """What a kill looks like from inside: nothing handles it."""


def killed(*_: Any, **__: Any) -> Any:
    """Takes the place of the step at which a run was killed."""
    raise Killed


def make_and_be_killed(*args: Any, **options: Any) -> Any:
    """Makes a release, and gets no further."""
    make_release(*args, **options)
    raise Killed


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
        patch.setattr(release, "make_release", make_and_be_killed)
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
        patch.setattr(release, "make_release", make_and_be_killed)
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
        patch.setattr(desk if step == "_remove_media" else desk.ledger, step, killed)
        desk.encode(a)
    made = refresh(desk, web, "a")
    assert made and made.clips == 1
    assert (desk.store.names("media"), desk.store.names("stems"), len(web.downloads)) == ([], [], 1)
    assert desk.ledger.states() == {"ready": 1}
