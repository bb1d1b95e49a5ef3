"""Who encodes what: the kept rows of a ledger as row groups of the documents, each in one task.

A ledger of few rows is read where the job is started, in some tenths of a second; a Spark job over it would take
seconds. What depends on it is the same either way.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.content import TASK_BYTES
from spark_jobs.session import shuffle_tasks
from spark_jobs.sharding.layout import SUMMED, Layout, Splits, first_and_sums
from spark_jobs.storage import Storage, parquet_rows

# Rows of a ledger that is read here, and rows that a worker gathers before it tells where they lie.
FEW_ROWS, GATHERED_ROWS = 1 << 20, 1 << 20

_WORK = "bucket int, part string, row_group int, rows binary"
_WORK_SCHEMA = pa.schema(
    [("bucket", pa.int32()), ("part", pa.string()), ("row_group", pa.int32()), ("rows", pa.binary())]
)


@dataclass(frozen=True)
class Kept:
    """The kept rows of a ledger."""

    spark: SparkSession
    ledger: str

    @property
    def is_small(self) -> bool:
        """Whether the ledger may be read where the job is started."""
        return parquet_rows(self.ledger) <= FEW_ROWS

    def rows(self) -> DataFrame:
        """The rows as the workers read them."""
        return tables.read(self.spark, self.ledger, "ledger").where("state = 'kept'")

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the rows, file by file, read here."""
        tables.require(self.ledger, "ledger")
        storage = Storage(self.ledger)
        for info in storage.files():
            with storage.filesystem.open_input_file(info.path) as file:
                found = pq.read_table(file, columns=[*columns, "state"])
            yield found.filter(pc.equal(found["state"], "kept")).select(list(columns))


@dataclass(frozen=True)
class Selection:
    """The documents of some shards."""

    layout: Layout
    splits: Splits
    numbers: frozenset[int]

    def of(self, rows: pa.Table) -> pa.Table:
        """Those of some rows that have file ids and repositories."""
        ids, repos = rows["file_id"].to_pylist(), rows["repo"].to_pylist()
        shards = self.layout.shard_of(self.splits.of(repos), self.splits.places(ids, repos))
        return rows.filter(pa.array(np.isin(shards, list(self.numbers))))


def repository_sums(kept: Kept, seed: int) -> list[dict[str, Any]]:
    """What layout.splits_of needs to know of the repositories; a hash keyed by the seed orders them."""
    if not kept.is_small:
        sums = kept.rows().groupBy("repo").agg(F.sum("size").alias("size"), F.count("*").alias("files"))
        rows = sums.mapInArrow(lambda batches: first_and_sums(batches, seed), SUMMED).collect()
        return [row.asDict() for row in rows]
    parts = [
        rows.group_by("repo").aggregate([("size", "sum"), ("size", "count")]) for rows in kept.read(["repo", "size"])
    ]
    together = pa.concat_tables(parts, promote_options="permissive").group_by("repo")
    whole = together.aggregate([("size_sum", "sum"), ("size_count", "sum")]).combine_chunks()
    found: list[dict[str, Any]] = pa.Table.from_batches(first_and_sums(whole.to_batches(), seed)).to_pylist()
    return found


def task_count(spark: SparkSession, documents: str) -> int:
    """As many tasks as the settings say, or fewer where there is less to read than that."""
    size = sum(file.size for file in Storage(documents).files())
    return min(shuffle_tasks(spark), 1 + size // TASK_BYTES)


def work_of(kept: Kept, tasks: int, selection: Selection | None = None) -> DataFrame:
    """Where the kept rows lie: some rows of a row group in a row, all that is said of it in one task.

    Args:
        kept: the rows.
        tasks: that share them, in as many partitions.
        selection: of them, if not all.
    """
    names = ["part", "row_group", "row", *(["file_id", "repo"] if selection else [])]
    if kept.is_small:
        found = [selection.of(rows) if selection else rows for rows in kept.read(names)]
        located = _balanced(_located(pa.concat_tables(found), tasks), tasks)

        def take(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for number in batch.column(0).to_pylist():
                    yield located.filter(pc.equal(located.column("bucket"), number))

        return kept.spark.range(0, tasks, 1, tasks).mapInArrow(take, _WORK)

    def gather(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        waiting, count = [], 0
        for batch in batches:
            rows = pa.Table.from_batches([batch])
            waiting.append((selection.of(rows) if selection else rows).select(["part", "row_group", "row"]))
            count += len(waiting[-1])
            if count >= GATHERED_ROWS:
                yield _located(pa.concat_tables(waiting), tasks)
                waiting, count = [], 0
        if waiting:
            yield _located(pa.concat_tables(waiting), tasks)

    return kept.rows().select(names).mapInArrow(gather, _WORK).repartitionById(tasks, "bucket")


def _located(rows: pa.Table, tasks: int) -> pa.RecordBatch:
    """Rows of the ledger as one row a row group, by the task that reads it."""
    parts = rows["part"].combine_chunks().dictionary_encode()
    names, codes = parts.dictionary.to_pylist(), parts.indices.to_numpy()
    groups, numbers = rows["row_group"].to_numpy(), rows["row"].to_numpy().astype(np.int32)
    order = np.lexsort((numbers, groups, codes))
    codes, groups, numbers = codes[order], groups[order], numbers[order]
    changes = (np.diff(codes, prepend=-1) != 0) | (np.diff(groups, prepend=-1) != 0)
    starts = np.flatnonzero(changes)
    found = [(names[codes[at]], int(groups[at])) for at in starts]
    buckets = [xxhash.xxh3_64_intdigest(f"{part}:{group}".encode()) % tasks for part, group in found]
    lists = [part.tobytes() for part in np.split(numbers, starts[1:])] if len(starts) else []
    columns = [buckets, [part for part, _ in found], [group for _, group in found], lists]
    return pa.record_batch(columns, schema=_WORK_SCHEMA)


def _balanced(work: pa.RecordBatch, tasks: int) -> pa.RecordBatch:
    """All work, shared so that every task has about as many rows."""
    sizes = pc.binary_length(work.column("rows")).to_numpy()
    loads, buckets = np.zeros(tasks, np.int64), np.zeros(len(sizes), np.int32)
    for at in np.argsort(-sizes, kind="stable").tolist():
        buckets[at] = int(np.argmin(loads))
        loads[buckets[at]] += sizes[at]
    return work.set_column(0, "bucket", pa.array(buckets))
