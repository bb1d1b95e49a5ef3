"""Similar pairs of files: records in blobs, and rows where there are too many for one worker."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.near_duplicates.exchange import BLOBS, Records, scattered
from spark_jobs.near_duplicates.fingerprints import binary, matrix
from spark_jobs.near_duplicates.records import DTYPES, EDGE, KIND_EDGE

# How the similarity is known: not yet; from the sketches, as certain as their bounds say or as their estimate alone;
# or exactly, from the sets of shingles. Names of these in tables: PROOFS.
OPEN, SKETCH, ESTIMATE, SHINGLES = range(4)
PROOFS = ("open", "sketch", "estimate", "shingles")

# `better` and `worse` are keys of the keep order; `band` is where the pair met first; `places` of their content.
EDGE_ROWS = "better binary, worse binary, similarity double, band int, proof int, places binary"


def edge_blobs(edges: Records) -> pa.RecordBatch:
    """Edges as one blob, for bucket 0."""
    return scattered(edges, KIND_EDGE, np.zeros(len(edges), np.int64))


def edges_in(batches: Iterable[pa.RecordBatch]) -> Iterator[Records]:
    """The records of blobs of edges."""
    for batch in batches:
        for blob in batch.column("records"):
            yield np.frombuffer(blob.as_buffer(), EDGE)


def in_one_task(edges: DataFrame, walk: Callable[[Records], Iterator[pa.RecordBatch]], schema: str) -> DataFrame:
    """What `walk` makes of all edges (blobs) at once, in one worker: the caller knows that they fit."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
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
            edges["places"] = matrix(batch.column("places"), DTYPES[KIND_EDGE]["places"].base)
            yield edge_blobs(edges)

    return rows.mapInArrow(pack, BLOBS)
