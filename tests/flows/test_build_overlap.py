"""What a build does side by side: downloads come in while models are at work, and models are loaded once for all."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ledger import Ledger
from pipeline.media import encode
from pipeline.nano.mixtures import RATE, render
from tests import faults
from tests.neighbours import city_frames, loop
from tests.site import ROUTES, Site

pytestmark = pytest.mark.slow
SONG_S = 12
PATIENCE = ("fetch.socket_timeout_s=300", "fetch.stall_s=300")  # the site waits for the build
# The real command; then, how often each model was loaded and how often it was wanted again.
_COMMAND = """
import json
from flows.cli import app
app(standalone_mode=False)
from pipeline.codec import load_codec
from pipeline.separate import load_separator
from pipeline.vision import load_vision
infos = [load.cache_info() for load in (load_separator, load_vision, load_codec)]
print(json.dumps([(info.misses, info.hits) for info in infos]))
"""


def stages(data: Path) -> list[tuple[str, str]]:
    """Source and stage of all attempts, in the order in which they ended."""
    if not (data / "ledger.sqlite").exists():
        return []
    with closing(Ledger(f"sqlite:///{data}/ledger.sqlite")) as ledger:
        return [(ledger.source(row.source_id).url, row.stage) for row in ledger.attempts(0)]


def test_a_download_goes_on_while_models_work_on_another_and_they_are_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect: None
) -> None:
    data, files, asked_first = tmp_path / "data", tmp_path / "site", []
    files.mkdir()
    song = loop(render("music", np.random.default_rng(1)), SONG_S)
    encode(files / "song.mp4", city_frames(SONG_S), Fraction(25), song, RATE)
    other = faults.another(files / "song.mp4", 1)

    def when_the_first_was_heard(handler: Any, rest: str, query: str, visit: int) -> None:
        def heard() -> bool:
            return any(stage == "music" for _, stage in stages(data))

        asked_first.append(not heard())
        while not heard() and not handler.site.closing.wait(0.5):
            pass
        handler.send_file(rest)

    monkeypatch.setitem(ROUTES, "late", when_the_first_was_heard)
    with Site(files) as site:
        first, late = site.url("song.mp4"), site.url(f"late/{other}")
        (tmp_path / "list.txt").write_text(f"{first}\n{late}\n")
        command = faults.building(tmp_path / "list.txt", data, *PATIENCE)
        ended = subprocess.run(
            [sys.executable, "-c", _COMMAND, *command], check=False, capture_output=True, text=True, timeout=600
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert faults.fates(data) == {first: "ready", late: "ready"}
    order = stages(data)
    assert asked_first[0], "the site was asked before the models had done anything"
    assert order.index((first, "music")) < order.index((late, "fetch")) < order.index((late, "music"))
    loaded = json.loads(ended.stdout.splitlines()[-1])
    assert [misses for misses, _ in loaded] == [1, 1, 1]
    assert all(hits >= 1 for _, hits in loaded)
