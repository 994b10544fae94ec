"""The real command against a site with every fault: classes, tries, pacing, breaker; and no secret anywhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.faults import COOKIE, FATES, MANNERS, building, fates, make, run, write_cookies
from tests.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    with Site(folder) as site:
        site.password = COOKIE
        yield site


@pytest.fixture(scope="module")
def cookies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cookies(tmp_path_factory.mktemp("secrets") / "cookies.txt")


@pytest.fixture(scope="module")
def built(site: Site, cookies: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Data folder and list of a build over all faults, and what it said."""
    folder = tmp_path_factory.mktemp("built")
    source_list = folder / "list.txt"
    source_list.write_text("".join(site.url(path) + "\n" for path in FATES))
    command = building(source_list, folder / "data", f"fetch.cookies={cookies}", *MANNERS)
    result = run(*command, "--verbose", home=folder / "prefect")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "data", source_list, result.stdout + result.stderr


def test_every_fault_ends_in_its_class(site: Site, built: tuple[Path, Path, str]) -> None:
    got = {url.removeprefix(site.url()): fate for url, fate in fates(built[0]).items()}
    assert {p: got[p] for p in FATES} == FATES


def test_status_groups_by_class_and_says_what_follows(built: tuple[Path, Path, str]) -> None:
    found = json.loads(run("status", "--data", built[0], "--json").stdout)
    wanted = Counter(fate for fate in FATES.values() if fate != "ready")
    assert {name: group["sources"] for name, group in found["failures"].items()} == wanted
    assert found["failures"]["permanent"]["then"] == "never"
    assert found["failures"]["transient"]["waiting"] == wanted["transient"]
    assert found["failures"]["unsupported"]["for_a_person"] == wanted["unsupported"]
    text = run("status", "--data", built[0]).stdout
    assert all(f"{name} {n}: " in text for name, n in wanted.items())


def test_the_site_was_asked_as_the_policies_say(site: Site, built: tuple[Path, Path, str]) -> None:
    once = ("permanent", "blocked", "unsupported", "internal")
    for path, fate in FATES.items():
        asked = site.count(path)
        if fate in once and not path.startswith(("redirect/loop", "live")):
            looks = {"html": 2, "text": 4}  # a page and then its "media"; a playlist is also read for its segments
            assert asked <= looks.get(path[:4], 1), path
        if path.startswith(("err/5", "hang")):
            assert asked == 3, path  # one try and two more of the same build


def test_nothing_is_asked_again_before_it_is_due_but_by_retry(
    site: Site, built: tuple[Path, Path, str], prefect: None
) -> None:
    data, source_list, _ = built
    before = len(site.requests)
    again = run(*building(source_list, data))
    assert "Nothing to do" in again.stdout
    assert len(site.requests) == before
    retried = run("retry", "--data", data, "--class", "permanent", "--older-than", "1d", "--json")
    assert json.loads(retried.stdout)["reopened"] == 0
    retried = run("retry", "--data", data, "--source", site.url("err/404"), "--json")
    assert json.loads(retried.stdout) == {"reopened": 1, "classes": {"permanent": 1}}
    rebuilt = run(*building(source_list, data))
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    assert [r.path for r in site.requests[before:]] == ["/err/404"]


def test_no_secret_is_in_any_log_ledger_or_file(built: tuple[Path, Path, str], cookies: Path, site: Site) -> None:
    data, _, said = built
    assert any(f"pass={COOKIE}" in r.headers.get("Cookie", "") for r in site.requests)
    assert COOKIE not in said
    files = [p for p in data.parent.rglob("*") if p.is_file()]
    assert any(p.name == "prefect.db" for p in files)
    assert [p for p in files if COOKIE.encode() in p.read_bytes()] == []
    assert cookies.read_text().count("\n") == 2  # what the site set went into the copy


def test_nothing_half_done_is_left(built: tuple[Path, Path, str]) -> None:
    data = built[0]
    assert list(data.rglob(".tmp-*")) == []
    assert list((data / "media").glob("*")) == []


def test_a_host_that_throttles_rests_is_probed_and_then_gives_all(folder: Path, tmp_path: Path, prefect: None) -> None:
    with Site(folder) as busy, Site(folder) as other, Site(folder) as shut, Site(folder) as ill:
        paths = {
            busy: [f"busy/2/mute{i}.mp4?2" for i in range(6)],
            other: [f"mute{i}.mp4" for i in range(6)],
            shut: ["err/429?900", *(f"mute.mp4?{i}" for i in range(8))],
            ill: ["err/503?900", "mute.mp4"],
        }
        source_list = tmp_path / "list.txt"
        source_list.write_text("".join(f"{site.url(path)}\n" for site, some in paths.items() for path in some))
        manners = ("fetch.per_host=3", "fetch.pause_s=[0.6,0.7]", "fetch.patience_s=30")
        result = run(*building(source_list, tmp_path / "data", *manners))
        assert result.returncode == 0, result.stdout + result.stderr
        found = fates(tmp_path / "data")
        first, *others = [found.pop(shut.url(path)) for path in paths[shut]]
        assert first == "throttled"
        assert others.count("new") >= 4, "a host that throttles isn't asked for more than was under way"
        asked = {r.path for r in shut.requests} - {"/err/429?900"}
        assert len(asked) <= len(others) - others.count("new"), "what is new was not asked for"
        assert [r.path for r in ill.requests if r.path.startswith("/err")] == ["/err/503?900"], "not by this build"
        assert found.pop(ill.url("err/503?900")) == "transient"
        del found[ill.url("mute.mp4")]  # under way when the other was answered, or not asked for
        assert set(found.values()) == {"ready"}
        assert "throttles" in result.stdout
        refused = busy.requests[:2]
        assert all(r.path.startswith("/busy") for r in refused)
        assert max(np.diff([r.at_s for r in busy.requests])) >= 2.0, "Retry-After: 2"
        assert busy.most_at_a_time <= 3
        starts = sorted({r.path: r.at_s for r in reversed(other.requests)}.values())
        assert len(starts) == 6
        assert min(np.diff(starts)) > 0.3, "a pause between any two starts, here where nothing throttles"
