"""A kill in each stage, some at random and a full disk on the way of a build; `python -m tests.chaos` does many more.

Here all builds share one Prefect server; there each has its own, which is killed with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.server import prefect_at_hand
from tests.chaos import (
    STAGES,
    Ground,
    check,
    fill_and_grow,
    ground,
    kill_and_restart,
    kill_in_each_stage,
    outcome,
    small_disk,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PATHS = ["mute.mp4", "blind.mp4", "flaky/mute.mp4", "members/mute.mp4", "err/404", "err/403", "flipped/mute.mp4"]
KILLS, SEED = 3, 0
ROOM = 64 << 20  # bytes, more than enough


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with prefect_at_hand(), ground(tmp_path_factory.mktemp("chaos"), PATHS, songs=1) as place:
        yield place


@pytest.fixture(scope="module")
def killed(place: Ground) -> Path:
    """The data folder of a build that was killed in each stage and then at random, and then wasn't."""
    data = place.folder / "killed"
    assert set(kill_in_each_stage(place, data).hits) == set(STAGES.values())
    course = kill_and_restart(place, data, KILLS, SEED)
    assert course.kills.total() == KILLS
    place.build(data)
    return data


@pytest.fixture(scope="module")
def undisturbed(place: Ground, killed: Path) -> dict[str, Any]:
    """What a build comes to that nobody disturbs, over the list as the kills have left it."""
    place.site.visits.clear()
    place.build(place.folder / "undisturbed")
    return outcome(place.folder / "undisturbed")


def test_kills_cost_nothing_but_the_work_in_flight(place: Ground, killed: Path, undisturbed: dict[str, Any]) -> None:
    assert undisturbed["seconds"]["kept"] > 10
    check(place, killed, undisturbed)


def test_a_full_disk_stops_the_build_with_one_error_and_loses_nothing(
    place: Ground, undisturbed: dict[str, Any]
) -> None:
    place.site.visits.clear()
    try:
        with small_disk(place.folder / "full", 3 << 20) as disk:
            assert fill_and_grow(place, disk, 3 << 20, grows=ROOM).full.total() == 1
            check(place, disk, undisturbed)
    except PermissionError as error:
        pytest.skip(f"{error}; by hand: python -m tests.chaos --kills 0")
