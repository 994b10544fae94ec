"""Where tasks run: what they ask a cluster for, and what is said when it can't be had."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest
from prefect_ray.context import RemoteOptionsContext

from flows import build, runners
from pipeline.config import Profile, load_profile
from pipeline.errors import DvmsetError, SettingsError
from pipeline.process import Desk

DASK, RAY = "run.runner=dask", "run.runner=ray"


def profile(*overrides: str) -> Profile:
    return load_profile("nano", overrides)


def test_tasks_with_models_ask_for_a_gpu_where_the_device_is_one() -> None:
    assert runners.gpus(profile("separate.device=cpu", "vision.device=cpu", "codec.device=cpu")) == 0
    assert runners.gpus(profile("vision.device=cuda:1")) == 1
    assert runners.gpus(profile("vision.device=cuda", "run.gpus=0.5")) == 0.5
    with runners.asking(profile(DASK, "run.gpus=1")):
        assert dask.get_annotations() == {"resources": {"GPU": 1}}
    with runners.asking(profile(RAY, "run.gpus=0.5")):
        assert RemoteOptionsContext.get().current_remote_options == {"num_gpus": 0.5}
    with runners.asking(profile(DASK, "run.gpus=0")):
        assert dask.get_annotations() == {}


def test_the_pauses_of_one_process_are_those_of_all_workers(tmp_path: Path) -> None:
    def limits(*overrides: str) -> bool:
        place = build.place_of(Desk(tmp_path, profile(*overrides)))
        return Profile.model_validate_json(place.profile).fetch.global_limits

    assert limits(DASK, "fetch.pause_s=[1,2]")
    assert not limits(DASK)
    assert not limits("fetch.pause_s=[1,2]")


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        ("memory://x", [DASK], "seen by one process only"),
        ("", [DASK, "run.address=tcp://10.0.0.7:8786"], "can't share the ledger"),
    ],
)
def test_workers_that_couldnt_sit_down_are_not_sent_for(
    tmp_path: Path, data: str, settings: list[str], said: str
) -> None:
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite" if data else None
    desk = Desk(data or tmp_path, profile(*settings), ledger_url=ledger)
    with pytest.raises(SettingsError, match=said):
        build.place_of(desk)


def test_a_cluster_that_isnt_there_or_couldnt_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "START_S", 1)
    with (
        pytest.raises(DvmsetError, match="No Dask scheduler answers at"),
        runners.started(profile(DASK, "run.address=tcp://127.0.0.1:9")),
    ):
        pass
    with (
        pytest.raises(SettingsError, match="can't reach Prefect's API"),
        runners.started(profile(RAY, "run.address=10.0.0.7:6379")),
    ):
        pass


def test_data_elsewhere_needs_a_ledger_that_is_named() -> None:
    with pytest.raises(SettingsError, match="can't hold the ledger"):
        Desk("memory://no-ledger", profile())
