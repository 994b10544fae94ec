"""data_cards/tutorial.md does what it says: its commands are run as they stand, in its order."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from flows.cli import app
from pipeline.card import TEMPLATES
from pipeline.shards import read_rows

ROOT = TEMPLATES.parent
BLOCKS = re.findall(r"```(sh|sh online|python)\n(.*?)```", (TEMPLATES / "tutorial.md").read_text(), re.DOTALL)
HEADINGS = re.findall(r"^## (.*)$", (TEMPLATES / "tutorial.md").read_text(), re.MULTILINE)
COMMANDS = [
    line for kind, text in BLOCKS if kind != "python" for line in text.splitlines() if line.startswith("dvmset ")
]


def test_it_walks_through_all_that_it_promises() -> None:
    wanted = ("Rebuild DVMSet from lists", "schedule", "Train on shards", "music for a video", "category", "threshold")
    assert all(any(word in heading for heading in HEADINGS) for word in wanted)
    used = {line.split()[1] for line in COMMANDS}
    assert used >= {"discover", "plan", "build", "refresh", "serve", "train", "generate", "recurate", "rebuild", "diff"}


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_and_option_exists(line: str) -> None:
    toy = next(text for kind, text in BLOCKS if "export TOY=" in text).split('"')[1]
    words = shlex.split(re.sub(r"\$\(.*?\)", "NEWEST", line).replace("$TOY", toy), comments=True)[1:]
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    command = group.commands[words[0]]
    with command.make_context(words[0], list(words[1:])) as context:  # an unknown option or a missing one raises
        assert context.params


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_block_runs_as_it_stands_and_shows_what_is_said(tmp_path: Path, prefect: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = ["set -eu -o pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for i, (kind, text) in enumerate(BLOCKS):
        if kind == "sh online":
            continue
        block = text if kind == "sh" else f"python - <<'END'\n{text}END\n"
        script += [f"echo '@@ {i}'", block]
    # the port alone is another: 8642 may be taken here
    said = "\n".join(script).replace("--port 8642", f"--port {port}").replace("127.0.0.1:8642", f"127.0.0.1:{port}")
    said = said.replace("python -m tests.neighbours site", f"python -m tests.neighbours --port {port} site")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    ended = subprocess.run(
        ["bash", "-c", said], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=2300, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    shown = {int(number): text for number, text in re.findall(r"@@ (\d+)\n(.*?)(?=@@ |\Z)", ended.stdout, re.DOTALL)}

    def block(words: str) -> str:
        return shown[next(i for i, (_, text) in enumerate(BLOCKS) if words in text)]

    assert "speech" in block("dvmset status") and "(new): " in block("dvmset build")
    assert "all good" in block("dvmset validate")
    assert "report.html" in block("dvmset validate")
    rebuilt = block("dvmset rebuild")
    assert "the same release, all 4 shards byte for byte" in rebuilt
    assert "(unchanged)" in shown[next(i for i, (_, t) in enumerate(BLOCKS) if t == "dvmset refresh list.csv $TOY\n")]
    assert "clips removed: " in block("grep -v trailer") and "clips added: " in block("grep -v trailer")
    assert "(4, " in block("read_rows")
    assert (tmp_path / "first.mp4").stat().st_size > 10_000 and (tmp_path / "first.png").is_file()
    assert "| travel |" in block("city.mp4,travel")
    assert "clips relabelled: " in block("sed -i.old")
    assert "verdict.voice_ratio_max: 0.15 -> 0.05" in block("dvmset diff")

    data = tmp_path / "data"
    newest = data / "releases" / (data / "releases/latest").read_text().strip()
    rows = list(read_rows(sorted(newest.glob("*.parquet")), ["category", "url", "group_id"]))
    assert {row["category"] for row in rows} == {"trailer", "commercial", "travel"}
    of_city = {row["group_id"] for row in rows if row["url"].endswith("city.mp4")}
    assert len(of_city) == 1, "sections of one video are one group"
    assert "| travel |" in (newest / "README.md").read_text()
