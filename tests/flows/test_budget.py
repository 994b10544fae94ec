"""The byte budget of a build: what lies on disk counts, whoever left it there."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.build import _Work, compute, desk_of, place_of
from pipeline import music
from pipeline.config import load_profile
from pipeline.errors import SourceError
from pipeline.process import Desk
from pipeline.sources import read_list
from tests.world import Web

URLS = [f"https://a.example/{name}.mp4" for name in ("good", "bad", "worse")]


def broken(*_: object, **__: object) -> None:
    raise ValueError("odd shape")


@pytest.mark.parametrize("keep", [False, True])
def test_media_of_failed_sources_counts_in_this_build_and_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    web = Web(dict.fromkeys(URLS, "m" * 20))
    web.videos[URLS[1]] += "s"
    web.replace_edges(monkeypatch)
    (tmp_path / "list.txt").write_text("\n".join(URLS))
    desk = Desk(tmp_path / "data", load_profile("nano", [f"fetch.keep_media={str(keep).lower()}"]))
    desk.add(read_list(tmp_path / "list.txt")[0])
    place = place_of(desk)
    good, bad, worse = desk.pending()
    building = _Work(place)
    for _ in range(3):
        source_id = building.queue.take()
        assert source_id
        if source_id == worse:
            error = SourceError("no shots", "internal")
            desk_of(place)._fetch(desk.ledger.source(worse))
        else:
            desk_of(place).acquire(source_id)
            error = None
        building._acquired(source_id, error, others=False)
        if source_id == bad:
            monkeypatch.setattr(music, "measure", broken)
            compute.fn(place, [bad])
            web.replace_edges(monkeypatch)
        elif source_id == good:
            compute.fn(place, [good])
        if source_id != worse:
            building._computed([source_id])
    left = {bad: desk.media_bytes(bad), worse: desk.media_bytes(worse)}
    assert min(left.values()) > 0
    counted = {source_id: size for source_id, size in building.queue.on_disk.items() if size}
    assert counted == ({} if keep else left), "what is kept on purpose is in nobody's way"
    desk.ledger.reopen([bad])
    assert _Work(place).queue.on_disk == left
