"""Similar pairs of files: records in blobs, and rows where there are too many for one worker."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.near_duplicates.exchange import BLOBS, FLUSH_BYTES, Records, flushed, scattered
from spark_jobs.near_duplicates.fingerprints import binary, matrix
from spark_jobs.near_duplicates.records import EDGE, KIND_EDGE, PLACE
from spark_jobs.workers import begin_task

# How the similarity is known: not yet; from the sketches, as certain as their bounds say or as their estimate alone;
# or exactly, from the sets of shingles. Names of these in tables: PROOFS.
OPEN, SKETCH, ESTIMATE, SHINGLES = range(4)
PROOFS = ("open", "sketch", "estimate", "shingles")

# `better` and `worse` are keys of the keep order; `band` is where the pair met first; `places` of their content.
EDGE_ROWS = "better binary, worse binary, similarity double, band int, proof int, places binary"

# Buckets of edges that are to be verified, whatever the number of tasks: each takes some that lie side by side.
UNITS = 1 << 10


def edge_blobs(
    edges: Records, units: NDArray[np.integer] | None = None, kind: int = KIND_EDGE
) -> Iterator[pa.RecordBatch]:
    """Edges (n) as blobs, in the buckets `units` (n) or in bucket 0."""
    buckets = np.zeros(len(edges), np.int64) if units is None else units
    most = max(1, FLUSH_BYTES // EDGE.itemsize)
    for first in range(0, len(edges), most):
        yield scattered(edges[first : first + most], kind, buckets[first : first + most])


def by_place(edges: DataFrame) -> DataFrame:
    """Blobs of edges in UNITS buckets, by the row groups where the content of their worse files lies."""

    def scatter(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for records in flushed(edges_in(batches)):
            place = records["places"][:, 1]
            yield from edge_blobs(records, (place["part"].astype(np.int64) * 31 + place["row_group"]) % UNITS)

    return edges.mapInArrow(scatter, BLOBS)


def edges_in(batches: Iterable[pa.RecordBatch]) -> Iterator[Records]:
    """The records of blobs of edges."""
    for batch in batches:
        for blob in batch.column("records"):
            yield np.frombuffer(blob.as_buffer(), EDGE)


def in_one_task(edges: DataFrame, walk: Callable[[Records], Iterator[pa.RecordBatch]], schema: str) -> DataFrame:
    """What `walk` makes of all edges (blobs) at once, in one worker: the caller knows that they fit."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        begin_task()
        yield from walk(np.concatenate([np.empty(0, EDGE), *edges_in(batches)]))

    return edges.coalesce(1).mapInArrow(run, schema)


def count_of(edges: DataFrame) -> int:
    """How many edges there are in blobs."""
    return int(edges.agg(F.sum(F.col("count").cast("long"))).collect()[0][0] or 0)


def rows_of(edges: DataFrame) -> DataFrame:
    """Blobs of edges as EDGE_ROWS."""

    def unpack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (edge_rows(records) for records in edges_in(batches))

    return edges.mapInArrow(unpack, EDGE_ROWS)


def edge_rows(edges: Records) -> pa.RecordBatch:
    """Records as a batch of EDGE_ROWS."""
    columns = [binary(edges["better"]), binary(edges["worse"]), pa.array(np.ascontiguousarray(edges["similarity"]))]
    columns += [pa.array(edges[name].astype(np.int32)) for name in ("band", "proof")]
    return pa.record_batch([*columns, binary(edges["places"])], names=list(EDGE.names or ()))


def blobs_of(rows: DataFrame) -> DataFrame:
    """EDGE_ROWS as blobs."""

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            edges = np.empty(batch.num_rows, EDGE)
            for name in ("better", "worse"):
                edges[name] = matrix(batch.column(name), "u1")
            for name in ("similarity", "band", "proof"):
                edges[name] = np.asarray(batch.column(name))
            edges["places"] = matrix(batch.column("places"), PLACE)
            yield from edge_blobs(edges)

    return rows.mapInArrow(pack, BLOBS)
