"""The surviving rows with all their columns, written by the workers that read them: text never enters the JVM."""

import uuid
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from spark_jobs.content import arrow_schema_of, grouped_by_row_group, pieces
from spark_jobs.storage import Storage

# Text that a worker gathers for a row group.
_ROW_GROUP_BYTES = 64 << 20
_WRITTEN = "rows long"


def write_survivors(kept: DataFrame, documents: Sequence[str], output: str) -> int:
    """Write the rows that lie where `kept` says (`delivery`, part, row_group, row) as Parquet; return their number.

    A task writes one file, under a name of its attempt's until it is whole. Attempts at a task write the same rows.
    """
    rows = 0
    for delivery, path in enumerate(documents):
        located = kept.where(kept.delivery == delivery)
        if not Storage(path).exists():
            if not located.isEmpty():
                raise ValueError(f"{path} is gone, and files of it are kept again: their rows cannot be written")
            continue
        written = _written(grouped_by_row_group(located, path), path, Storage(output).uri, delivery)
        rows += sum(row.rows for row in written.collect())
    storage = Storage(output)
    for partial in storage.listed("_"):
        if partial.endswith(".partial"):
            storage.delete(partial)
    return rows


def _written(work: DataFrame, documents: str, output: str, delivery: int) -> DataFrame:
    schema = arrow_schema_of(documents)

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None
        name = f"part-{delivery:03d}-{context.partitionId():05d}.parquet"
        rows = _write(_batches(batches, documents, schema), schema, Storage(output), name)
        yield pa.record_batch([pa.array([rows], pa.int64())], names=["rows"])

    return work.mapInArrow(write, _WRITTEN)


def _batches(work: Iterable[pa.RecordBatch], documents: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for piece in pieces(documents, work, schema.names):
        columns = [
            piece.batch.column(field.name).cast(field.type)
            if field.name in piece.batch.schema.names
            else pa.nulls(len(piece.rows), field.type)
            for field in schema
        ]
        yield pa.record_batch(columns, schema=schema)


def _write(batches: Iterator[pa.RecordBatch], schema: pa.Schema, storage: Storage, name: str) -> int:
    """Write batches to one file; none if there are none."""
    first = next(batches, None)
    if first is None:
        return 0
    partial = f"_{name}.{uuid.uuid4().hex}.partial"
    waiting, rows = [first], 0
    with storage.open_output(partial) as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in batches:
            if sum(one.nbytes for one in waiting) >= _ROW_GROUP_BYTES:
                rows += _flush(writer, waiting)
            waiting.append(batch)
        rows += _flush(writer, waiting)
    storage.move(partial, name)
    return rows


def _flush(writer: pq.ParquetWriter, waiting: list[pa.RecordBatch]) -> int:
    table = pa.Table.from_batches(waiting)
    writer.write_table(table, row_group_size=max(table.num_rows, 1))
    waiting.clear()
    return int(table.num_rows)
