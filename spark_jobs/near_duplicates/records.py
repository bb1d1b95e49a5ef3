"""The fixed-size records that near-duplicate removal sends through shuffles, and where they are sent."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spark_jobs.near_duplicates.keep_order import ID_BYTES, KEY_BYTES
from spark_jobs.near_duplicates.settings import BINS

Records = NDArray[np.void]
Hashes = NDArray[np.uint64]

# A file in one band: `key` is the keep order, which ends with the file's id.
BAND_MEMBER = np.dtype([("digest", "<u8"), ("key", "u1", KEY_BYTES), ("shingles", "<u4")])
# Two files that met in a band; the better one is first in the keep order.
PAIR = np.dtype([("better", "u1", ID_BYTES), ("worse", "u1", ID_BYTES), ("band", "u1")])
# A file's sketch is wanted in a bucket.
REQUEST = np.dtype([("id", "u1", ID_BYTES), ("bucket", "<u4")])
# Where a file's content lies, and how large it is: the delivery, the number of the file of its table, and so on.
PLACE = np.dtype([("delivery", "<u2"), ("part", "<u4"), ("row_group", "<u4"), ("row", "<u4"), ("size", "<u4")])
SKETCHED = np.dtype([("key", "u1", KEY_BYTES), ("shingles", "<u4"), ("place", PLACE), ("sketch", "u1", BINS)])
# Two files that are similar, or may be; the places of the better and of the worse one.
EDGE = np.dtype(
    [
        ("better", "u1", KEY_BYTES),
        ("worse", "u1", KEY_BYTES),
        ("similarity", "<f8"),
        ("band", "u1"),
        ("proof", "u1"),
        ("places", PLACE, 2),
    ]
)
# A band's digest that many files share, and the best of them.
HOT_BAND = np.dtype([("members", "<i8"), ("band", "u1"), ("key", "u1", KEY_BYTES)])

# The kinds of blobs, in the order in which a bucket gets them.
KIND_SKETCHED, KIND_REQUEST, KIND_PAIR, KIND_REPLY, KIND_BAND, KIND_HOT, KIND_EDGE = range(7)
DTYPES = {
    KIND_SKETCHED: SKETCHED,
    KIND_REQUEST: REQUEST,
    KIND_PAIR: PAIR,
    KIND_REPLY: SKETCHED,
    KIND_BAND: BAND_MEMBER,
    KIND_HOT: HOT_BAND,
    KIND_EDGE: EDGE,
}


def numbers(values: NDArray[np.uint8]) -> Hashes:
    """Bytes (n, width) as big-endian numbers (n, width / 8, rounded up) that compare as they do."""
    missing = -values.shape[1] % 8
    padded = np.pad(values, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(values)
    return padded.view(">u8").astype(np.uint64)


def place_numbers(places: Records) -> Hashes:
    """PLACEs (n) as numbers (n, 2) that compare as the content lies."""
    high, low = (
        places[major].astype(np.uint64) << np.uint64(32) | places[minor]
        for major, minor in (("delivery", "part"), ("row_group", "row"))
    )
    return np.column_stack([high, low])


def bucket_of(ids: NDArray[np.uint8], buckets: int) -> NDArray[np.int64]:
    """The bucket of each file id (n, ID_BYTES): ids are hashes, so a part of one is as good as any."""
    return (np.ascontiguousarray(ids[:, -8:]).view("<u8")[:, 0] % np.uint64(buckets)).astype(np.int64)


def first_of_each(columns: Hashes) -> NDArray[np.int64]:
    """The places of the first of all equal rows of numbers (n, width), told apart by 64-bit hashes of them."""
    factors = np.array([0x9FB21C651E98DF25, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64)
    mixed = np.zeros(len(columns), np.uint64)
    for number, column in enumerate(columns.T):
        mixed = (mixed ^ column) * factors[number]
        mixed ^= mixed >> np.uint64(32)
    size = 16
    while size < 2 * len(mixed):
        size *= 2
    return _first_of_each(mixed, np.full(size, -1, np.int64))


@njit(nogil=True, cache=True)
def _first_of_each(hashes: Hashes, table: NDArray[np.int64]) -> NDArray[np.int64]:
    found, count, last = np.empty(len(hashes), np.int64), 0, np.uint64(len(table) - 1)
    for number in range(len(hashes)):
        slot = hashes[number] & last
        while table[slot] >= 0 and hashes[table[slot]] != hashes[number]:
            slot = (slot + np.uint64(1)) & last
        if table[slot] < 0:
            table[slot] = number
            found[count] = number
            count += 1
    return found[:count]


@njit(nogil=True, cache=True)
def _search(rows: Hashes, wanted: Hashes, out: NDArray[np.int64]) -> None:
    for number in range(len(wanted)):
        low, high = 0, len(rows)
        while low < high:
            middle = (low + high) >> 1
            before = False
            for column in range(rows.shape[1]):
                if rows[middle, column] != wanted[number, column]:
                    before = rows[middle, column] < wanted[number, column]
                    break
            if before:
                low = middle + 1
            else:
                high = middle
        out[number] = low


def search(rows: Hashes, wanted: Hashes) -> NDArray[np.int64]:
    """For each of the wanted rows of numbers (n, width) the first place among sorted ones that is not before it."""
    out = np.empty(len(wanted), np.int64)
    _search(rows, wanted, out)
    return out
