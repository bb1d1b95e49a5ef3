"""The field's habit: of each connected component of similar files the best alone is kept.

A file may go although nothing kept resembles it; `leaders.py` is the default for that reason. Components come from
the alternation of large stars and small stars (Kiveris et al. 2014, "Connected components in MapReduce and beyond"),
and when the edges fit one worker from a union of sets there. Nothing is collected on the driver.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.near_duplicates.edges import OPEN, blobs_of, by_place, edge_blobs, in_one_task, rows_of
from spark_jobs.near_duplicates.leaders import WALKED_EDGES, Graph, Verify
from spark_jobs.near_duplicates.records import EDGE, KIND_EDGE, Records
from spark_jobs.near_duplicates.stored import Stored


def components_of(
    spark: SparkSession, edges: Stored, verify: Verify, stage: tables.Stage, walked: int = WALKED_EDGES
) -> Stored:
    """Blobs of EDGEs from each file to the best of its component, if that is another; the similarity is NaN and the
    rest NONE where the two are similar by way of others only.

    Args:
        spark: the session.
        edges: blobs of EDGEs, each pair once; keys sort from best to worst. Those whose proof is OPEN need one.
        verify: from blobs of open EDGEs, in UNITS buckets, to blobs of those of them that are similar, with their
            proof.
        stage: where intermediate rows and blobs go.
        walked: edges that one task may join.
    """
    proven = F.col("proof") != OPEN
    rows = rows_of(edges.blobs(spark, KIND_EDGE))
    verified = verify(by_place(rows.where(~proven), stage.scratch("open")))
    known = stage.staged(rows.where(proven).unionAll(rows_of(verified.blobs(spark, KIND_EDGE))), "known")
    if known.count() <= walked:
        blobs = blobs_of(known, stage.scratch("joining"))
        joined = in_one_task(spark, {KIND_EDGE: blobs}, _joined, stage.scratch("joined"))
        stars = rows_of(joined.blobs(spark, KIND_EDGE)).select("better", "worse")
    else:
        stars = _stars(known.select("better", "worse"), stage)
    found = stars.join(known, ["better", "worse"], "left").select(*known.columns)
    return blobs_of(found, stage.scratch("near"))


def _stars(edges: DataFrame, stage: tables.Stage) -> DataFrame:
    """Rows (better, worse) from the best of each component to each of its other files."""
    before = None
    for number in itertools.count():
        edges = stage.staged(_small_star(_large_star(edges)), f"stars-{number}")
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
    yield from edge_blobs(stars)
