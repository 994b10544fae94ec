"""Releases and exports on the Hugging Face Hub: no media leaves this machine, and nobody's who opted out."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DvmsetError
from pipeline.export.choice import OptOuts
from pipeline.faces import without_sound
from pipeline.shards import Shard

STALE = ("*.parquet", "*.jsonl", "*.tar")  # of what was pushed before: rows that have gone must not be loaded any more
_COLUMNS = ("source_id", "url", "channel")


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    Attributes:
        address: of the commit.
        silenced: pages that went without the sound they have here.
    """

    address: str
    silenced: tuple[str, ...]


def push(folder: Path, repo: str, *, private: bool, previews: bool = False, opted_out: OptOuts | None = None) -> Pushed:
    """Uploads a folder to a data set repository of the Hugging Face Hub, in place of what was pushed there before.

    The token is the one that `hf auth login` stored, or HF_TOKEN; the Hub's address is HF_ENDPOINT, if that is set.

    Args:
        private: if the repository is made now, only its owner sees it.
        previews: pages keep the sound that is embedded in them.
        opted_out: sources of which nothing may be in the folder.

    Raises:
        DvmsetError: something of a source that opted out is in it; the Hub can't be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # of whichever client it is built on

    if opted_out and opted_out.entries:
        _check_opt_outs(folder, opted_out)
    api = HfApi()
    try:
        with tempfile.TemporaryDirectory(prefix="dvmset-push-") as stage:
            silenced = _stage(folder, Path(stage), previews)
            api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo,
                repo_type="dataset",
                folder_path=stage,
                delete_patterns=list(STALE),
                commit_message=f"Release {folder.absolute().name}",
            )
    except (HTTPError, OSError, ValueError) as error:  # a name or a card that is refused is a ValueError
        raise DvmsetError(
            f"The Hub didn't take {folder} as {repo}: {error}.",
            hint="Log in with `hf auth login`; the name of a repository is OWNER/NAME.",
        ) from error
    return Pushed(str(done.commit_url), silenced)


def _stage(folder: Path, stage: Path, previews: bool) -> tuple[str, ...]:
    """Puts links to the files of a folder into another one, and in place of pages with sound ones without it."""
    silenced = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in name.parts):
            continue
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".html" and not previews:
            page = path.read_text(encoding="utf-8")
            silent = without_sound(page)
            (stage / name).write_text(silent, encoding="utf-8")
            silenced += [str(name)] * (silent != page)
        else:
            (stage / name).symlink_to(path.absolute())
    return tuple(silenced)


def _check_opt_outs(folder: Path, opted_out: OptOuts) -> None:
    try:
        found = sum(opted_out.name(*said) for said in _sources(folder))
        pages = [page.name for page in folder.glob("*.html") if opted_out.are_in(page.read_text(encoding="utf-8"))]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "Push a folder that is as dvmset wrote it."
        raise DvmsetError(f"{folder} can't be held against the opt-out list: {error!r}.", hint=hint) from error
    if found or pages:
        who = ", ".join(opted_out.met[:10]) or f"a source that {', '.join(pages)} shows"
        raise DvmsetError(
            f"{folder} holds what entries of the opt-out list name ({who}); nothing was uploaded.",
            hint="Push an export that was made with --opt-out, or take them down with `dvmset takedown` first.",
        )


def _sources(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Id, address and channel of whatever a release or an export has a row or a line of."""
    for path in sorted(folder.glob("*.parquet")):
        shard = Shard(path)
        for group in range(shard.row_groups):
            yield from (_said(row) for row in shard.read(group, _COLUMNS))
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json") and (file := tar.extractfile(member)):
                    yield _said(json.load(file))
    for path in sorted(folder.glob("*/labels.json")):
        for source_id, clips in json.loads(path.read_text(encoding="utf-8"))["labels"].items():
            yield from (_said({"source_id": source_id, **clip["attributes"]}) for clip in clips)
    if (folder / "sources.jsonl").is_file():
        with (folder / "sources.jsonl").open(encoding="utf-8") as lines:
            for source in map(json.loads, lines):
                media = source.get("media", {}).get("details", {})
                yield _said(
                    {"source_id": source["source_id"], "url": source.get("key", ""), "channel": media.get("channel")}
                )


def _said(row: Mapping[str, Any]) -> tuple[str, str, str]:
    source_id, address, channel = (str(row.get(name) or "") for name in _COLUMNS)
    return source_id, address, channel
