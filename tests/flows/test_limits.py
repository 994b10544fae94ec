"""Prefect's global limits hold manners across workers, strictly: one that is missing stops the build."""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import pairwise

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows import limits
from pipeline.config import load_profile
from pipeline.errors import DvmsetError
from pipeline.refresh import Held

pytestmark = pytest.mark.slow
URL = "http://h.example/v.mp4"


def test_two_workers_keep_one_hosts_manners() -> None:
    overrides = ["fetch.global_limits=true", "fetch.per_host=1", "fetch.pause_s=[0.5,0.5]"]
    profile = load_profile("nano", overrides)
    starts: list[float] = []
    under_way: list[int] = []
    lock = threading.Lock()

    def work(hold: Held) -> None:
        for _ in range(2):
            with hold(URL):
                with lock:
                    starts.append(time.monotonic())
                    under_way.append(1)
                    assert len(under_way) == 1
                time.sleep(0.1)
                with lock:
                    under_way.pop()

    with prefect_test_harness(server_startup_timeout=600):
        with pytest.raises(DvmsetError, match=r"dvmset-h\.example"):
            work(partial(limits.held, profile.fetch))
        for _ in range(2):  # the second time they are there
            limits.create(profile.fetch, [URL])
        ways = partial(limits.held, profile.fetch), limits.holder(profile.fetch)  # as a build does, and a refresh
        threads = [threading.Thread(target=work, args=(way,)) for way in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with limits.holder(profile.fetch)("http://new.example/v.mp4"):
            pass  # of a host that no build has met
    assert len(starts) == 4
    assert sum(later - earlier for earlier, later in pairwise(starts)) >= 1.2


def test_without_the_setting_no_server_is_asked() -> None:
    profile = load_profile("nano")
    limits.create(profile.fetch, [URL])
    with limits.holder(profile.fetch)(URL):
        pass
