"""The commands refresh and takedown, from the command line to the release."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from typer.testing import CliRunner

from flows.cli import app
from pipeline.takedown import is_genuine
from tests.world import Web

SETTINGS = ("--profile", "nano", "--set", "refresh.probes=0")
NO_LIMIT = "refresh.most_removed=1"
runner = CliRunner()


def invoke(*arguments: str | Path, typed: str = "") -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments], input=typed)


@pytest.mark.slow
def test_a_data_folder_is_made_kept_and_cleared_of_a_video(
    prefect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [f"https://{name}.example/video.mp4" for name in "abc"]
    Web({url: "m" * (20 + i) for i, url in enumerate(urls)}).replace_edges(monkeypatch)
    listed, data = tmp_path / "list.txt", tmp_path / "data"
    listed.write_text("\n".join(urls[:2]))
    first = json.loads(invoke("refresh", listed, "--data", data, *SETTINGS, "--json").stdout)
    assert (first["lists"]["new"], first["worked_on"], first["changed"]) == (2, 2, True)
    listed.write_text("\n".join([*urls, "nonsense"]))
    second = json.loads(invoke("refresh", listed, "--data", data, *SETTINGS, "--json").stdout)
    assert second["diff"]["added"] == {"clips": 1, "seconds": 22.0, "reasons": {"new in the list": 1}}
    assert (second["diff"]["parent"], second["bad_rows"]) == (first["release"], 1)

    code = "import sys; from flows.cli import app; app(standalone_mode=False); sys.exit('prefect' in sys.modules)"
    third = subprocess.run(
        [sys.executable, "-c", code, "refresh", listed, "--data", data, *SETTINGS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert third.returncode == 0, third.stdout + third.stderr
    assert f"release  {second['release']} (unchanged)" in third.stdout

    listed.write_text("\n".join(urls[:2]))
    fewer = json.loads(invoke("refresh", listed, "--data", data, *SETTINGS, "--set", NO_LIMIT, "--json").stdout)
    assert (fewer["worked_on"], fewer["diff"]["removed"]["reasons"]) == (0, {"removed from the list": 1})
    with get_client(sync_client=True) as client:
        left = [artifact for artifact in client.read_artifacts() if artifact.key == "dvmset-refresh"]
    told = [str(artifact.data) for artifact in sorted(left, key=lambda artifact: artifact.created)]
    told = [text for text in told if str(data) in text]  # other tests share this server's history
    assert (
        len(told) == 3 and f"release {fewer['release']}" in told[-1] and "removed from the list" in told[-1]
    )
    listed.write_text("\n".join(urls))
    second = json.loads(invoke("refresh", listed, "--data", data, *SETTINGS, "--json").stdout)

    asked = invoke("takedown", "--url", urls[0], "--data", data, typed="n\n")
    assert (asked.exit_code, "Nothing was changed" in asked.stdout) == (1, True)
    receipt = json.loads(invoke("takedown", "--url", urls[0], "--data", data, "--yes", "--json").stdout)
    assert (receipt["release"]["clips_removed"], receipt["release"]["parent"]) == (1, second["release"])
    assert is_genuine({name: value for name, value in receipt.items() if name != "path"})
    told = invoke("refresh", listed, "--data", data, *SETTINGS)
    assert "1 that were taken down" in told.stdout
    assert f"release  {receipt['release']['id']} (unchanged)" in told.stdout
    states = json.loads(invoke("status", "--data", data, "--json").stdout)
    assert states["states"] == {"ready": 2}
    assert states["seconds"]["dropped"]["taken_down"] == 20.0
    assert states["release"].endswith(receipt["release"]["id"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["refresh", "no-such.csv", "--profile", "nano"], "no-such.csv"),
        (["takedown", "--url", "https://a.example/x"], "data is not a data folder"),
        (["serve", "no-such.csv", "--cron", "0 3 * * *", "--profile", "nano"], "no-such.csv"),
        (["serve", "list.txt", "--cron", "nightly", "--profile", "nano"], "'nightly' (UTC) is no schedule"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("https://a.example/video.mp4\n")
    result = invoke(*arguments)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
