"""The field's habit: of each connected component of similar files the best alone is kept.

A file may go although nothing kept resembles it; `leaders.py` is the default for that reason. Components come from
the alternation of large stars and small stars (Kiveris et al. 2014, "Connected components in MapReduce and beyond"),
and when the edges fit one worker from a union of sets there. Nothing is collected on the driver.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.near_duplicates.edges import EDGE_ROWS, OPEN, blobs_of, by_place, edge_rows, in_one_task, rows_of
from spark_jobs.near_duplicates.exchange import Records
from spark_jobs.near_duplicates.leaders import WALKED_EDGES, Graph, Staged, Verify
from spark_jobs.near_duplicates.records import EDGE


def components_of(edges: DataFrame, verify: Verify, staged: Staged, walked: int = WALKED_EDGES) -> DataFrame:
    """EDGE_ROWS from each file to the best of its component, if that is another; all but the files is null where the
    two are similar by way of others only.

    Args:
        edges: blobs of EDGEs, each pair once, staged; keys sort from best to worst. Those whose proof is OPEN need
            one.
        verify: from blobs of open edges, in UNITS buckets, to blobs of those of them that are similar, with their
            proof, staged.
        staged: writes rows under a name and reads them back.
        walked: edges that one task may join.
    """
    proven = F.col("proof") != OPEN
    rows = rows_of(edges)
    known = staged(rows.where(proven).unionAll(rows_of(verify(by_place(blobs_of(rows.where(~proven)))))), "known")
    if known.count() <= walked:
        stars = in_one_task(blobs_of(known), _joined, EDGE_ROWS).select("better", "worse")
    else:
        stars = _stars(known.select("better", "worse"), staged)
    return stars.join(known, ["better", "worse"], "left").select(*known.columns)


def _stars(edges: DataFrame, staged: Staged) -> DataFrame:
    """Rows (better, worse) from the best of each component to each of its other files."""
    before = None
    for number in itertools.count():
        edges = staged(_small_star(_large_star(edges)), f"stars-{number}")
        total = F.sum(F.xxhash64("better", "worse").cast("decimal(38,0)"))
        now = edges.agg(F.count(F.lit(1)), total).collect()[0]
        if now == before:
            return edges
        before = now
    raise AssertionError


def _large_star(edges: DataFrame) -> DataFrame:
    """Every file links its worse neighbours to the best of its neighbours and itself."""
    both = edges.unionAll(edges.select(F.col("worse").alias("better"), F.col("better").alias("worse")))
    least = both.toDF("center", "other").groupBy("center").agg(F.min("other").alias("least"))
    worse = edges.toDF("center", "worse").join(least, "center")
    return worse.select(F.least("center", "least").alias("better"), "worse").distinct()


def _small_star(edges: DataFrame) -> DataFrame:
    """Every file links its better neighbours and itself to the best of them."""
    least = edges.groupBy("worse").agg(F.min("better").alias("least"))
    linked = edges.join(least, "worse").select(F.col("least").alias("better"), F.col("better").alias("worse"))
    own = least.select(F.col("least").alias("better"), "worse")
    return linked.where("better != worse").unionAll(own).distinct()


def _joined(edges: Records) -> Iterator[pa.RecordBatch]:
    graph = Graph(edges)
    best = graph.components()
    there = np.flatnonzero(best != np.arange(graph.files))
    stars = np.zeros(len(there), EDGE)
    stars["better"], stars["worse"] = graph.keys(best[there]), graph.keys(there)
    yield edge_rows(stars)
