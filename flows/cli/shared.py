"""What the commands share: the options, errors as one message, consoles, JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import DiskFull, DvmsetError

if TYPE_CHECKING:
    from rich.console import Console

PLOTS = (".png", ".svg", ".pdf", ".jpg", ".webp")  # what a picture's name may end in

DataOption = Annotated[
    str, typer.Option("--data", help="Data folder, or a URL such as s3://bucket/data: features, releases, and more.")
]
LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar="DVMSET_LEDGER",
        show_envvar=True,
        help="postgresql://user@host/database, which workers may share; by default a file in the data folder.",
    ),
]
ProfileOption = Annotated[str, typer.Option("--profile", help="nano, dvmset, or the path of a YAML file.")]
SetOption = Annotated[list[str], typer.Option("--set", help="Override a setting: group.field=value. May be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@contextmanager
def reported() -> Iterator[None]:
    """Turns errors meant for a person into one message and exit code 2."""
    try:
        yield
    except DvmsetError as error:
        _print_error(error)
        raise typer.Exit(2) from error
    except (Exception, KeyboardInterrupt) as error:
        if _interrupted(error):
            terminal(stderr=True).print("stopped; run the same command to go on")
            raise typer.Exit(130) from None
        if isinstance(error, typer.Exit):
            raise
        from pipeline.process.stage import disk_is_full

        if disk_is_full(error):  # met by the ledger, or between two stages
            _print_error(DiskFull(f"The disk is full ({error}).", hint="Free some space and run the command again."))
            raise typer.Exit(2) from error
        raise


def check_plot(target: Path) -> None:
    """Sees that a picture can be drawn into a file, before the work that it is to show.

    Raises:
        DvmsetError: it can't.
    """
    if target.suffix.lower() not in PLOTS:
        raise DvmsetError(f"{target} can't be drawn: no picture ends like that.", hint=f"Take {', '.join(PLOTS)}.")
    check_file(target)


def check_file(target: Path) -> None:
    """Sees that a file can be written, before the work that it is to hold.

    Raises:
        DvmsetError: it can't.
    """
    if not target.absolute().parent.is_dir():
        raise DvmsetError(f"{target} can't be written: there is no folder {target.parent}.", hint="Make it first.")
    if target.is_dir():
        raise DvmsetError(f"{target} is a folder.", hint="Name a file in it.")
    try:
        with target.open("ab") if target.exists() else tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise DvmsetError(f"{target} can't be written: {error.strerror}.", hint="Name another place.") from error


def _print_error(error: DvmsetError) -> None:
    console = terminal(stderr=True)
    say(console, "error", "red", error.message)
    if error.hint:
        console.print(f"      {error.hint}", style="dim", highlight=False, soft_wrap=True)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C began it: Prefect's server stops by it too, and a flow that can't report its end fails anew."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def terminal(*, stderr: bool = False) -> Console:
    """Where text for a person goes; square brackets in it mean nothing, for addresses and titles have them."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, markup=False, soft_wrap=not stream.isatty())  # for grep: no breaks inside a line


def say(console: Console, word: str, style: str, text: str) -> None:
    """A line that begins with a word in colour."""
    from rich.text import Text

    console.print(Text.assemble((word, style), f" {text}"), highlight=False, soft_wrap=True)


@contextmanager
def busy(console: Console, text: str) -> Iterator[None]:
    """Says what takes a while: beside a spinner in a terminal, as a line elsewhere."""
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text, highlight=False)
        yield


def print_json(value: Any) -> None:
    """One JSON object on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def log_to_stderr(verbose: bool) -> None:
    """Sends the log to standard error: errors only, or all that the stages say."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.ERROR,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )


def quieten_prefect(verbose: bool) -> None:
    """Settles, before it is imported, that Prefect runs by itself, calls nobody, and says little."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # what goes wrong is shown by us
