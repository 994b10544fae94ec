"""What new thresholds and people's decisions would do to a release, and what a build then does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_profile
from pipeline.errors import DvmsetError, SettingsError
from pipeline.ledger import ReviewRow
from pipeline.process import Desk
from pipeline.recurate import foretell, full_name, release_profile
from pipeline.release import Release
from pipeline.shards import Shard, validate
from pipeline.sources import Source, canonical_key, source_id
from pipeline.storage import Store
from tests.world import Web, work

SETTINGS = ("release.buckets={train: 2, validation: 1, test: 1}",)
VIDEOS = {  # a cut at 10 s in each
    "https://a.example/1.mp4": "m" * 40 + "s" * 5 + "m" * 20,
    "https://b.example/2.mp4": "1" * 30 + "s" * 5 + "m" * 15,
    "https://c.example/3.mp4": "2" * 30 + "m" * 30,
    "https://d.example/4.mp4": "v" * 30,
}


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web(dict(VIDEOS))
    web.replace_edges(monkeypatch)
    return web


@pytest.fixture
def desk(tmp_path: Path, web: Web) -> Iterator[Desk]:
    desk = Desk(tmp_path / "data", load_profile("nano", SETTINGS))
    desk.add([source(url) for url in VIDEOS])
    build(desk)
    yield desk
    desk.ledger.close()


def source(url: str) -> Source:
    key = canonical_key(url)
    return Source(source_id(key, None, None), key, url, "promo", None, None, "", "list.csv", 1)


def id_of(number: int) -> str:
    return source(list(VIDEOS)[number]).source_id


def build(desk: Desk) -> Release:
    work(desk, desk.pending())
    made = desk.release()
    assert made is not None
    return made


def under(desk: Desk, *overrides: str) -> Desk:
    return Desk(desk.store.root, release_profile(desk.store, overrides))


def clips(desk: Desk) -> set[str]:
    return {clip.clip_id for clip in desk.ledger.clips()}


def spans(desk: Desk, number: int) -> list[tuple[float, float, str]]:
    return [(s.start_ms / 1000, s.end_ms / 1000, s.reason) for s in desk.ledger.spans(id_of(number))]


def rows(release: Release) -> dict[str, dict[str, Any]]:
    assert validate(release.path).problems == ()
    return {row["clip_id"]: row for path in sorted(Path(release.path).glob("*.parquet")) for row in Shard(path)}


def say(
    desk: Desk, number: int, start_s: float, end_s: float, decision: str, *, at_s: float = 0, by: str = "Ada"
) -> int:
    media = desk.ledger.media(id_of(number))
    assert media is not None
    return desk.ledger.add_review(
        ReviewRow(
            source_id=media.source_id,
            sha256=media.sha256,
            start_ms=round(start_s * 1000),
            end_ms=round(end_s * 1000),
            decision=decision,
            split_ms=round(at_s * 1000) or None,
            reviewer=by,
        )
    )


def test_the_outlook_is_what_a_build_under_these_settings_then_does(desk: Desk, web: Web) -> None:
    before, downloads = clips(desk), len(web.downloads)
    then = under(desk, "voice_ratio_max=0.15", "clips.min_s=16")
    outlook = foretell(then)
    assert clips(desk) == before and len(web.downloads) == downloads  # nothing was touched

    build(then)

    gone = {change.clip_id for change in outlook.changes if change.kind == "removed"}
    come = {change.clip_id for change in outlook.changes if change.kind == "added"}
    assert gone and clips(then) == before - gone | come
    funnel = then.ledger.funnel()
    assert (outlook.then.kept_ms, outlook.then.dropped_ms) == (funnel.kept_ms, funnel.dropped_ms)
    assert outlook.clips_then == len(clips(then)) and outlook.clips_now == len(before)
    assert foretell(under(then)).changes == []  # the newest release is made under these


def test_an_outlook_says_why_a_clip_comes_or_goes_and_what_it_lacks(desk: Desk) -> None:
    stricter = {c.clip_id: c for c in foretell(under(desk, "voice_ratio_max=0.05")).changes}
    looser = foretell(under(desk, "voice_ratio_max=0.25", "voice_ratio_heard_max=0.25")).changes

    dropped = stricter[f"{id_of(1)}-00000000-00030000"]
    assert (dropped.kind, dropped.why, dropped.seconds) == ("removed", "dropped: voice", 30.0)
    new = [c for c in looser if c.kind == "added" and c.source_id == id_of(2)]
    assert [c.why for c in new] == ["was dropped: voice"] * len(new) and new and all(c.lacks for c in new)


def test_settings_may_be_named_without_their_group_but_must_be_of_verdict_or_clips(desk: Desk) -> None:
    assert full_name("voice_ratio_max=0.1") == "verdict.voice_ratio_max=0.1"
    assert full_name("min_s=12") == "clips.min_s=12"
    with pytest.raises(SettingsError, match="changes more than verdicts and clips"):
        full_name("vision.model=x")
    with pytest.raises(SettingsError, match="there is no such setting") as error:
        release_profile(desk.store, ["voice_ration_max=0.1"])
    assert "voice_ratio_max" in error.value.hint
    with pytest.raises(DvmsetError, match="has no release yet"):
        release_profile(Store(Path(desk.store.root).parent / "empty"))


def test_what_a_person_drops_leaves_the_next_release_with_that_reason(desk: Desk, web: Web) -> None:
    downloads = len(web.downloads)
    say(desk, 0, 0, 40, "drop")
    assert desk.pending() == [id_of(0)]
    [change] = foretell(desk).changes
    assert (change.kind, change.why) == ("removed", "dropped: review")

    made = build(desk)

    assert spans(desk, 0) == [(0, 40, "review"), (40, 45, "silence"), (45, 65, "")]
    assert made.diff is not None and made.diff["removed"]["reasons"] == {"dropped: review": 1}
    assert desk.pending() == [] and len(web.downloads) == downloads


def test_what_a_person_keeps_stays_as_it_is_whatever_the_rules_say(desk: Desk) -> None:
    say(desk, 1, 0, 30, "keep")
    made = build(desk)
    assert made.diff is not None and made.diff["relabelled"]["reasons"] == {"reviewed by a person": 1}

    strict = under(desk, "voice_ratio_max=0.01", "clips.min_s=16")
    build(strict)

    kept = f"{id_of(1)}-00000000-00030000"
    assert kept in clips(strict)
    release = build(strict)
    assert {name for name, row in rows(release).items() if row["reviewed"]} == {kept}


def test_what_a_person_keeps_of_the_dropped_becomes_a_clip(desk: Desk, web: Web) -> None:
    say(desk, 3, 5, 25, "keep")
    build(desk)

    assert spans(desk, 3) == [(0, 5, "speech"), (5, 25, ""), (25, 30, "speech")]
    assert list(VIDEOS)[3] in web.downloads[len(VIDEOS) :]  # its media was not kept, and a clip needs features


def test_no_clip_runs_across_a_split(desk: Desk) -> None:
    say(desk, 0, 0, 40, "split", at_s=23.5)
    build(desk)

    assert spans(desk, 0)[:2] == [(0, 23.5, ""), (23.5, 40, "")]


def test_a_word_on_media_that_has_changed_since_is_void(desk: Desk, web: Web) -> None:
    say(desk, 0, 0, 40, "drop")
    web.videos[next(iter(VIDEOS))] = "m" * 50
    desk.ledger.saw(id_of(0), "another", fetched=False)

    build(desk)

    assert desk.ledger.reviews(id_of(0)) == []
    assert all(reason != "review" for *_, reason in spans(desk, 0))
    assert desk.pending() == []


def test_an_undone_word_has_no_effect(desk: Desk) -> None:
    before = clips(desk)
    say(desk, 0, 0, 40, "drop")
    build(desk)
    assert clips(desk) != before

    undone = desk.ledger.undo_review("Ada")

    assert undone is not None and undone.decision == "drop"
    build(desk)
    assert clips(desk) == before
    assert desk.ledger.undo_review("Ada") is None


def test_a_word_that_comes_while_a_source_is_decided_on_is_heard_next_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(desk, 0, 0, 40, "drop")
    put_spans = desk.ledger.put_spans

    def late(*args: Any, **kwargs: Any) -> None:
        late_words.append(say(desk, 0, 45, 65, "drop"))
        put_spans(*args, **kwargs)

    late_words: list[int] = []
    monkeypatch.setattr(desk.ledger, "put_spans", late)
    desk.analyse(id_of(0))
    desk.encode(id_of(0))

    assert late_words and desk.pending() == [id_of(0)]


def test_a_takedown_takes_what_was_said_with_it(desk: Desk) -> None:
    say(desk, 0, 0, 40, "drop")
    desk.ledger.bury([desk.ledger.source(id_of(0)).key], [])

    with desk.ledger.erased([id_of(0)]) as gone:
        assert gone["reviews"] == 1

    assert desk.ledger.reviews() == []


def test_reviews_come_in_order_and_by_source(desk: Desk) -> None:
    first, second = say(desk, 0, 0, 40, "keep"), say(desk, 1, 0, 30, "unsure", by="Bob")

    def ids(reviews: Sequence[ReviewRow]) -> list[int]:
        return [review.id for review in reviews]

    assert ids(desk.ledger.reviews()) == [first, second]
    assert ids(desk.ledger.reviews(id_of(1))) == [second]
    assert sorted(desk.ledger.reviewed_since()) == sorted([id_of(0), id_of(1)])
