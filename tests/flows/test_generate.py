"""`dvmset generate`: one video, a folder of them, and what it says."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from pipeline.media import probe
from tests import synth

runner = CliRunner()


def film(path: Path, seconds: float = 0.5) -> Path:
    return synth.write(path, stamps=synth.even_stamps(Fraction(20), seconds))


def test_a_video_gets_music_and_toy_models_are_called_so(tmp_path: Path) -> None:
    video, out, plot = film(tmp_path / "a.mp4"), tmp_path / "b.mp4", tmp_path / "b.png"
    result = runner.invoke(app, ["generate", str(video), "-o", str(out), "--seed", "3", "--plot", str(plot)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "the bundled nano one makes this music, a toy" in said
    assert "Random" not in said
    (level,) = re.findall(r"0\.50 s of music at (-\d+\.\d) LUFS, seed 3", said)
    assert float(level) == pytest.approx(-14, abs=0.15)  # a limiter's last tenth
    info = probe(out)
    assert info.video and info.audio and info.audio.duration_s == pytest.approx(0.5, abs=1e-3)
    with av.open(str(out)) as container:
        assert json.loads(container.metadata["comment"])["options"]["seed"] == 3
    assert min(Image.open(plot).size) > 500


def test_options_are_handed_on_and_json_says_what_was_made(tmp_path: Path) -> None:
    video, out = film(tmp_path / "a.mp4"), tmp_path / "b.wav"
    options = ["--audio-only", "--text", "calm", "--guidance", "2", "--guidance-rhythm", "4", "--top-k", "9", "--json"]
    result = runner.invoke(app, ["generate", str(video), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["out"], found["seconds"]) == (str(out), 0.5)
    assert found["loudness"]["lufs"] == pytest.approx(-14, abs=0.1)
    assert found["record"]["options"] == {
        "seed": 0, "text": "calm", "guidance": 2.0, "guidance_rhythm": 4.0, "temperature": 1.0, "top_k": 9,
        "greedy": False, "prompt_s": None,
    }  # fmt: skip
    apart = ["--guidance", "2", "--guidance-semantic", "5", "--json", "--force", "--audio-only"]
    again = json.loads(runner.invoke(app, ["generate", str(video), "-o", str(out), *apart]).stdout)
    assert [again["record"]["options"][name] for name in ("guidance", "guidance_rhythm")] == [5.0, 2.0]


def test_a_folder_of_videos_is_done_but_for_what_is_bad_or_there(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "new" / "out"
    folder.mkdir()
    for name, seconds in (("one.mp4", 0.5), ("two.mkv", 1.0)):
        film(folder / name, seconds)
    (folder / "bad.mp4").write_text("no video")
    (folder / "notes.txt").write_text("no video either, and not called so")
    command = ["generate", "--batch", str(folder), "-o", str(out)]
    first = runner.invoke(app, command)
    assert first.exit_code == 1
    said = " ".join(first.output.split())
    assert "bad.mp4 is not a media file" in said and "2 of 3 videos have music now" in said
    assert sorted(p.name for p in out.iterdir()) == ["one.mp4", "two.mp4"]
    written = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    (folder / "bad.mp4").unlink()
    second = runner.invoke(app, command)
    assert second.exit_code == 0 and "2 are there already and stay" in second.output
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == written
    forced = runner.invoke(app, [*command, "--force"])
    assert forced.exit_code == 0 and "2 of 2 videos have music now" in forced.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "There has to be a VIDEO"),
        (["a.mp4"], "There has to be a VIDEO"),
        (["missing.mp4", "-o", "b.mp4"], "There is no file missing.mp4"),
        (["a.mp4", "-o", "a.mp4"], "is the video itself"),
        (["a.mp4", "-o", "there.mp4"], "or replace it by --force"),
        (["a.mp4", "-o", "b.mp4", "--temperature", "0"], "temperature 0"),
        (["a.mp4", "-o", "b.mp4", "--checkpoint", "nowhere"], "nowhere is not a training run"),
        (["a.mp4", "-o", "b.mp4", "--preset", "no-such"], "No preset 'no-such'"),
        (["a.mp4", "-o", "b.mp4", "--profile", "no-such"], "No profile 'no-such'"),
        (["a.mp4", "-o", "out", "--batch", "videos"], "--batch takes no VIDEO"),
        (["-o", "out", "--batch", "nowhere"], "There is no folder nowhere"),
        (["-o", "out", "--batch", "empty"], "empty has no videos"),
        (["-o", "videos", "--batch", "videos"], "The music can't go to videos"),
        (["-o", "there.mp4/out", "--batch", "videos"], "there.mp4/out can't be made"),
        (["a.mp4", "-o", "b.mp4", "--plot", "nowhere/b.png"], "nowhere/b.png can't be written: there is no folder"),
        (["a.mp4", "-o", "b.mp4", "--plot", "b.xyz"], "b.xyz can't be drawn: no picture ends like that"),
        (["a.mp4", "-o", "b.mp4", "--plot", "videos"], "videos can't be drawn"),
        (["a.mp4", "-o", "b.mp4", "--device", "foo"], "torch can't compute on 'foo' here"),
        (["-o", "out", "--batch", "twins"], "a.mkv and a.mp4 would become one file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    film(Path("a.mp4"))
    Path("there.mp4").write_text("of value")
    for place in ("videos/a.mp4", "twins/a.mp4", "twins/a.mkv", "empty/a.txt"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).touch()
    before = sorted(tmp_path.rglob("*"))
    result = runner.invoke(app, ["generate", *arguments])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before
