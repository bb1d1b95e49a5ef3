"""Candidate pairs meet the sketches of their files.

Pairs wait in the bucket of their worse file. The sketches that they want are asked for once a bucket, however many
pairs want them, read where they lie, and sent there: the sketch of a file that a tenth of the corpus resembles travels
once to each bucket, and no bucket gets more work than its own files' pairs.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_jobs.near_duplicates.candidates import distinct_pairs
from spark_jobs.near_duplicates.edges import ESTIMATE, OPEN, SKETCH, edge_blobs
from spark_jobs.near_duplicates.exchange import FLUSH_BYTES, Blobs, exchanged, flushed, of_kind, scattered
from spark_jobs.near_duplicates.fingerprints import matrix
from spark_jobs.near_duplicates.lookup import Source, by_spot, looked_up
from spark_jobs.near_duplicates.records import (
    EDGE,
    KIND_PAIR,
    KIND_REPLY,
    KIND_REQUEST,
    KIND_SLIM,
    PAIR,
    REQUEST,
    SKETCHED,
    SLIM,
    Places,
    Records,
    first_of_each,
    grouped,
    joined,
    numbered,
    picked,
    spots_of,
)
from spark_jobs.near_duplicates.sketches import SIMILAR, UNDECIDED, judge
from spark_jobs.near_duplicates.stored import Stored, stored_exchange

# Sketches in one blob.
_BLOB_SKETCHES = FLUSH_BYTES // SKETCHED.itemsize


def edges_of(
    files: DataFrame, pairs: Stored, sources: Sequence[Source], threshold: float, tasks: int, exact: bool, folder: str
) -> Stored:
    """Blobs of EDGEs: the candidate pairs that their sketches do not refute, each once.

    Args:
        files: blobs of SLIM records.
        pairs: what `candidate_pairs` returns.
        sources: where the sketches lie.
        threshold: similarity to be decided.
        tasks: Spark tasks that share the buckets.
        exact: leave open (OPEN) what the sketches cannot decide; else decide it by their estimate.
        folder: where the blobs are stored.
    """

    def reply(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in groups:
            yield from _replies(blobs, sources)

    def compare(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for edges in flushed(part for _, blobs in groups for part in _edges(blobs, sources, threshold, exact)):
            yield from edge_blobs(edges)

    requests, paired = (pairs.blobs(files.sparkSession, kind) for kind in (KIND_REQUEST, KIND_PAIR))
    replies = exchanged(files.unionAll(requests), tasks, reply)
    return stored_exchange(files.unionAll(paired).unionAll(replies), tasks, compare, folder)


def _replies(blobs: Blobs, sources: Sequence[Source]) -> Iterator[pa.RecordBatch]:
    """The sketches of a bucket's files, for the buckets that want them."""
    following: list[tuple[int, Records]] = []
    files = by_spot([of_kind(blobs, KIND_SLIM, SLIM, following)])
    requests = joined([np.empty(0, REQUEST), *(records for _, records in chain(following, blobs))])
    requests = requests[first_of_each(np.column_stack([requests["spot"], requests["bucket"].astype(np.uint64)]))]
    requests = picked(requests, np.argsort(requests["spot"]))
    spots = requests["spot"].copy()
    for found in _sketched(picked(files, np.isin(spots_of(files["key"]), spots)), sources):
        here = spots_of(found["key"])
        file, request = _ranges(np.searchsorted(spots, here), np.searchsorted(spots, here, "right"))
        to = requests["bucket"][request].astype(np.int64)
        for first in range(0, len(to), _BLOB_SKETCHES):
            some = slice(first, first + _BLOB_SKETCHES)
            yield scattered(picked(found, file[some]), KIND_REPLY, to[some])


def _sketched(files: Records, sources: Sequence[Source]) -> Iterator[Records]:
    """SKETCHED records of the files (SLIM, sorted by spot), in their order."""
    for at, batch in looked_up(spots_of(files["key"]), sources, ["sketch"]):
        found = np.empty(batch.num_rows, SKETCHED)
        for name in SLIM.names or ():
            found[name] = files[name][at]
        found["sketch"] = matrix(batch.column("sketch"), "u1")
        yield found


def _held(parts: Iterator[Records], count: int) -> Records:
    """So many SKETCHED records as one array, which is all that is in memory of them."""
    held, first = np.empty(count, SKETCHED), 0
    for part in parts:
        held[first : first + len(part)] = part
        first += len(part)
    return held


def _ranges(first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All numbers of ranges (n), one range after the other, and before them whose they are."""
    counts = end - first
    of = np.repeat(np.arange(len(first)), counts)
    return of, np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


class _Waiting:
    """Pairs of one bucket by their better files, whose sketches come in any order.

    Args:
        pairs: PAIRs, each once.
        own: the spots of the bucket's files, among which are all worse ones.

    Attributes:
        bands: where the pairs met.
        worse: the places of their worse files among the bucket's own.
        paired: which of these are in a pair.
    """

    def __init__(self, pairs: Records, own: NDArray[np.uint64]) -> None:
        first, of = numbered(pairs["better"][:, None])
        order, bounds = grouped(of, len(first))
        self._bounds = np.append(bounds, bounds[-1])  # files that are better in no pair have none
        better, places = pairs["better"][first], Places(own)
        self._groups = Places(better)
        self.bands, self.worse = pairs["band"][order], places.of(pairs["worse"][order])
        paired = np.zeros(len(own) + 1, bool)  # the last stands for those that are elsewhere
        paired[self.worse] = paired[places.of(better)] = True
        self.paired = paired[:-1]

    def of(self, better: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pairs of these better files (spots): which of the files, and which pair."""
        groups = self._groups.of(better)
        return _ranges(self._bounds[groups], self._bounds[groups + 1])


def _edges(blobs: Blobs, sources: Sequence[Source], threshold: float, exact: bool) -> Iterator[Records]:
    """The edges of one bucket: its pairs, against the sketches of its own files and those that came as replies."""
    following: list[tuple[int, Records]] = []
    files = by_spot([of_kind(blobs, KIND_SLIM, SLIM, following)])
    rest, following = chain(following, blobs), []
    pairs = _Waiting(distinct_pairs(of_kind(rest, KIND_PAIR, PAIR, following)), spots_of(files["key"]))
    own = _held(_sketched(picked(files, pairs.paired), sources), int(pairs.paired.sum()))
    worse_places = (np.cumsum(pairs.paired) - 1)[pairs.worse]
    own_parts = (own[first : first + _BLOB_SKETCHES] for first in range(0, len(own), _BLOB_SKETCHES))
    for better in chain(own_parts, (records for _, records in chain(following, rest))):
        file, pair = pairs.of(spots_of(better["key"]))
        worse = worse_places[pair]
        estimates, verdicts = judge(better, own, file, worse, threshold)
        open_ = (verdicts == UNDECIDED) & (exact | (estimates >= threshold))
        found = np.flatnonzero((verdicts == SIMILAR) | open_)
        edges = np.empty(len(found), EDGE)
        edges["better"], edges["worse"] = better["key"][file[found]], own["key"][worse[found]]
        edges["similarity"], edges["band"] = estimates[found], pairs.bands[pair[found]]
        edges["places"][:, 0], edges["places"][:, 1] = better["place"][file[found]], own["place"][worse[found]]
        edges["proof"] = np.where(open_[found], OPEN if exact else ESTIMATE, SKETCH)
        yield edges
