"""Writing a shard."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ShardError
from pipeline.shards.schema import BLOBS, COLUMNS, GROUP_ROWS, LISTS, Row, Spec, arrow_schema, row_problems

# Columns whose values repeat within a row group. A clip's id never does: a dictionary would only hold it twice.
_DICTIONARY = ["source_id", "group_id", "split", "category", "url", "title", "channel", "license", "verdict"]
_STATISTICS = [name for name in COLUMNS if name not in BLOBS + LISTS]


def write_shard(path: str | Path, rows: Iterable[Row], spec: Spec) -> None:
    """Writes rows to a Parquet file; the same rows give the same bytes under the same pyarrow.

    Memory is that of one row group, so `rows` may be a generator over any number of clips.

    Args:
        path: written to directly; who needs it whole or not at all gives a temporary name (`Store.write`).
        rows: in ascending order of `clip_id`. None at all makes a file of no rows.
        spec: what the rows have in common.

    Raises:
        ShardError: a row that isn't one of schema version 1, or ids that repeat or don't ascend.
    """
    schema = arrow_schema(spec)
    writer = pq.ParquetWriter(
        path,
        schema,
        compression="none",
        use_dictionary=_DICTIONARY,
        write_statistics=_STATISTICS,
        write_page_checksum=True,
        write_page_index=True,  # the Hub's viewer seeks by it
        data_page_size=1 << 30,  # one page per column and row group: a page is what a checksum can name
        store_schema=True,
    )
    with writer:
        remaining = iter(rows)
        last = ""
        while group := list(islice(remaining, GROUP_ROWS)):
            for row in group:
                _check(row, last, spec)
                last = row.clip_id
            writer.write_table(pa.table([_column(name, group) for name in COLUMNS], schema=schema), GROUP_ROWS)


def _check(row: Row, last: str, spec: Spec) -> None:
    for column, why in row_problems(vars(row), spec):
        raise ShardError(
            f"Clip {row.clip_id} can't go into a shard: {column} {why}.",
            hint="The stage that made this column is at fault; run it again for this source.",
        )
    if row.clip_id <= last:
        raise ShardError(
            f"Clip {row.clip_id} comes after {last}.", hint="Give each clip once, in ascending order of clip_id."
        )


def _column(name: str, rows: list[Row]) -> pa.Array:
    values = [getattr(row, name) for row in rows]
    if name in BLOBS:
        values = [value.tobytes() for value in values]
    elif name in LISTS:
        values = [np.asarray(value, np.float32) for value in values]
    return pa.array(values, COLUMNS[name])
