"""The commands that hand a release on: export, push."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.shared import JsonOption, print_json, reported, terminal
from pipeline.errors import DvmsetError

if TYPE_CHECKING:
    from pipeline.export import OptOuts

LicenceOption = Annotated[
    list[str], typer.Option("--licence", help='Only clips whose stated licence matches: "CC BY*". May be repeated.')
]
OptOutOption = Annotated[
    Path | None,
    typer.Option(
        "--opt-out", help="Honour this list: source ids, links in any spelling, channels, one a line; # is a comment."
    ),
]


class Format(StrEnum):
    """As `export.Format`."""

    HF = "hf"
    WEBDATASET = "webdataset"
    FIFTYONE = "fiftyone"


def export(
    folder: Annotated[str, typer.Argument(help="The folder of a release, or its URL; or releases/latest.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    form: Annotated[
        Format,
        typer.Option("--to", help="Parquet for datasets; tar files; labels.json for media that you have yourself."),
    ] = Format.HF,
    licence: LicenceOption = [],  # noqa: B006  (typer reads the default, nothing writes to it)
    opt_out: OptOutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a release, or the part under some licences, in the files of another loader.

    No media is in it, and nothing of whom --opt-out names. What FiftyOne needs besides, and how it reads
    `labels.json`, stands in the README of the export.
    """
    with reported():
        from pipeline.export import Choice, OptOuts, read_opt_outs
        from pipeline.export import export as write

        opted_out = read_opt_outs(opt_out) if opt_out else OptOuts()
        counts = write(folder, out, form.value, Choice(tuple(licence), opted_out))
        _warn(opted_out)
        if as_json:
            print_json({"out": str(out), "clips": counts, "opted_out": opted_out.met, "unknown": opted_out.unmet})
        else:
            said = ", ".join(f"{n} {split}" for split, n in counts.items())
            terminal().print(f"{out}: {sum(counts.values())} clips ({said})", highlight=False, soft_wrap=True)


def push(
    folder: Annotated[Path, typer.Argument(help="The folder of a release, releases/latest, or an export's folder.")],
    repo: Annotated[str, typer.Option("--repo", help="Data set repository of the Hugging Face Hub: OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="If it is made now, only its owner sees it.")] = False,
    previews: Annotated[
        bool, typer.Option("--with-previews", help="Upload the sound in report.html, too: it is others' media.")
    ] = False,
    opt_out: OptOutOption = None,
) -> None:
    """Upload a folder to the Hugging Face Hub, in place of what was pushed there before.

    A release is checked first; nothing damaged is uploaded. The report goes without the sound that is embedded in it.
    With --opt-out, a folder that holds anything of whom the list names is refused: push an export made with that list.
    """
    with reported():
        from pipeline.export import OptOuts, read_opt_outs
        from pipeline.export import push as upload
        from pipeline.shards import release_folder, validate
        from pipeline.shards.validator import MANIFEST

        hint = "Name the folder of a release, or of an export."
        folder = Path(release_folder(folder))
        if not folder.is_dir():
            raise DvmsetError(f"There is no folder {folder}.", hint=hint)
        if not (folder / MANIFEST).exists() and not (folder / "README.md").exists():
            raise DvmsetError(f"{folder} is neither a release nor an export.", hint=hint)  # there may be media in it
        if (folder / MANIFEST).exists() and (problems := validate(folder).problems):
            raise DvmsetError(f"{folder} is damaged: {problems[0]}.", hint="`dvmset validate` names all that is wrong.")
        opted_out = read_opt_outs(opt_out) if opt_out else OptOuts()
        pushed = upload(folder, repo, private=private, previews=previews, opted_out=opted_out)
        _warn(opted_out)
        terminal().print(pushed.address, highlight=False, soft_wrap=True)
        for name in pushed.silenced:
            terminal().print(f"{name} went without its sound; --with-previews uploads that, too", highlight=False)


def _warn(opted_out: OptOuts) -> None:
    """Names the entries that named no source: they may be misspelt."""
    for entry in opted_out.unmet:
        said = f"opt-out: nothing that is here is named by {entry!r}"
        terminal(stderr=True).print(said, highlight=False, soft_wrap=True)
