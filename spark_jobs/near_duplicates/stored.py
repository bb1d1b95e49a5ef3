"""Blobs on disk: the workers that make them write them, so that they enter the JVM only to be shuffled."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.content import part_names, rows_of
from spark_jobs.near_duplicates.exchange import BLOBS, SCHEMA, Blobs, buckets_in, gathered
from spark_jobs.near_duplicates.records import DTYPES, Records
from spark_jobs.parts import Batches, write_none, write_sorted_parts

# Of blobs that a worker gathers for a row group, and that Spark reads at once.
_ROW_GROUP_BYTES = 8 << 20
# Most are made of hashes, which neither repeat nor shrink.
_OPTIONS = {"compression": "none", "use_dictionary": False, "write_statistics": False}


class Stored(NamedTuple):
    """Blobs that workers wrote.

    Attributes:
        folder: where they lie; a file has blobs of one kind.
        counts: how many records there are of each kind.
    """

    folder: str
    counts: Mapping[int, int]

    def count(self, *kinds: int) -> int:
        """How many records there are of these kinds, or of all."""
        return sum(self.counts.get(kind, 0) for kind in kinds or self.counts)

    def blobs(self, spark: SparkSession, kind: int) -> DataFrame:
        """Rows of BLOBS, those of one kind."""
        return spark.read.schema(BLOBS).option("pathGlobFilter", f"{_name(kind)}-*").parquet(self.folder)

    def records(self, kind: int) -> Iterator[Records]:
        """The records of one kind, read by the worker that asks for them."""
        for part in part_names(self.folder):
            if part.startswith(f"{_name(kind)}-"):
                for batch in rows_of(self.folder, part, None, ["records"]):
                    for blob in batch.column("records"):
                        yield np.frombuffer(blob.as_buffer(), DTYPES[kind])


def stored(work: DataFrame, make: Callable[[Iterable[pa.RecordBatch]], Batches], folder: str) -> Stored:
    """Store the blobs that `make` makes of batches of `work`; those of a batch are of one kind.

    Unlike a cache they survive the loss of a worker, and cut the plan.

    Args:
        work: rows that say what to do.
        make: from batches of `work` to batches of blobs, in a worker.
        folder: where they go; a URI.
    """

    def made(batches: Iterable[pa.RecordBatch]) -> Batches:
        return (batch for batch in make(batches) if batch.num_rows)

    counts = write_sorted_parts(work, made, SCHEMA, folder, _name_of, _count_of, _ROW_GROUP_BYTES, **_OPTIONS)
    if not counts:
        write_none(SCHEMA, folder)
    return Stored(folder, {int(name): count for name, count in counts.items()})


def stored_exchange(
    blobs: DataFrame, tasks: int, each: Callable[[Iterator[tuple[int, Blobs]]], Batches], folder: str
) -> Stored:
    """Store what `each` makes of buckets, as `exchanged` brings them together."""
    return stored(gathered(blobs, tasks), lambda batches: each(buckets_in(batches)), folder)


def _name(kind: int) -> str:
    return f"{kind:02d}"


def _name_of(batch: pa.RecordBatch) -> str:
    return _name(batch.column("kind")[0].as_py())


def _count_of(batch: pa.RecordBatch) -> int:
    return int(pc.sum(batch.column("count")).as_py())
