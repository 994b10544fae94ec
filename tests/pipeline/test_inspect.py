"""`dvmset inspect`: everything the pipeline thinks of one file, as text, JSON and picture."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pipeline.media import encode
from pipeline.nano.mixtures import RATE, render
from tests.site import Site

SECONDS = 24
CUT_S = 12
runner = CliRunner()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots of noise under a piece of rendered music."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    rng = np.random.default_rng(0)
    shots = rng.integers(0, 255, (2, 90, 160, 3), np.uint8)
    shots[1] //= 4
    music = render("music", np.random.default_rng(3))[: SECONDS * RATE]
    audio = np.resize(music / np.abs(music).max() * 0.5, SECONDS * RATE)[None].astype(np.float32)
    encode(path, (shots[int(i >= CUT_S * 25)] for i in range(SECONDS * 25)), Fraction(25), audio, RATE)
    return path


@pytest.mark.slow
def test_json_holds_curves_shots_verdict_and_clips_and_the_plot_is_drawn(film: Path, tmp_path: Path) -> None:
    plot = tmp_path / "film.png"
    result = runner.invoke(app, ["inspect", str(film), "--profile", "nano", "--json", "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["shots_s"] == [pytest.approx(CUT_S, abs=0.041)]
    assert {name: len(curve) for name, curve in found["curves"].items()} == dict.fromkeys(
        ("music", "speech", "singing", "voice_ratio", "silence", "other_db", "vocals_db"), SECONDS
    )
    assert (found["verdict"], found["reason"]) == ("keep", "")
    spans = sorted((s["start_s"], s["end_s"]) for s in found["clips"] + found["dropped"])
    assert spans[0][0] == 0
    assert [a for _, a in spans[:-1]] == [b for b, _ in spans[1:]]
    assert spans[-1][1] == found["duration_s"] == pytest.approx(SECONDS, abs=0.05)
    assert min(Image.open(plot).size) > 500


@pytest.mark.slow
def test_text_says_what_a_person_wants_to_know(film: Path) -> None:
    said = runner.invoke(app, ["inspect", str(film), "--profile", "nano"]).stdout
    assert "h264 160x90 25.000 fps" in said
    assert "1 cuts" in said
    assert "verdict  keep" in said


@pytest.mark.slow
def test_a_link_is_fetched_and_found_to_be_what_the_file_is(film: Path) -> None:
    options = ["--profile", "nano", "--set", "fetch.allow_loopback=true", "--json"]
    with Site(film.parent) as site:
        found = json.loads(runner.invoke(app, ["inspect", site.url("page/film.mp4"), *options]).stdout)
        assert site.count("film.mp4") == 1
        gone = runner.invoke(app, ["inspect", site.url("err/404"), *options])
    assert found == json.loads(runner.invoke(app, ["inspect", str(film), *options]).stdout) | {
        "file": site.url("page/film.mp4")
    }
    assert found["verdict"] == "keep"
    assert gone.exit_code == 2 and "404" in gone.output


@pytest.mark.parametrize(
    ("plot", "said"),
    [
        ("nowhere/a.png", "can't be written: there is no folder nowhere"),
        ("a.xyz", "a.xyz can't be drawn: no picture ends like that"),
        ("plain", "plain can't be drawn: no picture ends like that"),
        ("folder.png", "folder.png is a folder"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_told_before_the_work(
    plot: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("film.mp4").write_text("never read")
    result = runner.invoke(app, ["inspect", "film.mp4", "--plot", plot])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.split())


def test_a_file_without_sound_is_dropped_for_that(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    encode(path, (np.full((64, 64, 3), 8 * i, np.uint8) for i in range(30)), Fraction(25), None, RATE)
    found = json.loads(runner.invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert (found["verdict"], found["reason"], found["clips"], found["curves"]) == ("drop", "no_audio", [], {})


def test_a_file_without_sound_shows_its_cuts(tmp_path: Path) -> None:
    path, plot = tmp_path / "mute.mp4", tmp_path / "mute.svg"
    shots = np.random.default_rng(0).integers(0, 255, (2, 90, 160, 3), np.uint8)
    shots[1] //= 4
    encode(path, (shots[int(i >= 50)] for i in range(100)), Fraction(25), None, RATE)
    result = runner.invoke(app, ["inspect", str(path), "--json", "--plot", str(plot)])
    assert json.loads(result.stdout)["shots_s"] == [pytest.approx(2, abs=0.041)], result.output
    assert plot.exists()
    assert "1 cuts" in runner.invoke(app, ["inspect", str(path)]).stdout


def test_a_file_that_is_no_media_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "page.mp4"
    path.write_text("<html>not a film</html>")
    result = runner.invoke(app, ["inspect", str(path)])
    assert result.exit_code == 2
    assert "page.mp4" in result.output
    assert "Traceback" not in result.output
