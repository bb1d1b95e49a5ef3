"""Pairs that may be similar: each band's members against its first.

In a band every member is paired with the HUBS best of the band: all pairs where it is small, a linear number where a
licence header or a generated stub gives it a million members. A bucket is a band, or a part of its digests; it is
sorted in memory while it is small, else in runs on disk, so that a band of any size finishes.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_jobs.near_duplicates.exchange import FLUSH_BYTES, Blobs, exchanged, flushed, scattered
from spark_jobs.near_duplicates.fingerprints import matrix
from spark_jobs.near_duplicates.lookup import Source, by_spot, looked_up
from spark_jobs.near_duplicates.records import (
    BAND_MEMBER,
    HOT_BAND,
    KIND_BAND,
    KIND_HOT,
    KIND_PAIR,
    KIND_REQUEST,
    PAIR,
    REQUEST,
    Records,
    bucket_of,
    first_of_each,
    joined,
    numbers,
    picked,
    spots_of,
    table_size,
)
from spark_jobs.near_duplicates.runs import Order, sorted_runs
from spark_jobs.near_duplicates.settings import BANDS, ROWS
from spark_jobs.near_duplicates.stored import Stored, stored_exchange
from spark_jobs.near_duplicates.words import MULTIPLIER, mix

HUBS = 64

# The bytes of a bucket of band members that the number of buckets aims at.
_BUCKET_BYTES = 16 << 20
# Members that are paired at once: at most HUBS pairs each, of 25 bytes.
_MEMBERS_AT_ONCE = 1 << 15
# Pairs gathered over a task's bands before repeated ones are dropped: similar files meet in many bands.
_PAIRS_AT_ONCE = 1 << 20
# Pairs that are handed to Spark at once.
_BATCH_PAIRS = FLUSH_BYTES // PAIR.itemsize
# Bands that are reported: the HOTTEST of a bucket, if they have more members than this.
HOT_MEMBERS, HOTTEST = 200, 3
_UNSETTLED = 0x80  # the top bit of a key
_BY_DIGEST = Order(lambda members: members["digest"], lambda members: numbers(members["key"]))


def recall(similarity: float) -> float:
    """Probability that a pair of this similarity becomes a candidate."""
    return float(1 - (1 - similarity**ROWS) ** BANDS)


def candidate_pairs(
    files: DataFrame, count: int, sources: Sequence[Source], threshold: float, buckets: int, tasks: int, folder: str
) -> Stored:
    """Blobs of PAIRs, of REQUESTs for the sketches of their better files, and of HOT_BANDs.

    A pair shares a band, and its sizes allow the threshold: sets of n <= m shingles are at most n / m similar. It may
    come several times. It goes to the bucket of its worse file, where the sketch of the better one is wanted too.

    Args:
        files: blobs of SLIM records; one file a distinct content. Those without words are in no pair.
        count: their number.
        sources: where their bands lie.
        threshold: least similarity wanted.
        buckets: number of buckets of files.
        tasks: Spark tasks that read the bands, and that sort them.
        folder: where the blobs are stored.
    """
    parts = -(-count * BAND_MEMBER.itemsize // _BUCKET_BYTES) or 1

    def scatter(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for members in flushed(part for _, blobs in groups for part in _members(blobs, sources)):
            band = np.tile(np.arange(BANDS), len(members) // BANDS)
            part = (members["digest"] >> np.uint64(32)) % np.uint64(parts)
            yield scattered(members, KIND_BAND, band * parts + part.astype(np.int64))

    def pair(bands: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        hot: list[Records] = []
        for pairs in _gathered(_pairs_of_buckets(bands, parts, threshold, hot)):
            yield from _addressed(pairs, buckets)
        if hot:
            found = np.concatenate(hot)
            yield scattered(found, KIND_HOT, np.zeros(len(found), np.int64))

    return stored_exchange(exchanged(files, tasks, scatter), tasks, pair, folder)


def _members(blobs: Blobs, sources: Sequence[Source]) -> Iterator[Records]:
    """The BAND_MEMBERs of a bucket's files, file by file."""
    worded = by_spot(records[records["shingles"] > 0] for _, records in blobs)
    for at, batch in looked_up(spots_of(worded["key"]), sources, ["bands"]):
        files = worded[at]
        alike = np.empty(len(files), BAND_MEMBER)
        alike["key"], alike["shingles"] = files["key"], files["shingles"]
        members = picked(alike, np.repeat(np.arange(len(files)), BANDS))
        members["digest"] = matrix(batch.column("bands"), "<u8").ravel()
        yield members


def _pairs_of_buckets(
    buckets: Iterator[tuple[int, Blobs]], parts: int, threshold: float, hot: list[Records]
) -> Iterator[Records]:
    """PAIRs of each bucket, bands one after the other. Of a band that spans batches only the hubs are remembered."""
    for bucket, blobs in buckets:
        members, counts = np.empty(0, BAND_MEMBER), np.zeros(0, np.int64)
        for few in _slices(sorted_runs((records for _, records in blobs), _BY_DIGEST, shared_only=True)):
            remembered = len(members)
            members = joined([members, few])
            settled = members["key"][:, 0] < _UNSETTLED
            left, right, hubs, counts = _pair_rows(
                members["digest"], members["shingles"], settled, remembered, counts, HUBS, threshold
            )
            spots = spots_of(members["key"])
            for first in range(0, len(left), _PAIRS_AT_ONCE):
                some = slice(first, first + _PAIRS_AT_ONCE)
                pairs = np.empty(len(left[some]), PAIR)
                pairs["better"], pairs["worse"], pairs["band"] = spots[left[some]], spots[right[some]], bucket // parts
                yield pairs
            hot.append(_hottest(members, counts, bucket // parts))
            members, counts = picked(members, hubs), counts[hubs]


def _slices(runs: Iterable[Records]) -> Iterator[Records]:
    """The same in arrays of few members, each of which may be in as many pairs as there are hubs."""
    for run in runs:
        for first in range(0, len(run), _MEMBERS_AT_ONCE):
            yield run[first : first + _MEMBERS_AT_ONCE]


def _hottest(members: Records, counts: NDArray[np.int64], band: int) -> Records:
    """The HOTTEST bands that end here; `counts` has a band's size so far at its best member and 0 elsewhere."""
    large = np.flatnonzero(counts > HOT_MEMBERS)
    large = large[np.argsort(-counts[large], kind="stable")[:HOTTEST]]
    found = np.empty(len(large), HOT_BAND)
    found["members"], found["band"], found["key"] = counts[large], band, members["key"][large]
    return found


@njit(nogil=True, cache=True)
def _pair_rows(
    digests: NDArray[np.uint64],
    shingles: NDArray[np.uint32],
    settled: NDArray[np.bool_],
    remembered: int,
    sizes: NDArray[np.int64],
    most_hubs: int,
    threshold: float,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (hub, member) of places in sorted members, the first `remembered` of which are hubs of an earlier batch
    whose pairs are known and whose band had `sizes` members; the hubs of the last band; and all bands' sizes."""
    left, right, counts = np.empty(0, np.int32), np.empty(0, np.int32), np.zeros(len(digests), np.int64)
    counts[:remembered] = sizes
    for filling in range(2):
        found = first = 0
        for row in range(len(digests)):
            if digests[row] != digests[first]:
                first = row
            if row < remembered:
                continue
            counts[first] += filling
            for hub in range(first, min(row, first + most_hubs)):
                fewer, more = min(shingles[hub], shingles[row]), max(shingles[hub], shingles[row])
                if fewer / more >= threshold and not (settled[hub] and settled[row]):
                    if filling:
                        left[found], right[found] = hub, row
                    found += 1
        if not filling:
            left, right = np.empty(found, np.int32), np.empty(found, np.int32)
    return left, right, np.arange(first, min(len(digests), first + most_hubs)), counts


def _gathered(parts: Iterable[Records]) -> Iterator[Records]:
    """The same pairs in larger arrays, each pair once in each."""
    waiting: list[Records] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= _PAIRS_AT_ONCE:
            waiting = [distinct_pairs(joined(waiting))]
            if len(waiting[0]) >= _PAIRS_AT_ONCE // 2:
                yield waiting.pop()
    if waiting:
        yield distinct_pairs(joined(waiting))


def distinct_pairs(pairs: Records) -> Records:
    """Each pair once, with the first of the bands in which it met."""
    found = np.empty(len(pairs), PAIR)
    return found[: _distinct(pairs, np.full(table_size(len(pairs)), -1, np.int32), found)]


@njit(nogil=True, cache=True)
def _distinct(pairs: Records, table: NDArray[np.int32], found: Records) -> int:
    count, last = 0, np.uint64(len(table) - 1)
    for row in range(len(pairs)):
        better, worse, band = pairs[row]["better"], pairs[row]["worse"], pairs[row]["band"]
        slot = mix(better * MULTIPLIER ^ worse) & last
        while table[slot] >= 0 and (found[table[slot]]["better"] != better or found[table[slot]]["worse"] != worse):
            slot = (slot + np.uint64(1)) & last
        if table[slot] < 0:
            table[slot] = count
            found[count] = pairs[row]
            count += 1
        elif band < found[table[slot]]["band"]:
            found[table[slot]]["band"] = band
    return count


def _addressed(pairs: Records, buckets: int) -> Iterator[pa.RecordBatch]:
    """Pairs for the buckets of their worse files, and requests that the sketches of the better ones be sent there,
    unless they lie there too."""
    to, there = bucket_of(pairs["worse"], buckets), bucket_of(pairs["better"], buckets)
    for first in range(0, len(pairs), _BATCH_PAIRS):
        some = slice(first, first + _BATCH_PAIRS)
        yield scattered(pairs[some], KIND_PAIR, to[some])
    away = to != there
    spots, to = pairs["better"][away], to[away]
    wanted = first_of_each(np.column_stack([spots, to.astype(np.uint64)]))
    requests = np.empty(len(wanted), REQUEST)
    requests["spot"], requests["bucket"] = spots[wanted], to[wanted]
    yield scattered(requests, KIND_REQUEST, bucket_of(requests["spot"], buckets))
