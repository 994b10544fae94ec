"""The first rows of a release for whoever only wants to look: the columns that a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards.schema import BLOBS, COLUMNS

PREVIEW_ROWS = 20
PREVIEWED = tuple(name for name in COLUMNS if name not in BLOBS)


def write_preview(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows without their arrays as Parquet; the same rows give the same bytes under the same pyarrow."""
    schema = pa.schema([pa.field(name, COLUMNS[name]) for name in PREVIEWED])
    shown = [{name: row[name] for name in PREVIEWED} for row in rows]
    pq.write_table(pa.Table.from_pylist(shown, schema), path, compression="none", use_dictionary=False)
