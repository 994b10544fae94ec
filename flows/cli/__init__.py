"""The command line: parses, calls, prints. What a command needs beyond typer and rich it imports when it is called."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flows.cli import acquire, curate, data, duplicates, generate, learn, lineage, look, publish, upkeep
from pipeline import __version__

# Read by OpenMP when torch is loaded: threads that wait for each other sleep instead of spinning, which on a machine
# that does anything else besides (downloads, shot detection) is many times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rebuild DVMSet, a video-music data set, from source lists, and train VidMusician on it.",
)
for command in (
    acquire.discover, acquire.plan, data.build, upkeep.refresh, data.status, acquire.retry, look.inspect,
    data.release, data.validate, publish.export, publish.push, duplicates.duplicates, curate.review, curate.recurate,
    upkeep.takedown, upkeep.serve, learn.train, learn.model, generate.generate, lineage.why, lineage.diff,
    lineage.rebuild, look.doctor,
):  # fmt: skip
    app.command()(command)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"dvmset {__version__}")
        raise typer.Exit
