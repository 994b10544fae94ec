"""The file formats of source lists: rows with their line numbers, from whatever people keep lists in."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DvmsetError

# Columns by their usual names, best first; case, spaces and hyphens don't matter.
ADDRESS = (
    "url", "link", "video_url", "youtube_url", "webpage_url", "youtube_link", "video_link",
    "youtube_id", "ytid", "yt_id", "video_id", "videoid", "bvid", "id",
)  # fmt: skip
CATEGORY = ("category", "type", "class")
START = ("start", "start_s", "start_time", "start_sec", "start_seconds", "begin")
END = ("end", "end_s", "end_time", "end_sec", "end_seconds", "stop")
LICENSE = ("license", "licence", "rights")

Cells = Mapping[str, Any]


def rows(path: Path) -> Iterator[tuple[int, Cells | str]]:
    """Line number and cells by column name, or the reason why a row can't be read.

    Raises:
        DvmsetError: the file can't be read, or no column of it holds addresses.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    match suffix.lower():
        case ".parquet":
            return _parquet_rows(path)
        case ".csv" | ".tsv":
            return _table_rows(path, _text(path))
        case ".jsonl" | ".ndjson":
            return _json_rows(path, _text(path))
        case "" | ".txt" | ".list" | ".lst":
            return _plain_rows(_text(path))
    raise DvmsetError(
        f"{path} is no source list: {suffix} is not one of its formats.",
        hint="Give a .csv, .tsv, .jsonl, .parquet or .txt file; .gz may follow the text ones.",
    )


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DvmsetError(f"Can't read the source list {path}: {error}.", hint="Check the path and file.") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4096]:
        raise DvmsetError(f"{path} is not UTF-8 text, but UTF-16 or binary.", hint="Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DvmsetError(
            f"{path} is not UTF-8 text: line {line} holds a byte of another encoding.",
            hint="Convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8`.",
        ) from error


def _lines(text: str) -> list[str]:
    """Lines with their ends, parted where editors part them; str.splitlines would part at form feeds and more."""
    return list(io.StringIO(text, newline=""))


def _plain_rows(text: str) -> Iterator[tuple[int, Cells]]:
    for line, content in enumerate(_lines(text), 1):
        address = re.split(r"(?:^|\s)#", content, maxsplit=1)[0].strip()
        if address:
            yield line, {"url": address}


def _table_rows(path: Path, text: str) -> Iterator[tuple[int, Cells | str]]:
    lines = _lines(text)
    header = next((line for line in lines if line.strip()), "")
    # The suffix may lie, SymMV.csv is parted by tabs: the mark that the header has most of is believed.
    delimiter = max(",\t;", key=header.count)
    names: list[str] = []
    for line, cells in _tab_rows(lines) if delimiter == "\t" else _csv_rows(lines, delimiter):
        if isinstance(cells, str):
            yield line, cells
        elif not any(cell.strip() for cell in cells):
            continue
        elif not names:
            names = [_column(cell) for cell in cells]
            _check_columns(path, names)
        elif any(cell.strip() for cell in cells[len(names) :]):
            yield line, f"{len(cells)} cells under {len(names)} columns"
        else:
            yield line, dict(zip(names, cells, strict=False))
    if not names:
        _check_columns(path, names)


def _csv_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """CSV (RFC 4180): a row with the line it begins on. After one that breaks the rules, goes on with the next line."""
    begin = 0
    while begin < len(lines):
        reader = csv.reader((lines[i] for i in range(begin, len(lines))), delimiter=delimiter, strict=True)
        row_begin = begin
        try:
            for cells in reader:
                yield row_begin + 1, cells
                row_begin = begin + reader.line_num
            return
        except csv.Error:
            yield row_begin + 1, "the quotes of this row don't pair up"
            begin = row_begin + 1


def _tab_rows(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """text/tab-separated-values: a row is a line, and quotes mean nothing, but for those around a whole cell."""
    for line, content in enumerate(lines, 1):
        cells = content.rstrip("\r\n").split("\t")
        yield line, [c[1:-1].replace('""', '"') if re.fullmatch(r'".*"', c) else c for c in cells]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Cells | str]]:
    seen: set[str] = set()
    for line, content in enumerate(_lines(text), 1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except json.JSONDecodeError as error:
            yield line, f"not JSON: {error.msg} at column {error.colno}"
            continue
        except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
            yield line, f"JSON that can't be read: {error}"
            continue
        if isinstance(value, str):
            value = {"url": value}
        if isinstance(value, dict):
            row = {_column(name): cell for name, cell in value.items()}
            seen.update(row)
            yield line, row
        else:
            yield line, "neither a JSON object nor an address in quotes"
    if seen:
        _check_columns(path, sorted(seen))


def _parquet_rows(path: Path) -> Iterator[tuple[int, Cells]]:
    import pyarrow
    import pyarrow.parquet

    known = {*ADDRESS, *CATEGORY, *START, *END, *LICENSE}
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            _check_columns(path, [_column(name) for name in names])
            line = 0
            for batch in file.iter_batches(columns=[name for name in names if _column(name) in known]):
                for row in batch.to_pylist():
                    line += 1
                    yield line, {_column(name): cell for name, cell in row.items()}
    except (OSError, pyarrow.ArrowException) as error:
        raise DvmsetError(f"Can't read {path} as Parquet: {error}.", hint="Check the path and file.") from error


def _column(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _check_columns(path: Path, names: list[str]) -> None:
    if set(names).isdisjoint(ADDRESS):
        shown = f"its columns: {', '.join(names)[:200]}" if names else "the file is empty"
        raise DvmsetError(
            f"{path} has no column of addresses ({shown}).",
            hint=f"Name one of these in its first row: {', '.join(ADDRESS)}. A list without columns is a .txt file.",
        )
