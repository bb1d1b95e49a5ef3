"""Which files are kept: from best to worst, each that is not similar to one already kept.

That is the lexicographically first maximal independent set of the similarity graph. While the edges are too many for
one worker it is computed in rounds (Blelloch, Fineman and Shun 2012: logarithmically many for random orders): files
without a better neighbour are kept, their neighbours are removed, and the rest goes into the next round. What is left
is walked in one task. Nothing is collected on the driver.

An edge that the sketches leave open blocks: the worse file cannot be kept for certain while the better one may be.
Only the open edges that still block when all else is settled are verified, in one pass over their content.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.near_duplicates.edges import OPEN, UNITS, blobs_of, by_place, edge_blobs, in_one_task, rows_of
from spark_jobs.near_duplicates.records import KIND_EDGE, KIND_KNOWN, Records, numbered, numbers, picked, spots_of
from spark_jobs.near_duplicates.stored import Stored

# Edges that one worker walks, with some 300 bytes for each.
WALKED_EDGES = 2_000_000

_UNDECIDED, _KEPT, _REMOVED = 0, 1, 2

Verify = Callable[[Stored], Stored]


def removals_of(
    spark: SparkSession, edges: Stored, verify: Verify, stage: tables.Stage, walked: int = WALKED_EDGES
) -> Stored:
    """The removed files and why: blobs of EDGEs whose better file is kept, one a removed (worse) file.

    Args:
        spark: the session.
        edges: blobs of EDGEs, each pair once; keys sort from best to worst. Those whose proof is OPEN need one.
        verify: from blobs of open EDGEs, in UNITS buckets, to blobs of those of them that are similar, with their
            proof.
        stage: where intermediate rows and blobs go.
        walked: edges that one task may walk.

    Of several kept neighbours the most similar is named, then the best.
    """
    near = stage.scratch("near")
    if edges.count() <= walked:
        walk = in_one_task(spark, {KIND_EDGE: edges}, _first_walk, stage.scratch("walked"))
        return in_one_task(spark, {KIND_KNOWN: walk, KIND_EDGE: verify(walk)}, _last_walk, near)
    every = rows_of(edges.blobs(spark, KIND_EDGE))
    rest, _ = _in_rounds(every, stage, "round", walked)
    if rest.count() <= walked:
        left = blobs_of(rest, stage.scratch("left"))
        blocking = in_one_task(spark, {KIND_EDGE: left}, _first_walk, stage.scratch("blocking"))
    else:
        blocking = by_place(rest.where(F.col("proof") == OPEN), stage.scratch("blocking"))
    proven = rows_of(verify(blocking).blobs(spark, KIND_EDGE))
    known = every.where(F.col("proof") != OPEN).unionAll(proven)
    rest, removed = _in_rounds(known, stage, "last", walked)
    left = blobs_of(rest, stage.scratch("left-last"))
    last = in_one_task(spark, {KIND_EDGE: left}, _last_walk, stage.scratch("walked"))
    removed.append(rows_of(last.blobs(spark, KIND_EDGE)).select("worse"))
    return blobs_of(_named(known, stage.staged(reduce(DataFrame.unionAll, removed), "removed")), near)


def _in_rounds(edges: DataFrame, stage: tables.Stage, name: str, walked: int) -> tuple[DataFrame, list[DataFrame]]:
    """Rounds until the undecided edges are few enough for one task, or wait for proof; and the removed (worse)."""
    removed: list[DataFrame] = []
    rest = edges
    while (count := rest.count()) > walked:
        number = len(removed)
        blocked = rest.select(F.col("worse").alias("better")).distinct()
        best = rest.where(F.col("proof") != OPEN).join(blocked, "better", "left_anti")
        losers = stage.staged(best.select("worse").distinct(), f"{name}-removed-{number}")
        removed.append(losers)
        for side in ("worse", "better"):
            rest = rest.join(losers.select(F.col("worse").alias(side)), side, "left_anti")
        rest = stage.staged(rest.select(*edges.columns), f"{name}-rest-{number}")
        if rest.count() == count:
            break
    return rest, removed


def _named(edges: DataFrame, removed: DataFrame) -> DataFrame:
    """For each removed file the edge to its most similar kept neighbour, then the best."""
    losers = removed.select(F.col("worse").alias("better"))
    proofs = edges.join(removed, "worse", "left_semi").join(losers, "better", "left_anti")
    rest = [name for name in edges.columns if name not in ("better", "worse", "similarity")]
    order = F.struct((-F.col("similarity")).alias("distance"), "better", *rest)
    chosen = proofs.groupBy("worse").agg(F.min(order).alias("chosen"))
    columns = {name: F.col(f"chosen.{name}") for name in ("better", *rest)}
    columns |= {"worse": F.col("worse"), "similarity": -F.col("chosen.distance")}
    return chosen.select(*(columns[name].alias(name) for name in edges.columns))


class Graph:
    """Edges by worse file and then by better, between files that are numbered from best to worst.

    Attributes:
        better, worse: the numbers of their files.
        proof, similarity: of the edges.
        files: how many files have an edge.
    """

    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    proof: NDArray[np.uint8]
    similarity: NDArray[np.float64]
    files: int

    def __init__(self, edges: Records) -> None:
        sides = edges["better"], edges["worse"]
        distinct, of = numbered(np.concatenate([spots_of(side) for side in sides])[:, None])
        better_sides = np.searchsorted(distinct, len(edges))
        keys = np.concatenate([sides[0][distinct[:better_sides]], sides[1][distinct[better_sides:] - len(edges)]])
        best_first = np.lexsort(numbers(keys).T[::-1])
        better, worse = np.split(np.argsort(best_first)[of], 2)
        self.files = len(distinct)
        order = np.argsort(worse * max(self.files, 1) + better)
        self.better, self.worse = better[order], worse[order]
        self.proof, self.similarity = edges["proof"][order], edges["similarity"][order]
        # To sort whole records would take longer than all else: most of them are never asked for.
        self._edges, self._order = edges, order
        self._keys = keys[best_first]

    def edges(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> Records:
        """The EDGEs at these places, or for which a mask is true."""
        return picked(self._edges, self._order[places])

    def keys(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The keys (n, KEY_BYTES) of files by their numbers."""
        return self._keys[numbers]

    def walk(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The state of each file, and for each the edge that removes it, or -1."""
        states, proofs = np.zeros(self.files, np.uint8), np.full(self.files, -1, np.int64)
        bounds = np.searchsorted(self.worse, np.arange(self.files + 1))
        _walk(bounds, self.better, self.similarity, self.proof != OPEN, states, proofs)
        return states, proofs

    def components(self) -> NDArray[np.int64]:
        """The best file of each file's connected component, which may be itself."""
        return _best(self.better, self.worse, self.files)


@njit(nogil=True, cache=True)
def _best(better: NDArray[np.int64], worse: NDArray[np.int64], files: int) -> NDArray[np.int64]:
    """The best file of each file's component: union by rank of the keep order, paths halved."""
    parents = np.arange(files)
    for edge in range(len(better)):
        one, other = better[edge], worse[edge]
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        while parents[other] != other:
            parents[other] = parents[parents[other]]
            other = parents[other]
        parents[max(one, other)] = min(one, other)
    for file in range(files):  # a parent is better, and has its root by now
        parents[file] = parents[parents[file]]
    return parents


@njit(nogil=True, cache=True)
def _walk(
    bounds: NDArray[np.int64],
    better: NDArray[np.int64],
    similarity: NDArray[np.float64],
    proven: NDArray[np.bool_],
    states: NDArray[np.uint8],
    proofs: NDArray[np.int64],
) -> None:
    for file in range(len(states)):
        blocked, closest = False, -1
        for edge in range(bounds[file], bounds[file + 1]):
            state = states[better[edge]]
            if state == _KEPT and proven[edge]:
                if closest < 0 or similarity[edge] > similarity[closest]:
                    closest = edge
            elif state != _REMOVED:
                blocked = True
        proofs[file] = closest
        states[file] = _REMOVED if closest >= 0 else _UNDECIDED if blocked else _KEPT


def _first_walk(edges: Records) -> Iterator[pa.RecordBatch]:
    """Blobs of the open edges that decide something, since neither of their files is removed without them
    (KIND_EDGE), and of the known ones that may still remove a file, or more closely (KIND_KNOWN)."""
    graph = Graph(edges)
    states, proofs = graph.walk()
    better, worse, is_open = states[graph.better], states[graph.worse], graph.proof == OPEN
    waiting = (better != _REMOVED) & ((better == _UNDECIDED) | (worse == _UNDECIDED))
    blocking = Graph(graph.edges(waiting & (worse == _UNDECIDED) & is_open))
    # Side by side what shares files, so that these are read by one task.
    found = blocking.edges(np.argsort(blocking.components()[blocking.worse], kind="stable"))
    yield from edge_blobs(found, np.arange(len(found)) * UNITS // max(len(found), 1))
    known = waiting & ~is_open
    known[proofs[proofs >= 0]] = True
    yield from edge_blobs(graph.edges(known), kind=KIND_KNOWN)


def _last_walk(edges: Records) -> Iterator[pa.RecordBatch]:
    """The edge that removes it, for each file that is removed; what is still open was refuted."""
    graph = Graph(edges[edges["proof"] != OPEN])
    _, proofs = graph.walk()
    yield from edge_blobs(graph.edges(proofs[proofs >= 0]))
