"""Pairs that may be similar: banding over sketches, then each band's members against its first.

A band digest stands for ROWS sketch values, so two files of similarity s share one of BANDS digests with probability
1 - (1 - s^ROWS)^BANDS. In a band every member is paired with the HUBS best of the band: all pairs where it is small,
a linear number where a licence header or a generated stub gives it a million members.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_jobs.near_duplicates.keep_order import KEY_BYTES
from spark_jobs.near_duplicates.shingles import PERMUTATIONS

BANDS, ROWS = 42, 6
HUBS = 32

_BAND_ROWS = "digest long, key binary, shingles int"
_PAIRS = "better binary, worse binary"


def recall(similarity: float) -> float:
    """Probability that a pair of this similarity becomes a candidate."""
    return float(1 - (1 - similarity**ROWS) ** BANDS)


def candidate_pairs(sketched: DataFrame, threshold: float) -> DataFrame:
    """Distinct pairs (better, worse) of keys that share a band and whose sizes allow the threshold.

    Args:
        sketched: columns `key` (24 bytes, the keep order), `sketch`, `shingles`; one row a distinct content.
        threshold: least similarity wanted. Sets of n <= m shingles are at most n / m similar.
    """
    bands = sketched.select("key", "sketch", "shingles").mapInArrow(_band_rows, _BAND_ROWS)
    grouped = bands.repartition("digest").sortWithinPartitions("digest", "key")

    def pairs(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _pairs_of_bands(batches, threshold)

    return grouped.mapInArrow(pairs, _PAIRS).distinct()


def _band_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        sketches = _matrix(batch.column("sketch"), PERMUTATIONS * 4).view(np.uint32)
        digests = band_digests(sketches)
        of_row = pa.array(np.repeat(np.arange(batch.num_rows), BANDS))
        yield pa.record_batch(
            [
                pa.array(digests.ravel().view(np.int64)),
                batch.column("key").take(of_row),
                batch.column("shingles").take(of_row).cast(pa.int32()),
            ],
            names=["digest", "key", "shingles"],
        )


@njit(nogil=True, cache=True)
def band_digests(sketches: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """64-bit digests (n, BANDS) of the bands of sketches (n, BANDS * ROWS); the band's number is part of it."""
    digests = np.empty((len(sketches), BANDS), np.uint64)
    for row in range(len(sketches)):
        for band in range(BANDS):
            value = np.uint64(band + 1) * np.uint64(0x9E3779B97F4A7C15)
            for column in range(band * ROWS, (band + 1) * ROWS):
                value = (value ^ np.uint64(sketches[row, column])) * np.uint64(0xFF51AFD7ED558CCD)
                value ^= value >> np.uint64(32)
            digests[row, band] = value
    return digests


def _pairs_of_bands(batches: Iterable[pa.RecordBatch], threshold: float) -> Iterator[pa.RecordBatch]:
    """Pairs from rows sorted by (digest, key). Between batches only the hubs of the last band are remembered."""
    digests, keys, shingles = np.empty(0, np.int64), np.empty((0, KEY_BYTES), np.uint8), np.empty(0, np.int32)
    for batch in batches:
        remembered = len(digests)
        digests = np.concatenate([digests, np.asarray(batch.column("digest"))])
        keys = np.concatenate([keys, _matrix(batch.column("key"), KEY_BYTES)])
        shingles = np.concatenate([shingles, np.asarray(batch.column("shingles"))])
        left, right, hubs = _pair_rows(digests, shingles, remembered, threshold)
        if len(left):
            yield pa.record_batch([_binary(keys[left]), _binary(keys[right])], names=["better", "worse"])
        digests, keys, shingles = digests[hubs], keys[hubs], shingles[hubs]


@njit(nogil=True, cache=True)
def _pair_rows(
    digests: NDArray[np.int64], shingles: NDArray[np.int32], remembered: int, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers (hub, member) of the pairs whose member is not among the first `remembered` rows, which are hubs
    of an earlier batch; and the hubs of the last band."""
    left, right = [np.int64(0) for _ in range(0)], [np.int64(0) for _ in range(0)]
    first = 0
    for row in range(len(digests)):
        if digests[row] != digests[first]:
            first = row
        if row < remembered:
            continue
        for hub in range(first, min(row, first + HUBS)):
            fewer, more = min(shingles[hub], shingles[row]), max(shingles[hub], shingles[row])
            if fewer >= threshold * more:
                left.append(np.int64(hub))
                right.append(np.int64(row))
    last = len(digests)
    return np.array(left), np.array(right), np.arange(first, min(last, first + HUBS))


def _matrix(values: pa.Array, width: int) -> NDArray[np.uint8]:
    """A column of binary values of one width as a matrix (n, width), without a Python object a value."""
    large = values.cast(pa.large_binary())
    _, _, data = large.buffers()
    flat = np.frombuffer(data, np.uint8)[large.offset * width :][: len(large) * width]
    return flat.reshape(len(large), width)


def _binary(rows: NDArray[np.uint8]) -> pa.Array:
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.Array.from_buffers(
        pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows))]
    )
