"""Fixed-size records through a Spark shuffle in blobs: a row is what one task has for one bucket, not a record.

Spark moves, spills and recovers the rows; numpy sees the records. A row of thirty bytes costs the JVM about a
microsecond to write, sort and hand to Python, a record in a blob what its bytes cost.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from spark_jobs.near_duplicates.records import DTYPES, Records, joined, picked
from spark_jobs.workers import begin_task

BLOBS = "bucket int, kind int, count int, records binary"
FLUSH_BYTES = 4 << 20

# What a bucket gets: its blobs in the order of their kinds.
Blobs = Iterator[tuple[int, Records]]

SCHEMA = pa.schema(
    [("bucket", pa.int32()), ("kind", pa.int32()), ("count", pa.int32()), ("records", pa.large_binary())]
)


def scattered(records: Records, kind: int, buckets: NDArray[np.integer]) -> pa.RecordBatch:
    """Records (n) as one row a bucket, by their buckets (n)."""
    few = len(buckets) == 0 or int(buckets.max()) < 1 << 16  # numpy sorts numbers of 16 bits by their digits
    order = np.argsort(buckets.astype(np.uint16) if few else buckets, kind="stable")
    sorted_buckets = buckets[order]
    starts = np.flatnonzero(np.diff(sorted_buckets, prepend=-1))
    ends = np.append(starts[1:], len(order)).astype(np.int64)
    data = picked(records, order).view(np.uint8)
    offsets = np.append(0, ends * records.itemsize) if len(order) else np.zeros(1, np.int64)
    blobs = pa.Array.from_buffers(pa.large_binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    columns = [sorted_buckets[starts], np.full(len(starts), kind), ends - starts]
    return pa.record_batch([*(pa.array(column, pa.int32()) for column in columns), blobs], schema=SCHEMA)


def flushed(parts: Iterable[Records]) -> Iterator[Records]:
    """The same records in arrays of about FLUSH_BYTES, so that blobs are few and not small."""
    waiting: list[Records] = []
    for part in parts:
        waiting.append(part)
        if sum(one.nbytes for one in waiting) >= FLUSH_BYTES:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


def of_kind(blobs: Blobs, kind: int, dtype: np.dtype, following: list[tuple[int, Records]]) -> Records:
    """All records of the first kind of a bucket; the first blob of the next kind, if any, is put into `following`."""
    parts = [np.empty(0, dtype)]
    for found, records in blobs:
        if found != kind:
            following.append((found, records))
            break
        parts.append(records)
    return joined(parts)


def exchanged(
    blobs: DataFrame,
    tasks: int,
    each: Callable[[Iterator[tuple[int, Blobs]]], Iterator[pa.RecordBatch]],
    schema: str | T.StructType = BLOBS,
) -> DataFrame:
    """Bring the blobs of each bucket together, in the order of their kinds; `each` makes rows of a task's buckets.

    Args:
        blobs: rows of BLOBS.
        tasks: Spark tasks that share the buckets; each takes its own one after the other.
        each: from buckets (number, blobs) to batches of `schema`. A bucket's blobs are to be read before the next
            bucket is asked for, as far as they are wanted.
        schema: of what it makes.
    """

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        begin_task()
        yield from each(buckets_in(batches))

    return gathered(blobs, tasks).mapInArrow(run, schema)


def gathered(blobs: DataFrame, tasks: int) -> DataFrame:
    """The same blobs, those of a bucket in the task of its number (of `tasks`), in the order of their kinds."""
    return blobs.repartitionById(tasks, "bucket").sortWithinPartitions("bucket", "kind")


def buckets_in(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, Blobs]]:
    """The buckets of gathered blobs, to be read one after the other."""
    for bucket, rows in groupby(_rows(batches), key=lambda row: row[0]):
        yield bucket, ((kind, records) for _, kind, records in rows)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, int, Records]]:
    for batch in batches:
        buckets, kinds = batch.column("bucket").to_pylist(), batch.column("kind").to_pylist()
        for bucket, kind, records in zip(buckets, kinds, batch.column("records"), strict=True):
            yield bucket, kind, np.frombuffer(records.as_buffer(), DTYPES[kind])
