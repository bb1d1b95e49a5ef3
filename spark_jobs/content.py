"""Reading content where it lies: the workers open row groups themselves, so that content never enters the JVM.

What Spark moves are small rows that say what to read: a file of the table (`part`, relative to its folder), a row
group and, where only some are wanted, the rows in it. Memory is one batch of about BATCH_BYTES.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow.fs import FileInfo
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_jobs.session import shuffle_tasks
from spark_jobs.storage import Storage
from spark_jobs.workers import begin_task

BATCH_BYTES = 2 << 20

# Packed bytes that are worth a task of their own.
TASK_BYTES = 2 << 20

# Where a row of a table lies.
LOCATION = ("part", "row_group", "row")
_ROW_GROUPS = "part string, row_group int, rows array<int>"


class Piece(NamedTuple):
    """Rows of one row group: where they come from, their numbers in it (n), and their columns."""

    part: str
    row_group: int
    rows: NDArray[np.int64]
    batch: pa.RecordBatch


def row_groups(spark: SparkSession, path: str) -> DataFrame:
    """One row a row group of the Parquet data at `path`, spread over the workers. The footers are read there too."""
    storage = Storage(path)
    files = storage.files()
    if not files:
        raise ValueError(f"{path} holds no Parquet files")
    parts = pa.table({"part": _names(storage, files)})
    tasks = reading_tasks(spark, files)
    uri = storage.uri

    def expand(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        begin_task()
        for batch in batches:
            for part in batch.column("part").to_pylist():
                groups = _open(uri, part).num_row_groups
                columns = [[part] * groups, list(range(groups)), [None] * groups]
                yield pa.record_batch(
                    [pa.array(column, kind) for column, kind in zip(columns, _ROW_GROUP_TYPES, strict=True)],
                    names=["part", "row_group", "rows"],
                )

    listed = spark.createDataFrame(parts).repartition(min(len(parts), tasks))
    return listed.mapInArrow(expand, _ROW_GROUPS).repartition(tasks)


_ROW_GROUP_TYPES = (pa.string(), pa.int32(), pa.list_(pa.int32()))


def part_names(path: str) -> list[str]:
    """The Parquet files of the data at `path`, relative to it, sorted: the values of `part`."""
    storage = Storage(path)
    return _names(storage, storage.files())


def _names(storage: Storage, files: Sequence[FileInfo]) -> list[str]:
    return [file.path[len(storage.root) :].lstrip("/") for file in files]


def grouped_by_row_group(located: DataFrame, path: str, beside: Sequence[str] = ()) -> DataFrame:
    """Gather rows with LOCATION columns into one row a row group of the data at `path`, spread over the workers.

    The columns `beside` become lists of as many values as `rows`, in its order.
    """
    found = F.sort_array(F.collect_list(F.struct("row", *beside))).alias("found")
    rows = F.col("found.row").cast("array<int>").alias("rows")
    lists = [F.col(f"found.{name}").alias(name) for name in beside]
    gathered = located.groupBy("part", "row_group").agg(found).select("part", "row_group", rows, *lists)
    # By hash, so that a task that is run again gets the same.
    tasks = reading_tasks(located.sparkSession, Storage(path).files())
    return gathered.repartitionById(tasks, F.hash("part", "row_group"))


def reading_tasks(spark: SparkSession, files: Sequence[FileInfo]) -> int:
    """As many tasks as the settings say, or fewer where there is less to read than that."""
    return min(shuffle_tasks(spark), 1 + sum(file.size for file in files) // TASK_BYTES)


def pieces(path: str, work: Iterable[pa.RecordBatch], columns: Sequence[str] | None = None) -> Iterator[Piece]:
    """Read what `work` (rows of `row_groups` or `grouped_by_row_group`) names, in batches bounded by bytes.

    Args:
        path: the table's folder or file.
        columns: the columns to read, as far as the files have them; all of them when None.
    """
    uri = Storage(path).uri
    opened, file = None, None
    for batch in work:
        for part, row_group, rows in zip(
            *(batch.column(name).to_pylist() for name in ("part", "row_group", "rows")), strict=True
        ):
            if file is None or part != opened:
                opened, file = part, _open(uri, part)
            wanted = None if rows is None else np.asarray(rows, np.int64)
            for here, found in _read(file, f"{uri}/{part}", row_group, wanted, columns):
                yield Piece(part, row_group, here, found)


def rows_of(path: str, part: str, rows: NDArray[np.int64] | None, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Rows of one file of the table at `path`, by their sorted numbers in it or all, in batches bounded by bytes."""
    uri = Storage(path).uri
    file, first = _open(uri, part), 0
    for row_group in range(file.num_row_groups):
        last = first + file.metadata.row_group(row_group).num_rows
        wanted = None if rows is None else rows[slice(*np.searchsorted(rows, [first, last]))] - first
        if wanted is None or len(wanted):
            for _, batch in _read(file, f"{uri}/{part}", row_group, wanted, columns):
                yield batch
        first = last


def _read(
    file: pq.ParquetFile, name: str, row_group: int, wanted: NDArray[np.int64] | None, columns: Sequence[str] | None
) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]:
    """Rows of a row group and their numbers in it; of those with columns that the file has."""
    group = file.metadata.row_group(row_group)
    names = None if columns is None else [column for column in columns if column in file.schema_arrow.names]
    rows_at_once = max(1, int(BATCH_BYTES * group.num_rows / max(_bytes(group, names), 1)))
    first = 0
    for batch in _batches(file, name, rows_at_once, row_group, names):
        last = first + batch.num_rows
        if wanted is None:
            yield np.arange(first, last), batch
        else:
            here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last)]
            if len(here):
                yield here, batch if len(here) == batch.num_rows else batch.take(pa.array(here - first))
        first = last


def _bytes(group: pq.RowGroupMetaData, columns: Sequence[str] | None) -> int:
    """What these columns of a row group take, not compressed."""
    if columns is None:
        return group.total_byte_size
    chunks = map(group.column, range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def _batches(
    file: pq.ParquetFile, name: str, rows_at_once: int, row_group: int, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    try:
        # Without threads: the other cores have tasks of their own.
        yield from file.iter_batches(rows_at_once, row_groups=[row_group], columns=columns, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{name} is damaged in row group {row_group}: {error}") from error


def _open(uri: str, part: str) -> pq.ParquetFile:
    storage = Storage(uri)
    name = f"{storage.root}/{part}" if part else storage.root
    return pq.ParquetFile(storage.filesystem.open_input_file(name))


def arrow_schema_of(path: str) -> pa.Schema:
    """The schema of the first of the Parquet files at `path`."""
    storage = Storage(path)
    with storage.filesystem.open_input_file(storage.files()[0].path) as file:
        return pq.read_schema(file)


def text_buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 of a string column end to end, and the n + 1 bounds of its rows, without a copy; null is empty."""
    large = pc.fill_null(texts, "").cast(pa.large_string())
    _, offsets, data = large.buffers()
    bounds = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8), bounds


def arrow_schema(schema: T.StructType) -> pa.Schema:
    """The Arrow schema of batches for `mapInArrow`, which matches columns by position and not by name."""
    from pyspark.sql.pandas.types import to_arrow_schema

    return to_arrow_schema(schema, prefers_large_types=True)
