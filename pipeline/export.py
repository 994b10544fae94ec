"""A release, or a part of it, in the files of other loaders: Hugging Face, WebDataset, FiftyOne."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import DvmsetError, ShardError
from pipeline.shards import Row, Shard, write_shard
from pipeline.shards.schema import BLOBS
from pipeline.shards.validator import MANIFEST
from pipeline.storage import local_folder

Format = Literal["hf", "webdataset", "fiftyone"]
TAR_ROWS = 1000  # samples per tar file
PART_ROWS = 10_000  # rows per Parquet file


@dataclass(frozen=True)
class Choice:
    """Which clips are taken.

    Attributes:
        licences: patterns such as `CC BY*`, of which one must match the licence as stated; without any, all do.
        opted_out: source ids, links and channels none of which is taken.
    """

    licences: tuple[str, ...] = ()
    opted_out: Collection[str] = ()

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is taken."""
        if any(row[name] and row[name] in self.opted_out for name in ("source_id", "url", "channel")):
            return False
        return not self.licences or any(fnmatchcase(row["license"], pattern) for pattern in self.licences)


def read_opt_outs(path: str | Path) -> frozenset[str]:
    """Source ids, links and channels, one a line; empty lines and those that begin with # say nothing.

    Raises:
        DvmsetError: there is no such file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DvmsetError(f"The opt-out list {path} can't be read: {error}.", hint="Name a text file.") from error
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def export(folder: str | Path, out: Path, form: Format, choice: Choice) -> dict[str, int]:
    """Writes the chosen clips of a release into a new folder, split by split; returns clips by split.

    Media is in none of them, as it isn't in the release. Memory is that of one row group, but for FiftyOne's JSON,
    which is one document.

    Args:
        folder: of the release, or its URL.
        out: must not exist, or be empty.
        form: hf writes Parquet files with a card; webdataset tar files of JSON and .npy; fiftyone the JSON of
            FiftyOne's dataset format (`samples.json` with `metadata.json`), whose filepaths are the links.

    Raises:
        DvmsetError: the new folder has something in it; no clip is chosen.
        ShardError: the release isn't one, or is damaged.
    """
    if out.exists() and any(out.iterdir()):
        raise DvmsetError(f"{out} isn't empty.", hint="Name a folder that doesn't exist yet.")
    with local_folder(folder) as place:
        try:
            manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ShardError(f"{folder} is no release: {error}.", hint="Name the folder of a release.") from error
        out.mkdir(parents=True, exist_ok=True)
        write = {"hf": _write_parquet, "webdataset": _write_tars, "fiftyone": _write_fiftyone}[form]
        counts = {}
        for split in manifest["splits"]:
            shards = [place / entry["name"] for entry in manifest["shards"] if entry["split"] == split]
            counts[split] = write(out, split, shards, choice)
        if not any(counts.values()):
            raise DvmsetError(
                "No clip of this release is chosen.", hint="The card's table of licences has what --licence can match."
            )
        if form == "hf":
            (out / "README.md").write_text(_card(manifest, counts, choice), encoding="utf-8")
    return counts


def _rows(shards: list[Path], choice: Choice) -> Iterator[dict[str, Any]]:
    return (row for path in shards for row in Shard(path) if choice.takes(row))


def _write_parquet(out: Path, split: str, shards: list[Path], choice: Choice) -> int:
    """A file per shard that has a chosen clip, in the schema of shards."""
    filled = [path for path in shards if any(True for _ in _rows([path], choice))]
    count = 0
    for i, path in enumerate(filled):
        shard = Shard(path)
        rows = [Row(**row) for row in shard if choice.takes(row)] if choice.licences or choice.opted_out else None
        target = out / f"{split}-{i:05d}-of-{len(filled):05d}.parquet"
        write_shard(target, rows if rows is not None else (Row(**row) for row in shard), shard.spec)
        count += len(Shard(target))
    return count


def _write_tars(out: Path, split: str, shards: list[Path], choice: Choice) -> int:
    """Samples of `.json` and a `.npy` per array, keyed by clip id, in tar files of `TAR_ROWS`."""
    rows, count = _rows(shards, choice), 0
    number = 0
    while part := list(islice(rows, TAR_ROWS)):
        with tarfile.open(out / f"{split}-{number:06d}.tar", "w") as tar:
            for row in part:
                _add(tar, f"{row['clip_id']}.json", json.dumps(_plain(row), ensure_ascii=False).encode())
                for name in BLOBS:
                    buffer = io.BytesIO()
                    np.save(buffer, row[name], allow_pickle=False)
                    _add(tar, f"{row['clip_id']}.{name}.npy", buffer.getvalue())
        count, number = count + len(part), number + 1
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # of time 0, so that the same rows give the same bytes
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that are not arrays of samples, as JSON has them."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in row.items()
        if name not in BLOBS
    }


def _write_fiftyone(out: Path, split: str, shards: list[Path], choice: Choice) -> int:
    """`{split}/samples.json` and `metadata.json`, as `fiftyone.types.FiftyOneDataset` of FiftyOne 0.x reads them.

    Frames that a clip covers are a temporal detection, whose support is in frames of `FRAME_RATE`.
    """
    samples = [
        {
            "filepath": row["url"],
            "tags": [split],
            "metadata": None,
            "_media_type": "video",
            **{name: value for name, value in _plain(row).items() if name not in ("split", "text")},
        }
        for row in _rows(shards, choice)
    ]
    if samples:
        (out / split).mkdir()
        fields = [{"name": name, "ftype": _field_type(value)} for name, value in samples[0].items() if name[0] != "_"]
        said = {"name": f"dvmset-{split}", "media_type": "video", "sample_fields": fields}
        (out / split / "metadata.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        text = json.dumps({"samples": samples}, ensure_ascii=False)
        (out / split / "samples.json").write_text(text + "\n", encoding="utf-8")
    return len(samples)


def _field_type(value: Any) -> str:
    kinds = {bool: "BooleanField", float: "FloatField", int: "IntField", str: "StringField", list: "ListField"}
    kind = kinds.get(type(value), "EmbeddedDocumentField")
    return f"fiftyone.core.fields.{kind}"


def _card(manifest: Mapping[str, Any], counts: Mapping[str, int], choice: Choice) -> str:
    """A short card: what was chosen of which release, and where its own card is to be found."""
    import yaml

    from pipeline.card import size_category

    files = [{"split": split, "path": f"{split}-*.parquet"} for split, n in counts.items() if n]
    front = {
        "pretty_name": f"DVMSet rebuilt, part of {manifest['id']}",
        "license": "other",
        "license_name": "see-the-card",
        "size_categories": [size_category(sum(counts.values()))],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    licences = ", ".join(choice.licences) or "any"
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"
        f"# A part of release {manifest['id']}\n\n"
        f"{sum(counts.values()):,} clips ({', '.join(f'{split} {n:,}' for split, n in counts.items())}), "
        f"licence as stated: {licences}; {len(choice.opted_out):,} entries of an opt-out list were honoured. "
        f"Manifest of the whole release: `{manifest['digest']}`.\n\n"
        "Links, features and tokens; the media is not part of it.\n"
    )


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Uploads a folder to a data set repository of the Hugging Face Hub; returns the address of the commit.

    The token is the one that `hf auth login` stored, or HF_TOKEN; the Hub's address is HF_ENDPOINT, if that is set.

    Raises:
        DvmsetError: the Hub can't be reached, or refuses.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, repo_type="dataset", folder_path=folder, commit_message=f"Release {folder.name}"
        )
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise DvmsetError(
            f"The Hub didn't take {folder} as {repo}: {error}.",
            hint="Log in with `hf auth login`; the name of a repository is OWNER/NAME.",
        ) from error
    return str(done.commit_url)
