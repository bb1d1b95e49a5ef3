"""The surviving rows with all their columns, written by the workers that read them: text never enters the JVM."""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
from pyspark.sql import DataFrame

from spark_jobs.content import arrow_schema_of, grouped_by_row_group, pieces
from spark_jobs.parts import write_none, write_parts
from spark_jobs.storage import Storage

# Text that a worker gathers for a row group.
_ROW_GROUP_BYTES = 64 << 20


def write_survivors(kept: DataFrame, documents: Sequence[str], output: str) -> int:
    """Write the rows that lie where `kept` says (`delivery`, part, row_group, row) as Parquet; return their number."""
    rows = 0
    for delivery, path in enumerate(documents):
        located = kept.where(kept.delivery == delivery)
        if Storage(path).exists():
            rows += _write(grouped_by_row_group(located, path), path, output, f"part-{delivery:03d}")
        elif not located.isEmpty():
            raise ValueError(f"{path} is gone, and files of it are kept again: their rows cannot be written")
    if not rows and Storage(documents[-1]).exists():
        write_none(arrow_schema_of(documents[-1]), output)
    return rows


def _write(work: DataFrame, documents: str, output: str, name: str) -> int:
    schema = arrow_schema_of(documents)

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for piece in pieces(documents, batches, schema.names):
            columns = [
                piece.batch.column(field.name).cast(field.type)
                if field.name in piece.batch.schema.names
                else pa.nulls(len(piece.rows), field.type)
                for field in schema
            ]
            yield pa.record_batch(columns, schema=schema)

    return write_parts(work, read, schema, output, name, _ROW_GROUP_BYTES, compression="zstd")
