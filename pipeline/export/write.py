"""A release, or a part of it, in the files of other loaders: Hugging Face, WebDataset, FiftyOne."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import DvmsetError, ShardError
from pipeline.export.choice import Choice
from pipeline.export.fiftyone import how_to_load, labels
from pipeline.shards import Row, Shard, release_folder, write_shard
from pipeline.shards.schema import BLOBS
from pipeline.shards.validator import MANIFEST, parse_manifest
from pipeline.storage import TEMPORARY, local_folder

Format = Literal["hf", "webdataset", "fiftyone"]
TAR_ROWS = 1000  # samples per tar file


def export(folder: str | Path, out: Path, form: Format, choice: Choice) -> dict[str, int]:
    """Writes the chosen clips of a release into a new folder, split by split; returns clips by split.

    Media is in none of them: the report, which may have sound embedded, stays behind. Memory is that of one row group,
    but for FiftyOne's JSON, which is one document per split. The folder appears when all of it is written.

    Args:
        folder: of the release, or its URL.
        out: must not exist, or be empty.
        form: hf writes Parquet files; webdataset tar files of JSON and .npy; fiftyone the `labels.json` of FiftyOne's
            temporal detections, for media that one has oneself. A README is in each.

    Raises:
        DvmsetError: the new folder has something in it or can't be made; no clip is chosen.
        ShardError: the release isn't one, or is damaged.
    """
    write = {"hf": _write_parquet, "webdataset": _write_tars, "fiftyone": _write_fiftyone}[form]
    with local_folder(release_folder(folder)) as place:
        manifest, shards = _read_manifest(place, folder)
        with _new_folder(out) as stage:
            counts = {split: write(stage, split, names, choice) for split, names in shards.items()}
            if not any(counts.values()):
                raise DvmsetError("No clip of this release is chosen.", hint=_licences(manifest))
            (stage / "README.md").write_text(_card(manifest, counts, choice, form), encoding="utf-8")
    return counts


def _read_manifest(place: Path, folder: str | Path) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """A manifest, and the shards of each split."""
    try:
        manifest = parse_manifest((place / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        hint = "Name the folder of a release."
        raise ShardError(f"{folder} is no release: there is no {MANIFEST} in it.", hint=hint) from None
    except (OSError, ValueError) as error:
        hint = "`dvmset validate` names all that is wrong with it."
        raise ShardError(f"The manifest of {folder} can't be read: {error}.", hint=hint) from error
    shards = {split: [e["name"] for e in manifest["shards"] if e["split"] == split] for split in manifest["splits"]}
    return manifest, {split: [place / name for name in names] for split, names in shards.items()}


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` that takes its name when the block ends well, and else is gone."""
    hint = "Name a folder that doesn't exist yet."
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DvmsetError(f"{out} {'is not empty' if out.is_dir() else 'is a file'}.", hint=hint)
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=out.parent))
    except OSError as error:
        raise DvmsetError(f"{out} can't be made: {error}.", hint="Name a place that you may write to.") from error
    try:
        yield stage
        stage.chmod(0o755)
        stage.replace(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _licences(manifest: Mapping[str, Any]) -> str:
    names = sorted({name for totals in manifest["splits"].values() for name in totals.get("licenses", {})})
    return f"Licences as stated in it: {', '.join(repr(name) for name in names) or 'none'}; --licence is a pattern."


def _rows(shards: list[Path], choice: Choice) -> Iterator[dict[str, Any]]:
    return (row for path in shards for row in Shard(path) if choice.takes(row))


def _write_parquet(out: Path, split: str, shards: list[Path], choice: Choice) -> int:
    """A file per shard that has a chosen clip, in the schema of shards."""
    filled = [path for path in shards if any(True for _ in _rows([path], choice))]
    count = 0
    for i, path in enumerate(filled):
        shard = Shard(path)
        target = out / f"{split}-{i:05d}-of-{len(filled):05d}.parquet"
        write_shard(target, (Row(**row) for row in shard if choice.takes(row)), shard.spec)
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
    """`{split}/labels.json`; see `pipeline.export.fiftyone`."""
    written = labels(_plain(row) for row in _rows(shards, choice))
    count = sum(map(len, written["labels"].values()))
    if count:
        (out / split).mkdir()
        (out / split / "labels.json").write_text(json.dumps(written, ensure_ascii=False) + "\n", encoding="utf-8")
    return count


def _card(manifest: Mapping[str, Any], counts: Mapping[str, int], choice: Choice, form: Format) -> str:
    """A short card: what was chosen of which release, how to load it, and where its own card is to be found."""
    licences = ", ".join(choice.licences) or "any"
    entries, met = len(choice.opted_out.entries), len(choice.opted_out.met)
    text = (
        f"# A part of release {manifest['id']}\n\n"
        f"{sum(counts.values()):,} clips ({', '.join(f'{split} {n:,}' for split, n in counts.items())}), "
        f"licence as stated: {licences}; {entries:,} entries of an opt-out list were honoured, {met:,} of which named "
        f"a source of this release. Manifest of the whole release: `{manifest['digest']}`.\n\n"
        "Links, measurements, features and tokens as far as the form has room for them; the media is not part of it.\n"
    )
    match form:
        case "hf":
            return _front_matter(manifest, counts) + text
        case "webdataset":
            return text + "\nA sample is a `.json` and a `.npy` per array, keyed by clip id.\n"
        case "fiftyone":
            return text + "\n" + how_to_load(next(split for split, n in counts.items() if n))


def _front_matter(manifest: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    import yaml

    from pipeline.card import size_category

    front = {
        "pretty_name": f"DVMSet rebuilt, part of {manifest['id']}",
        "license": "other",
        "license_name": "see-the-card",
        "size_categories": [size_category(sum(counts.values()))],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}-*.parquet"} for split, n in counts.items() if n],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"
