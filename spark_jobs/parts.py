"""Parquet files that the workers write themselves, one a task: what they hold never enters the JVM."""

import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from spark_jobs.storage import Storage
from spark_jobs.workers import begin_task

_WRITTEN = "rows long"

Batches = Iterator[pa.RecordBatch]


def write_parts(
    work: DataFrame,
    make: Callable[[Iterable[pa.RecordBatch]], Batches],
    schema: pa.Schema,
    folder: str,
    name: str,
    row_group_bytes: int,
    **options: Any,
) -> int:
    """Write what `make` makes of the batches of `work` to a folder, as NAME-00000.parquet and so on; return its rows.

    A file bears a name of its attempt's until it is whole. Attempts at a task must make the same rows. A task without
    rows writes no file.

    Args:
        work: rows that say what to do.
        make: from batches of `work` to batches of `schema`, in a worker.
        schema: of the files.
        folder: where they go.
        name: how their names begin.
        row_group_bytes: text that a worker gathers for a row group.
        options: of pyarrow's Parquet writer.
    """
    uri = Storage(folder).uri

    def write(batches: Iterable[pa.RecordBatch]) -> Batches:
        begin_task()
        context = TaskContext.get()
        assert context is not None
        file = f"{name}-{context.partitionId():05d}.parquet"
        rows = _write(make(batches), schema, Storage(uri), file, row_group_bytes, options)
        yield pa.record_batch([pa.array([rows], pa.int64())], names=["rows"])

    rows = sum(row.rows for row in work.mapInArrow(write, _WRITTEN).collect())
    storage = Storage(folder)
    for partial in storage.listed("_"):
        if partial.endswith(".partial"):
            storage.delete(partial)
    return rows


def write_none(schema: pa.Schema, folder: str) -> None:
    """Write a file without rows, which says what columns there would be."""
    none = iter([pa.RecordBatch.from_pylist([], schema)])
    _write(none, schema, Storage(folder), "part-00000.parquet", 1, {})


def _write(
    batches: Batches, schema: pa.Schema, storage: Storage, name: str, row_group_bytes: int, options: dict[str, Any]
) -> int:
    """Write batches to one file; none if there are none."""
    first = next(batches, None)
    if first is None:
        return 0
    partial = f"_{name}.{uuid.uuid4().hex}.partial"
    waiting, waiting_bytes, rows = [first], first.nbytes, 0
    with storage.open_output(partial) as sink, pq.ParquetWriter(sink, schema, **options) as writer:
        for batch in batches:
            if waiting_bytes >= row_group_bytes:
                rows, waiting_bytes = rows + _flush(writer, waiting), 0
            waiting.append(batch)
            waiting_bytes += batch.nbytes
        rows += _flush(writer, waiting)
    storage.move(partial, name)
    return rows


def _flush(writer: pq.ParquetWriter, waiting: list[pa.RecordBatch]) -> int:
    table = pa.Table.from_batches(waiting)
    writer.write_table(table, row_group_size=max(table.num_rows, 1))
    waiting.clear()
    return int(table.num_rows)
