"""Parquet files that the workers write themselves: what they hold never enters the JVM."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import DataFrame

from spark_jobs.storage import Storage
from spark_jobs.workers import begin_task

_WRITTEN = "name string, count long"

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
    one, rows = (lambda _: name), (lambda batch: batch.num_rows)
    return write_sorted_parts(work, make, schema, folder, one, rows, row_group_bytes, **options)[name]


def write_sorted_parts(
    work: DataFrame,
    make: Callable[[Iterable[pa.RecordBatch]], Batches],
    schema: pa.Schema,
    folder: str,
    name_of: Callable[[pa.RecordBatch], str],
    count_of: Callable[[pa.RecordBatch], int],
    row_group_bytes: int,
    **options: Any,
) -> "Counter[str]":
    """The same with a file a task for each of several names; return what they hold, by name.

    Args:
        name_of: how the name of the file begins that a batch goes to.
        count_of: what a batch counts for.
    """
    uri = Storage(folder).uri

    def write(batches: Iterable[pa.RecordBatch]) -> Batches:
        begin_task()
        context = TaskContext.get()
        assert context is not None
        ending, counts = f"-{context.partitionId():05d}.parquet", Counter[str]()

        def counted() -> Iterator[tuple[str, pa.RecordBatch]]:
            for batch in make(batches):
                name = name_of(batch)
                counts[name] += count_of(batch)
                yield name + ending, batch

        _write(counted(), schema, Storage(uri), row_group_bytes, options)
        columns = [pa.array(list(counts), pa.string()), pa.array(list(counts.values()), pa.int64())]
        yield pa.record_batch(columns, names=["name", "count"])

    found = Counter[str]()
    for row in work.mapInArrow(write, _WRITTEN).collect():
        found[row["name"]] += row["count"]
    storage = Storage(folder)
    for partial in storage.listed("_"):
        if partial.endswith(".partial"):
            storage.delete(partial)
    return found


def write_none(schema: pa.Schema, folder: str) -> None:
    """Write a file without rows, which says what columns there would be."""
    none = ("part-00000.parquet", pa.RecordBatch.from_pylist([], schema))
    _write(iter([none]), schema, Storage(folder), 1, {})


def _write(
    batches: Iterator[tuple[str, pa.RecordBatch]],
    schema: pa.Schema,
    storage: Storage,
    row_group_bytes: int,
    options: dict[str, Any],
) -> None:
    """Write batches to the files that are named with them."""
    files: dict[str, _File] = {}
    with ExitStack() as opened:
        for name, batch in batches:
            if name not in files:
                files[name] = opened.enter_context(_File(storage, name, schema, row_group_bytes, options))
            files[name].add(batch)


class _File:
    """A Parquet file that grows by batches, and bears a name of its own until it is whole."""

    def __init__(
        self, storage: Storage, name: str, schema: pa.Schema, row_group_bytes: int, options: dict[str, Any]
    ) -> None:
        self._storage, self._name, self._partial = storage, name, f"_{name}.{uuid.uuid4().hex}.partial"
        self._row_group_bytes = row_group_bytes
        self._sink = storage.open_output(self._partial)
        self._writer = pq.ParquetWriter(self._sink, schema, **options)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if not failure:
            self._flush()
        with self._sink, self._writer:
            pass
        if not failure:
            self._storage.move(self._partial, self._name)

    def add(self, batch: pa.RecordBatch) -> None:
        """Append a batch; what waits is written first if it makes a row group."""
        if self._waiting_bytes >= self._row_group_bytes:
            self._flush()
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._waiting)
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._waiting, self._waiting_bytes = [], 0
