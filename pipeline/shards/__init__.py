"""Shards: the Parquet files in which clips pass from `pipeline/` to `model/`, and out of the house.

One row per clip. Arrays lie as raw little-endian bytes in binary columns, without dictionary, statistics or
compression; the schema's metadata says their dtypes, shapes and rates, and which models made them. Row groups of 32
rows carry page checksums, written and always verified. Why it is so was measured, and so was what it brings:
`python -m tests.benchmarks.readers`.
"""

from pipeline.shards.latest import release_folder
from pipeline.shards.reader import Shard, read_rows, shuffled_rows
from pipeline.shards.schema import COLUMNS, GROUP_ROWS, SCHEMA_VERSION, SPLITS, Blob, Model, Row, Spec, row_problems
from pipeline.shards.validator import Problem, Report, validate
from pipeline.shards.writer import write_shard

__all__ = [
    "COLUMNS",
    "GROUP_ROWS",
    "SCHEMA_VERSION",
    "SPLITS",
    "Blob",
    "Model",
    "Problem",
    "Report",
    "Row",
    "Shard",
    "Spec",
    "read_rows",
    "release_folder",
    "row_problems",
    "shuffled_rows",
    "validate",
    "write_shard",
]
