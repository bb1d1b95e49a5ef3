"""Reading a row group of a Parquet file: its `content`, and what other columns tell of the file."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spark_jobs.sources.columns import ALIASES
from spark_jobs.sources.records import (
    FAULTS,
    FIELDS,
    Choice,
    Known,
    displayed,
    known_of_record,
    record_row,
    unreadable_row,
)
from spark_jobs.sources.units import Unit

_ROWS_AT_ONCE = 64  # at the largest size of a file, 640 MB; usually half a megabyte


def read_row_group(unit: Unit, choice: Choice, tally: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of one row group; one more, unreadable, for the row group if it (or the whole file) is damaged."""
    position = 0
    try:
        with pq.ParquetFile(unit.location) as file:
            wanted = {"content", *(name for field in FIELDS for name in ALIASES[field])}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[unit.begin], columns=columns):
                for record in _records(batch):
                    source = f"{unit.source}:{unit.begin}:{position}"
                    position += 1
                    known = known_of_record(record, unit.repo, source)
                    if reason := choice.skip(known.language, by_name=False):
                        tally[reason] += 1
                    else:
                        yield record_row(known, record["content"], b"", choice.max_file_bytes)
    except FAULTS:
        known = Known(unit.repo, displayed(unit.prefix), unit.source)
        yield unreadable_row(known, unit.size_bytes, b"row group %d" % unit.begin)


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows as dictionaries; text as bytes, for a string column of Parquet may hold what is no Unicode."""
    columns = [_as_bytes(column) for column in batch.columns]
    for row in range(batch.num_rows):
        yield {name: column[row].as_py() for name, column in zip(batch.schema.names, columns, strict=True)}


def _as_bytes(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return column.cast(pa.list_(pa.binary()))
    return column
