"""The commands that hand a release on: export, push."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.shared import JsonOption, print_json, reported, terminal
from pipeline.errors import DvmsetError

LicenceOption = Annotated[
    list[str], typer.Option("--licence", help='Only clips whose stated licence matches: "CC BY*". May be repeated.')
]
OptOutOption = Annotated[
    Path | None,
    typer.Option("--opt-out", help="Leave out the source ids, links and channels of this file, one a line."),
]


class Format(StrEnum):
    """As `export.Format`."""

    HF = "hf"
    WEBDATASET = "webdataset"
    FIFTYONE = "fiftyone"


def export(
    folder: Annotated[str, typer.Argument(help="The folder of a release, or its URL.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    form: Annotated[Format, typer.Option("--to", help="For which loader.")] = Format.HF,
    licence: LicenceOption = [],  # noqa: B006  (typer reads the default, nothing writes to it)
    opt_out: OptOutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a release, or the part under some licences, in the files of another loader."""
    with reported():
        from pipeline.export import Choice, read_opt_outs
        from pipeline.export import export as write

        choice = Choice(tuple(licence), read_opt_outs(opt_out) if opt_out else ())
        counts = write(folder, out, form.value, choice)
        if as_json:
            print_json({"out": str(out), "clips": counts})
        else:
            said = ", ".join(f"{n} {split}" for split, n in counts.items())
            terminal().print(f"{out}: {sum(counts.values())} clips ({said})", highlight=False, soft_wrap=True)


def push(
    folder: Annotated[Path, typer.Argument(help="The folder of a release, or of an export.", file_okay=False)],
    repo: Annotated[str, typer.Option("--repo", help="Data set repository of the Hugging Face Hub: OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="If it is made now, only its owner sees it.")] = False,
) -> None:
    """Upload a folder to the Hugging Face Hub. A release is checked first; nothing damaged is uploaded."""
    with reported():
        from pipeline.export import push as upload
        from pipeline.shards import validate
        from pipeline.shards.validator import MANIFEST

        if not folder.is_dir():
            raise DvmsetError(f"There is no folder {folder}.", hint="Name the folder of a release, or of an export.")
        if (folder / MANIFEST).exists() and (problems := validate(folder).problems):
            raise DvmsetError(f"{folder} is damaged: {problems[0]}.", hint="`dvmset validate` names all that is wrong.")
        terminal().print(upload(folder, repo, private=private), highlight=False, soft_wrap=True)
