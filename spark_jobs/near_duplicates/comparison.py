"""Candidate pairs meet the sketches of their files.

Pairs wait in the bucket of their worse file, whose sketches are there too. What is wanted of other buckets is asked
for once a bucket, however many pairs want it, and sent there: the sketch of a file that a tenth of the corpus
resembles travels once to each bucket, and no bucket gets more work than its own files' pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.content import LOCATION
from spark_jobs.near_duplicates.candidates import distinct_pairs
from spark_jobs.near_duplicates.edges import ESTIMATE, OPEN, SKETCH, edge_blobs
from spark_jobs.near_duplicates.exchange import BLOBS, FLUSH_BYTES, Blobs, exchanged, flushed, scattered
from spark_jobs.near_duplicates.fingerprints import matrix
from spark_jobs.near_duplicates.keep_order import RANK_BYTES
from spark_jobs.near_duplicates.records import (
    DTYPES,
    EDGE,
    KIND_PAIR,
    KIND_REPLY,
    KIND_REQUEST,
    KIND_SKETCHED,
    SKETCHED,
    Hashes,
    Records,
    bucket_of,
    first_of_each,
    numbers,
    search,
)
from spark_jobs.near_duplicates.sketches import SIMILAR, UNDECIDED, judge


def edges_of(
    files: DataFrame,
    pairs: DataFrame,
    parts: Sequence[Sequence[str]],
    threshold: float,
    buckets: int,
    tasks: int,
    exact: bool,
) -> DataFrame:
    """Blobs of EDGEs: the candidate pairs that their sketches do not refute, each once.

    Args:
        files: `key`, `shingles`, `sketch`, `size`, and where the content lies.
        pairs: what `candidate_pairs` returns, staged.
        parts: the names of the files that hold the content, by delivery.
        threshold: similarity to be decided.
        buckets: number of buckets of file ids, as the pairs have it.
        tasks: Spark tasks that share the buckets.
        exact: leave open (OPEN) what the sketches cannot decide; else decide it by their estimate.
    """

    def scatter(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for found in flushed(_sketched(batch, parts) for batch in batches):
            yield scattered(found, KIND_SKETCHED, bucket_of(found["key"][:, RANK_BYTES:], buckets))

    def reply(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for bucket, blobs in groups:
            yield from _replies(bucket, blobs)

    def compare(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for edges in flushed(part for _, blobs in groups for part in _edges(blobs, threshold, exact)):
            yield edge_blobs(edges)

    columns = ("key", "shingles", "sketch", "size", "delivery", *LOCATION)
    sketched = files.select(*columns).mapInArrow(scatter, BLOBS)
    requests = pairs.where(F.col("kind") == KIND_REQUEST)
    replies = exchanged(sketched.unionAll(requests), tasks, reply, DTYPES)
    waiting = pairs.where(F.col("kind") == KIND_PAIR)
    return exchanged(waiting.unionAll(replies), tasks, compare, DTYPES)


def _sketched(batch: pa.RecordBatch, parts: Sequence[Sequence[str]]) -> Records:
    found = np.empty(batch.num_rows, SKETCHED)
    found["key"], found["sketch"] = matrix(batch.column("key"), "u1"), matrix(batch.column("sketch"), "u1")
    for name in ("shingles", "size"):
        target = found if name == "shingles" else found["place"]
        target[name] = np.minimum(np.asarray(batch.column(name)), 0xFFFFFFFF)
    place = found["place"]
    for name in ("delivery", "row_group", "row"):
        place[name] = np.asarray(batch.column(name))
    for delivery, names in enumerate(parts):
        here = np.flatnonzero(place["delivery"] == delivery)
        numbers = pc.index_in(batch.column("part").take(pa.array(here)), pa.array(names, batch.column("part").type))
        place["part"][here] = np.asarray(numbers)
    return found


def _by_kind(blobs: Blobs, kind: int, following: list[tuple[int, Records]]) -> Records:
    """All records of the first kind; the first blob of the next kind, if any, is put into `following`."""
    parts = [np.empty(0, DTYPES[kind])]
    for found, records in blobs:
        if found != kind:
            following.append((found, records))
            break
        parts.append(records)
    return np.concatenate(parts)


class _Files:
    """Sketched files by id."""

    def __init__(self, files: Records) -> None:
        ids = numbers(files["key"][:, RANK_BYTES:])
        order = np.lexsort(ids.T[::-1])
        self.files, self.ids = files[order], ids[order]

    def of(self, ids: Hashes) -> tuple[np.ndarray, np.ndarray]:
        """Which of these ids are there, and the places of the files that they name."""
        places = search(self.ids, ids)
        there = places < len(self.ids)
        there[there] = (self.ids[places[there]] == ids[there]).all(axis=1)
        return there, places[there]


def _replies(bucket: int, blobs: Blobs) -> Iterator[pa.RecordBatch]:
    """The sketches of one bucket for itself, and those that are wanted for the buckets that want them."""
    following: list[tuple[int, Records]] = []
    files = _Files(_by_kind(blobs, KIND_SKETCHED, following))
    for part in _portions(files.files):
        yield scattered(part, KIND_SKETCHED, np.full(len(part), bucket))
    parts = [records for _, records in (*following, *blobs)]
    if not parts:
        return
    requests = np.concatenate(parts)
    ids = numbers(requests["id"])
    requests = requests[first_of_each(np.column_stack([ids, requests["bucket"].astype(np.uint64)]))]
    _, places = files.of(numbers(requests["id"]))
    for part, buckets in zip(_portions(places), _portions(requests["bucket"].astype(np.int64)), strict=True):
        yield scattered(files.files[part], KIND_REPLY, buckets)


def _portions(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """An array in pieces of as many as there are sketches in a blob of FLUSH_BYTES."""
    at_once = max(1, FLUSH_BYTES // SKETCHED.itemsize)
    return (values[first : first + at_once] for first in range(0, len(values), at_once))


def _edges(blobs: Blobs, threshold: float, exact: bool) -> Iterator[Records]:
    """The edges of one bucket: its pairs, against the sketches of its own files and those that came as replies."""
    following: list[tuple[int, Records]] = []
    own = _Files(_by_kind(blobs, KIND_SKETCHED, following))
    rest = iter((*following, *blobs)) if following else blobs
    following = []
    pairs = distinct_pairs(_by_kind(rest, KIND_PAIR, following))
    better = numbers(pairs["better"])
    order = np.lexsort(better.T[::-1])
    pairs, better = pairs[order], better[order]
    _, worse_places = own.of(numbers(pairs["worse"]))
    for _, replies in (*following, *rest):
        ids = numbers(replies["key"][:, RANK_BYTES:])
        first, last = search(better, ids), search(better, ids + np.array([0, 1], np.uint64))
        counts = last - first
        file = np.repeat(np.arange(len(replies)), counts)
        pair = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        worse = worse_places[pair]
        estimates, verdicts = judge(replies, own.files, file, worse, threshold)
        open_ = (verdicts == UNDECIDED) & (exact | (estimates >= threshold))
        found = np.flatnonzero((verdicts == SIMILAR) | open_)
        edges = np.empty(len(found), EDGE)
        edges["better"], edges["worse"] = replies["key"][file[found]], own.files["key"][worse[found]]
        edges["similarity"], edges["band"] = estimates[found], pairs["band"][pair[found]]
        edges["places"][:, 0], edges["places"][:, 1] = replies["place"][file[found]], own.files["place"][worse[found]]
        edges["proof"] = np.where(open_[found], OPEN if exact else ESTIMATE, SKETCH)
        yield edges
