"""What a build would cost, said before anything is asked for: requests, hours, bytes, and wall time by stage.

Rates are those that the ledger of the data folder has measured, as soon as it has seen a few sources. Before that they
are assumptions, and each says where it comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import FetchSettings, Profile
from pipeline.errors import POLICIES
from pipeline.fetch.hosts import host_of
from pipeline.ledger import Ledger, Rates, is_ledger, now
from pipeline.process import STAGES
from pipeline.process.stages import Stages
from pipeline.sources import Source, read_list
from pipeline.storage import Store

LEAST = 5  # attempts or media that a measured rate rests on


@dataclass(frozen=True)
class Assumed:
    """A number that nobody has measured here yet, and where it comes from."""

    value: float
    source: str


VIDEO_S = Assumed(240.0, "4 min a video; the length of a source is known once it was fetched")
BYTES_PER_S = Assumed(80_000.0, "80 kB/s: 360p at about 500 kbit/s with sound at 128 kbit/s")
BYTES_PER_S_DOWN = Assumed(2e6, "2 MB/s, if fetch.rate_limit doesn't say less")
REQUESTS = {
    "youtube": Assumed(8.0, "3 for the player (yt-dlp-wiki PR#57), 1 for the page, 4 for pieces of the media"),
    "bilibili": Assumed(6.0, "an estimate: page, player, formats, and pieces of picture and sound"),
    "": Assumed(2.0, "a look at the file, and the file, as on the loopback site; a stream takes one a segment"),
}
# Seconds of work per second of media on 2 x86 cores with the nano profile, from README, "Measured" (a test holds
# them together). The dvmset profile's models are larger: without a GPU, many times slower.
REAL_TIME = {"shots": 0.044, "music": 0.059, "vision": 0.059, "codes": 0.015}
REAL_TIME_SOURCE = "nano on 2 CPU cores (README, Measured)"
YOUTUBE_PER_HOUR = 300  # videos of a session before YouTube blocks it: yt-dlp#11426, yt-dlp-wiki#52


@dataclass(frozen=True)
class HostPlan:
    """What one host will be asked for.

    Attributes:
        host: see `fetch.hosts.host_of`.
        sources, requests: numbers.
        seconds: of video.
        bytes: of media.
        wall_s: of downloads under its manners.
    """

    host: str
    sources: int
    requests: int
    seconds: float
    bytes: float
    wall_s: float


@dataclass(frozen=True)
class StagePlan:
    """A stage: its wall time, and the rate that it was reckoned with, seconds of work per second of media."""

    stage: str
    wall_s: float
    rate: float
    source: str


@dataclass(frozen=True)
class Plan:
    """What a build would do.

    Attributes:
        listed: sources in the lists.
        to_fetch: those that would be asked for.
        skipped: reason -> number of sources.
        hosts: the longest first.
        stages: in order; the downloads of several hosts, and model work, go side by side.
        assumed: what no ledger has measured: name -> value and where it comes from.
        warnings: what a person should know before starting.
    """

    listed: int
    to_fetch: int
    skipped: dict[str, int]
    hosts: Sequence[HostPlan]
    stages: Sequence[StagePlan]
    assumed: dict[str, str]
    warnings: Sequence[str] = field(default=())

    @property
    def wall_s(self) -> float:
        """Of the whole build: of downloads (with shots beside them) or of model work, whichever is longer."""
        by_name = {stage.stage: stage.wall_s for stage in self.stages}
        models = sum(by_name.get(name, 0.0) for name in ("music", "vision", "codes"))
        return max(by_name.get("fetch", 0.0), models + by_name.get("shots", 0.0))

    def as_json(self) -> dict[str, Any]:
        """Plain values; hours and GB of video, seconds of wall time."""
        return {
            "listed": self.listed,
            "to_fetch": self.to_fetch,
            "skipped": self.skipped,
            "requests": sum(h.requests for h in self.hosts),
            "hours": round(sum(h.seconds for h in self.hosts) / 3600, 3),
            "gb": round(sum(h.bytes for h in self.hosts) / 1e9, 3),
            "wall_s": round(self.wall_s, 1),
            "hosts": [
                {"host": h.host, "sources": h.sources, "requests": h.requests, "hours": round(h.seconds / 3600, 3),
                 "gb": round(h.bytes / 1e9, 3), "wall_s": round(h.wall_s, 1)}
                for h in self.hosts
            ],
            "stages": [
                {"stage": s.stage, "wall_s": round(s.wall_s, 1), "rate": f"{s.rate:.4g} x real time",
                 "source": s.source}
                for s in self.stages
            ],
            "assumed": self.assumed,
            "warnings": list(self.warnings),
        }  # fmt: skip


def make_plan(
    lists: Iterable[str | Path], data: str | Path, profile: Profile, *, ledger_url: str | None = None
) -> Plan:
    """The plan of a build of lists; nothing is asked for, made or changed, not even an empty ledger.

    Args:
        lists: source lists.
        data: data folder of the build; it need not be there yet.
        profile: settings.
        ledger_url: of the build's ledger, if it isn't in the data folder.

    Raises:
        DvmsetError: a list can't be read.
    """
    skipped: Counter[str] = Counter()
    sources: dict[str, Source] = {}
    for path in lists:
        good, bad = read_list(path)
        skipped["rows that are no source"] += len(bad)
        for source in good:
            skipped["listed twice"] += source.source_id in sources
            sources.setdefault(source.source_id, source)
    store = Store(data, make=False)
    place = ledger_url or f"sqlite:///{store.path('ledger.sqlite')}"
    here: Counter[str] = Counter()
    if is_ledger(place):
        ledger = Ledger(place)
        to_fetch = _not_done(Stages(store, profile, ledger, None), sources.values(), skipped, here)
        rates = ledger.rates()
        ledger.close()
    else:
        to_fetch, rates = list(sources.values()), Rates()
    wanted = [source for source in to_fetch if not _refused(source, profile.fetch, skipped)]
    assumed: dict[str, str] = {}
    hosts = _hosts(wanted, profile.fetch, rates, assumed)
    stages = _stages(here, hosts, profile, rates)
    return Plan(
        listed=len(sources) + sum(skipped[reason] for reason in ("rows that are no source", "listed twice")),
        to_fetch=len(wanted),
        skipped={reason: n for reason, n in skipped.most_common() if n},
        hosts=hosts,
        stages=stages,
        assumed=assumed,
        warnings=_warnings(hosts, profile),
    )


def _not_done(stages: Stages, sources: Iterable[Source], skipped: Counter[str], here: Counter[str]) -> list[Source]:
    """Sources that a build would fetch.

    Args:
        stages: of the data folder.
        sources: of the lists.
        skipped: gets the reasons of the others.
        here: gets, by stage, the milliseconds of media that are here already and are to be worked on.
    """
    ledger, at = stages.ledger, now()
    failures = {f.source_id: f for f in ledger.failures()}
    known = {row.source_id: row for row in ledger.sources()}
    buried, outdated = ledger.buried_keys(), ledger.outdated_ids()
    left = []
    for source in sources:
        row, failure = known.get(source.source_id), failures.get(source.source_id)
        if source.key in buried:
            skipped["taken down"] += 1
        elif row is None:
            left.append(source)
        elif row.state == "ready" and row.done_key == stages.files.done_key and row.source_id not in outdated:
            skipped["up to date"] += 1
        elif failure is not None and (failure.due is None or failure.due > at):
            when = "failed for good" if POLICIES[failure.error_class].then == "never" else (  # type: ignore[index]
                "failed and wait for a person" if failure.due is None else "failed and not due yet"
            )  # fmt: skip
            skipped[f"{when} ({failure.error_class})"] += 1
        else:
            media = ledger.media(row.source_id)
            if media is None or media.key != stages.files.media_key(row):
                left.append(source)
                continue
            lacks = stages.lacks(row, media)
            if "fetch" in lacks:
                left.append(source)
                continue
            here.update(dict.fromkeys(lacks, media.duration_ms))
            skipped[f"fetched already; {'its features are missing' if lacks else 'only its verdict is made anew'}"] += 1
    return left


def _refused(source: Source, settings: FetchSettings, skipped: Counter[str]) -> bool:
    """Whether no extractor of the settings takes the address."""
    host = host_of(source.url)
    if (host if host in ("youtube", "bilibili") else "generic") in settings.extractors:
        return False
    if len(set(settings.extractors) - {"youtube", "bilibili", "generic"}):
        return False  # one of them may take it
    skipped[f"on {host}, which no extractor of fetch.extractors takes"] += 1
    return True


def _hosts(sources: Iterable[Source], settings: FetchSettings, rates: Rates, assumed: dict[str, str]) -> list[HostPlan]:
    def rate(name: str, measured: float | None, otherwise: Assumed) -> float:
        if measured is None:
            assumed[name] = otherwise.source
            return otherwise.value
        return measured

    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(host_of(source.url), []).append(source)
    if not groups:
        return []
    enough = rates.media >= LEAST
    video_s = rate("length of a video", rates.mean_seconds if enough else None, VIDEO_S)
    per_second = rate("size of a video", rates.bytes_per_second if enough else None, BYTES_PER_S)
    down = rate("speed of a download", rates.download_bytes_per_s if enough else None, BYTES_PER_S_DOWN)
    down = min(down, settings.rate_limit or down)
    pause_s = sum(settings.pause_s) / 2
    plans = []
    for host, group in groups.items():
        each = REQUESTS.get(host, REQUESTS[""])
        assumed[f"requests for a video of {host if host in REQUESTS else 'another host'}"] = each.source
        size = video_s * per_second
        at_a_time = min(settings.per_host, settings.threads)
        one_s = max(pause_s, size / down / at_a_time)  # starts are apart by the pause, or by what is under way
        seconds = len(group) * video_s
        plans.append(
            HostPlan(host, len(group), round(len(group) * each.value), seconds, len(group) * size, len(group) * one_s)
        )
    return sorted(plans, key=lambda plan: (-plan.wall_s, plan.host))


def _stages(here: Mapping[str, int], hosts: Sequence[HostPlan], profile: Profile, rates: Rates) -> list[StagePlan]:
    media_s = sum(h.seconds for h in hosts)
    at_a_time = max(1, profile.fetch.threads // max(1, profile.fetch.per_host))  # hosts side by side
    fetch_s = max([0.0, *(h.wall_s for h in hosts), sum(h.wall_s for h in hosts) / at_a_time])
    stages = [StagePlan("fetch", fetch_s, fetch_s / media_s if media_s else 0.0, "manners of the settings")]
    for stage in STAGES:
        if stage not in REAL_TIME:
            continue
        measured = rates.real_time.get(stage)
        if measured and measured[1] >= LEAST:
            rate, source = measured[0], f"{measured[1]} sources in the ledger"
        else:
            rate, source = REAL_TIME[stage], REAL_TIME_SOURCE
        stages.append(StagePlan(stage, (media_s + here.get(stage, 0) / 1000) * rate, rate, source))
    return stages


def _warnings(hosts: Sequence[HostPlan], profile: Profile) -> list[str]:
    said = []
    settings = profile.fetch
    for host in hosts:
        per_hour = host.sources / host.wall_s * 3600 if host.wall_s else float("inf")
        if host.host == "youtube" and host.sources > YOUTUBE_PER_HOUR < per_hour:
            said.append(
                f"That is {per_hour:.0f} videos of YouTube an hour; it blocks a session at about {YOUTUBE_PER_HOUR} "
                f"(yt-dlp#11426). Set fetch.pause_s=[8,16]."
            )
    if settings.keep_media:
        said.append(f"fetch.keep_media is on: {sum(h.bytes for h in hosts) / 1e9:.1f} GB of media will stay.")
    if profile.name != "nano" and hosts:
        said.append("Model stages are reckoned with the nano profile's rates until the ledger has measured this one.")
    return said
