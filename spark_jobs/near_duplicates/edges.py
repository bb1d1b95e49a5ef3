"""Similar pairs of files: records in blobs, and rows where there are too many for one worker."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.near_duplicates.exchange import FLUSH_BYTES, flushed, scattered
from spark_jobs.near_duplicates.fingerprints import binary, matrix
from spark_jobs.near_duplicates.records import EDGE, KIND_EDGE, PLACE, Records, joined, row_group_bucket
from spark_jobs.near_duplicates.stored import Stored, stored

# How the similarity is known: not yet; from the sketches, as certain as their bounds say or as their estimate alone;
# or exactly, from the sets of shingles. Names of these in tables: PROOFS.
OPEN, SKETCH, ESTIMATE, SHINGLES = range(4)
PROOFS = ("open", "sketch", "estimate", "shingles")

# In place of a band or a proof where there is none.
NONE = 255

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


def blobs_of(rows: DataFrame, folder: str) -> Stored:
    """Store EDGE_ROWS as blobs."""
    return stored(rows, lambda batches: (blob for edges in _packed(batches) for blob in edge_blobs(edges)), folder)


def by_place(rows: DataFrame, folder: str) -> Stored:
    """Store EDGE_ROWS as blobs in UNITS buckets, by the row groups where the content of their worse files lies."""

    def scatter(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for edges in flushed(_packed(batches)):
            yield from edge_blobs(edges, row_group_bucket(edges["places"][:, 1], UNITS))

    return stored(rows, scatter, folder)


def edges_in(batches: Iterable[pa.RecordBatch]) -> Iterator[Records]:
    """The records of blobs of edges."""
    for batch in batches:
        for blob in batch.column("records"):
            yield np.frombuffer(blob.as_buffer(), EDGE)


def in_one_task(
    spark: SparkSession,
    edges: Mapping[int, Stored],
    walk: Callable[[Records], Iterator[pa.RecordBatch]],
    folder: str,
) -> Stored:
    """Store the blobs that `walk` makes of all edges at once, in one worker: the caller knows that they fit.

    Args:
        spark: the session.
        edges: where they are stored, by their kind.
        walk: from EDGEs to batches of blobs.
        folder: where the blobs are stored.
    """

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:  # a worker that leaves some of its input is not used again
            pass
        parts = (part for kind, blobs in edges.items() for part in blobs.records(kind))
        yield from walk(joined([np.empty(0, EDGE), *parts]))

    return stored(spark.range(1, numPartitions=1), run, folder)


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


def _packed(batches: Iterable[pa.RecordBatch]) -> Iterator[Records]:
    """EDGE_ROWS as records; of a pair that is similar by way of others only, the similarity is NaN."""
    for batch in batches:
        edges = np.empty(batch.num_rows, EDGE)
        for name in ("better", "worse"):
            edges[name] = matrix(batch.column(name), "u1")
        for name, none in (("similarity", np.nan), ("band", NONE), ("proof", NONE)):
            edges[name] = np.asarray(pc.fill_null(batch.column(name), none))
        edges["places"] = matrix(pc.fill_null(batch.column("places"), bytes(2 * PLACE.itemsize)), PLACE)
        yield edges
