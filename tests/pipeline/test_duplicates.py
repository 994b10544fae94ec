"""Near-duplicates in a data folder: found at a release, one group in its shards, listed with times, forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.config import load_profile
from pipeline.ledger import MediaRow, SourceRow
from pipeline.process import Desk
from pipeline.process.duplicates import find_duplicates, group_sources, overview
from pipeline.shards import Shard
from pipeline.sources import Source, canonical_key, source_id
from tests.pipeline.test_fingerprint import pictures, sound
from tests.world import Web, work

PROFILE = load_profile("nano", ["release.buckets={train: 2, validation: 1, test: 1}"])


def url(name: str) -> str:
    return f"https://{name}.example/video.mp4"


def id_of(name: str) -> str:
    return source_id(canonical_key(url(name)), None, None)


def take(desk: Desk, names: str) -> None:
    """Adds sources and works on them as far as they go without a release."""
    for name in names:
        address = url(name)
        desk.add([Source(id_of(name), canonical_key(address), address, "", None, None, "", "", 0)])
        work(desk, [id_of(name)])


def fingerprint(desk: Desk, kind: str, name: str, seed: int, seconds: float = 20.0) -> None:
    """Puts the fingerprint of a made sound or picture in the place of a source's own."""
    source, media = desk.ledger.source(id_of(name)), desk.ledger.media(id_of(name))
    assert isinstance(source, SourceRow) and isinstance(media, MediaRow)
    codes = sound(seed, seconds) if kind == "sound" else pictures(seed, seconds)
    with desk.store.write(desk.files.fingerprint(kind, source, media)) as path:
        codes.to_file(path)


def groups(desk: Desk) -> dict[str, set[str]]:
    """The groups of the newest release by address, and the splits of their clips."""
    made = desk.release()
    assert made is not None
    found: dict[str, set[str]] = {}
    splits: dict[str, set[str]] = {}
    for entry in made.manifest["shards"]:
        with desk.store.read(f"releases/{made.id}/{entry['name']}") as path:
            for row in Shard(path):
                found.setdefault(row["group_id"], set()).add(row["url"])
                splits.setdefault(row["group_id"], set()).add(row["split"])
    assert all(len(of_group) == 1 for of_group in splits.values())
    return {min(urls): urls for urls in found.values()}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    web = Web({url(name): "m" * (20 + i) + "v" * 5 for i, name in enumerate("abcdef")})
    web.replace_edges(monkeypatch)
    desk = Desk(tmp_path / "data", PROFILE)
    take(desk, "abcde")
    yield desk
    desk.ledger.close()


def test_sources_that_share_sound_or_picture_are_one_group_also_through_a_third(desk: Desk) -> None:
    fingerprint(desk, "sound", "a", 1)
    fingerprint(desk, "sound", "c", 1)
    fingerprint(desk, "picture", "c", 2)
    fingerprint(desk, "picture", "e", 2)
    found = groups(desk)
    assert found == {
        url("a"): {url("a"), url("c"), url("e")},
        url("b"): {url("b")},
        url("d"): {url("d")},
    }


def test_less_than_the_setting_joins_nothing_and_is_listed_all_the_same(desk: Desk) -> None:
    fingerprint(desk, "sound", "a", 1)
    fingerprint(desk, "sound", "b", 1, seconds=8)
    desk.release()
    strict = load_profile("nano", ["release.shared_s=12"]).release
    made = group_sources(desk.ledger, strict.shared_s)
    assert made[id_of("a")] != made[id_of("b")]
    (pair,) = overview(desk.ledger, strict).pairs
    assert (pair["kind"], pair["joined"]) == ("same_sound", False)
    assert pair["sound_s"] == pytest.approx(6, abs=1)


def test_only_what_is_new_is_looked_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.release()
    asked: list[str] = []
    from pipeline.fingerprint import Catalogue

    original = Catalogue.take

    def watched(self: Catalogue, names: list[str]) -> Iterator[object]:
        asked.extend(names)
        return original(self, names)

    monkeypatch.setattr(Catalogue, "take", watched)
    find_duplicates(desk.store, desk.ledger, desk.files)
    assert asked == []
    take(desk, "f")
    find_duplicates(desk.store, desk.ledger, desk.files)
    assert {name.rsplit("/", 1)[-1][:16] for name in asked} == {id_of("f")}


def test_a_source_that_leaves_takes_what_it_shared_with_it(desk: Desk) -> None:
    fingerprint(desk, "sound", "a", 1)
    fingerprint(desk, "sound", "c", 1)
    desk.release()
    assert len(overview(desk.ledger, PROFILE.release).pairs) == 1
    rest = [vars(Source(id_of(n), canonical_key(url(n)), url(n), "", None, None, "", "", 0)) for n in "abde"]
    desk.ledger.take_list(rest, whole=True)
    desk.release()
    assert overview(desk.ledger, PROFILE.release).pairs == []
    assert list(desk.ledger.shared()) == []


def test_the_command_lists_pairs_with_times_and_exports_tracks_under_other_pictures(desk: Desk, tmp_path: Path) -> None:
    fingerprint(desk, "sound", "a", 1)
    fingerprint(desk, "sound", "c", 1, seconds=15)
    fingerprint(desk, "picture", "b", 2)
    fingerprint(desk, "picture", "d", 2)
    desk.release()
    data, out = str(desk.store.path("")), tmp_path / "tracks.jsonl"
    result = CliRunner().invoke(app, ["duplicates", "--data", data, "--kind", "same_sound", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert url("a") in result.output and url("b") not in result.output
    assert "2 groups of more than one source" in result.output
    (pair,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert {pair["first"]["url"], pair["second"]["url"]} == {url("a"), url("c")}
    (stretch,) = pair["stretches"]
    assert stretch["kind"] == "sound"
    assert stretch["first_s"] == pytest.approx([0.9, 14.1], abs=0.8)
    assert stretch["second_s"] == pytest.approx(stretch["first_s"], abs=0.3)
