"""A year of weekly refreshes over a web whose videos die, return, change, are delisted and are taken down."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.config import load_profile
from pipeline.errors import ErrorClass
from pipeline.ledger import Ledger
from pipeline.process import Desk
from pipeline.refresh import look_around
from pipeline.release import Release
from pipeline.shards import Shard
from pipeline.takedown import Request, is_genuine, plan_takedown, take_down
from tests.world import Web, work

WEEKS = 52
# Media is kept, so that other settings and revived duplicates need no site that may be dead that week.
SETTINGS = ("refresh.probe_days=6", "fetch.keep_media=true", "release.buckets={train: 2, validation: 1, test: 1}")
REFUSALS: tuple[ErrorClass, ...] = ("permanent", "blocked", "geo", "transient")


@dataclass
class Truth:
    """What must have become of each address, told without a look at the ledger.

    Attributes:
        listed: on the list this week.
        has: the content that was fetched last; fate: `alive`, or how it is refused.
        buried: addresses, and contents, that were taken down.
        buried_s: seconds of media that went with them.
    """

    listed: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    has: dict[str, str] = field(default_factory=dict)
    fate: dict[str, str] = field(default_factory=dict)
    buried: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    kept_out: set[str] = field(default_factory=set)
    buried_s: int = 0

    def refreshed(self, web: Web) -> None:
        """A week's refresh has passed."""
        for url in self.listed:
            if url in self.buried or url in self.kept_out:
                continue
            self.known.add(url)
            refusal = web.refusals.get(url)
            if refusal is not None:
                if url not in self.has:
                    self.fate[url] = f"failed: {refusal}"
                elif refusal != "transient":  # of which nothing is concluded
                    self.fate[url] = f"gone: {refusal}"
                continue
            if web.videos[url] in self.contents:
                self.kept_out.add(url)  # the same file as one that was taken down
                continue
            self.has[url], self.fate[url] = web.videos[url], "alive"

    def survival(self) -> dict[str, dict[str, float]]:
        """Sources and seconds by class; those that were taken down count no more."""
        table: dict[str, dict[str, float]] = {}
        for url in self.known - self.buried - self.kept_out:
            fate = self.fate[url] if url in self.listed else "removed"
            row = table.setdefault(fate, {"sources": 0, "seconds": 0.0})
            row["sources"] += 1
            row["seconds"] += len(self.has.get(url, ""))
        return table

    def take_down(self, url: str) -> None:
        """A video goes, with its copies."""
        gone = {url} | {other for other, content in self.has.items() if content == self.has.get(url)}
        for other in gone:
            if content := self.has.pop(other, ""):
                self.contents.add(content)
                self.buried_s += len(content)
        self.buried |= gone
        self.known -= gone


class Year:
    """The web, the list and the data folder, week by week."""

    def __init__(self, folder: Path, web: Web, seed: int) -> None:
        self.draw = random.Random(seed)
        self.web = web
        self.truth = Truth()
        self.list = folder / "list.csv"
        self.desk = Desk(folder / "data", load_profile("nano", SETTINGS))
        self.labels: dict[str, str] = {}
        self.releases: set[str] = set()
        self.refused: set[str] = set()  # by media; told of from the next week on
        for _ in range(12):
            self.publish()

    def publish(self) -> None:
        """A new video, now and then a copy of another, or not to be had at first."""
        url = f"https://host{len(self.web.videos)}.example/video.mp4"
        copies = sorted(self.web.videos.values())
        self.web.videos[url] = self.draw.choice(copies) if copies and self.draw.random() < 0.15 else self.content()
        if self.draw.random() < 0.25:
            self.web.refusals[url] = self.draw.choice(REFUSALS)
        self.labels[url] = "promo"
        self.truth.listed.append(url)

    def content(self) -> str:
        """What is heard in a video."""
        return "".join(letter * self.draw.randint(3, 18) for letter in self.draw.choices("mmmvs", k=4))

    def pass_a_week(self) -> None:
        """The world goes on."""
        chance, truth, web = self.draw.random, self.truth, self.web
        if chance() < 0.4:
            self.publish()
        for url in sorted(web.videos):
            if url not in web.refusals and chance() < 0.04:
                web.refusals[url] = self.draw.choice(REFUSALS)
            elif url in web.refusals and chance() < 0.2:
                del web.refusals[url]
            if chance() < 0.02:
                web.videos[url] = self.content()
            if chance() < 0.02:
                self.labels[url] = self.draw.choice(("promo", "commercial", "compilation"))
            if chance() < 0.03:
                (truth.listed.remove if url in truth.listed else truth.listed.append)(url)
        with self.desk.ledger.engine.begin() as connection:
            for column in ("attempts.at", "upstream.checked_at"):
                table, name = column.split(".")
                week_ago = f"strftime('%Y-%m-%d %H:%M:%f', {name}, '-7 days')"
                connection.execute(text(f"UPDATE {table} SET {name} = {week_ago}"))
            connection.execute(text("UPDATE hosts SET rests_until = 0, probed_until = 0"))

    def refresh(self) -> Release | None:
        """What the schedule does."""
        rows = (f"{url},{self.labels[url]}\n" for url in self.truth.listed)
        self.list.write_text("url,category\n" + "".join(rows))
        found = look_around(self.desk, [self.list], probe=self.web.probe)
        work(self.desk, found.pending)
        made = self.desk.release()
        self.truth.refreshed(self.web)
        assert set(found.lists.refused) == {u for u in self.truth.listed if u in self.truth.buried | self.refused}
        self.refused = set(self.truth.kept_out)
        return made

    def take_down(self) -> None:
        """Somebody asks for a video to go; it stays on the list."""
        url = self.draw.choice(sorted(self.truth.known))
        plan = plan_takedown(self.desk.store, self.desk.ledger, Request(urls=(url,)))
        receipt = take_down(self.desk.store, self.desk.ledger, plan, purge=self.draw.random() < 0.3)
        assert is_genuine({key: value for key, value in receipt.items() if key != "path"})
        self.releases.add(receipt["release"]["id"])
        self.truth.take_down(url)


@pytest.mark.slow
def test_a_year_of_refreshes_keeps_its_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = Web()
    web.replace_edges(monkeypatch)
    year = Year(tmp_path, web, seed=1)
    fates: set[str] = set()
    desk, truth = year.desk, year.truth
    for week in range(WEEKS):
        made = year.refresh()
        check(desk.ledger, truth, made, year.releases)
        fates |= set(truth.survival())
        if week == WEEKS // 2:
            year.desk = desk = Desk(desk.store.root, load_profile("nano", [*SETTINGS, "clips.max_s=20"]))
        if week % 9 == 8:
            year.take_down()
        if made:
            year.releases.add(made.id)
        year.pass_a_week()
    assert len(year.releases) > WEEKS // 2
    assert truth.buried
    assert {fate.partition(":")[0] for fate in fates} == {"alive", "removed", "gone", "failed"}


def check(ledger: Ledger, truth: Truth, made: Release | None, known: set[str]) -> None:
    assert ledger.survival() == truth.survival()
    funnel = ledger.funnel()
    assert funnel.fetched_ms == funnel.kept_ms + sum(funnel.dropped_ms.values())
    assert funnel.dropped_ms.get("taken_down", 0) == 1000 * truth.buried_s
    assert funnel.fetched_ms == 1000 * (truth.buried_s + sum(map(len, truth.has.values())))
    if made is None:
        return
    rows = rows_of(made)
    assert sum(round(1000 * row["seconds"]) for row in rows) == funnel.kept_ms
    assert not {row["url"] for row in rows} & (truth.buried | truth.kept_out)
    assert {row["url"] for row in rows} <= set(truth.listed)
    manifest = json.loads((Path(made.path) / "manifest.json").read_text())
    assert made.id in known or manifest["funnel"] == funnel.as_seconds()


def rows_of(release: Release) -> list[dict[str, Any]]:
    columns = ["url", "seconds"]
    shards = [Shard(path) for path in Path(release.path).glob("*.parquet")]
    return [row for shard in shards for group in range(shard.row_groups) for row in shard.read(group, columns)]
