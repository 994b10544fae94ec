"""Prefect's global limits hold manners across workers, strictly: one that is missing stops the build."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows import limits
from pipeline.config import load_profile
from pipeline.errors import DvmsetError
from pipeline.process import Desk

pytestmark = pytest.mark.slow
URL = "http://h.example/v.mp4"


def test_two_workers_keep_one_hosts_manners(tmp_path: Path) -> None:
    overrides = ["fetch.global_limits=true", "fetch.per_host=1", "fetch.pause_s=[0.5,0.5]"]
    profile = load_profile("nano", overrides)
    workers = [Desk(tmp_path, profile) for _ in range(2)]
    row = {"key": URL, "url": URL, "category": "", "start_s": None, "end_s": None, "license": ""}
    workers[0].ledger.add_sources([{"source_id": "s", **row}])
    starts: list[float] = []
    under_way: list[int] = []
    lock = threading.Lock()

    def work(desk: Desk) -> None:
        for _ in range(2):
            with limits.held(desk, "s"):
                with lock:
                    starts.append(time.monotonic())
                    under_way.append(1)
                    assert len(under_way) == 1
                time.sleep(0.1)
                with lock:
                    under_way.pop()

    with prefect_test_harness(server_startup_timeout=600):
        with pytest.raises(DvmsetError, match=r"dvmset-h\.example"):
            work(workers[0])
        for _ in range(2):  # the second time they are there
            limits.create(profile.fetch, [URL])
        threads = [threading.Thread(target=work, args=(desk,)) for desk in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(starts) == 4
    assert sum(later - earlier for earlier, later in pairwise(starts)) >= 1.2


def test_without_the_setting_no_server_is_asked(tmp_path: Path) -> None:
    profile = load_profile("nano")
    limits.create(profile.fetch, [URL])
    with limits.held(Desk(tmp_path, profile), "s"):
        pass
