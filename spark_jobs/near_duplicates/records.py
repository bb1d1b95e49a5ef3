"""The fixed-size records that near-duplicate removal sends through shuffles, and where they are sent."""

from collections.abc import Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spark_jobs.near_duplicates.keep_order import KEY_BYTES
from spark_jobs.near_duplicates.settings import BINS
from spark_jobs.near_duplicates.words import MULTIPLIER, mix

Records = NDArray[np.void]
Hashes = NDArray[np.uint64]

# Rows of a file of fingerprints that one bucket has, before the next bucket has as many.
_SPOT_ROWS = 1 << 14

# A file in one band: `key` is the keep order, and ends with the file's spot.
BAND_MEMBER = np.dtype([("digest", "<u8"), ("key", "u1", KEY_BYTES), ("shingles", "<u4")])
# Two files that met in a band, by their spots; the better one is first in the keep order.
PAIR = np.dtype([("better", "<u8"), ("worse", "<u8"), ("band", "u1")])
# A file's sketch is wanted in a bucket.
REQUEST = np.dtype([("spot", "<u8"), ("bucket", "<u4")])
# Where a file's content lies, and how many shingles it has: the delivery, the number of the file of its table, and
# so on.
PLACE = np.dtype([("delivery", "<u2"), ("part", "<u4"), ("row_group", "<u4"), ("row", "<u4"), ("shingles", "<u4")])
# A file without its bands and sketch, and with its sketch.
SLIM = np.dtype([("key", "u1", KEY_BYTES), ("shingles", "<u4"), ("place", PLACE)])
# The same of a file that competes, before it is known how it ranks: its exact hash, its id, and a hash of the name of
# its repository, 0 where it has none.
FILE = np.dtype(
    [("content", "<u8", 2), ("id", "<u8", 2), ("repo", "<u8"), *((name, SLIM[name]) for name in SLIM.names or ())]
)
# Of a repository: files, and how many of them have a better copy in another one.
LOSS = np.dtype([("repo", "<u8"), ("files", "<i8"), ("lost", "<i8")])
# A file that goes for another of the same bytes.
COPY = np.dtype([*((name, SLIM[name]) for name in SLIM.names or ()), ("kept", "u1", KEY_BYTES)])
# A file that goes, and for whom; where there is none, the similarity is NaN, the band and the proof are 255.
REMOVAL = np.dtype(
    [("key", "u1", KEY_BYTES), ("kept", "u1", KEY_BYTES), ("similarity", "<f8"), ("band", "u1"), ("proof", "u1")]
)
SKETCHED = np.dtype([*((name, SLIM[name]) for name in SLIM.names or ()), ("sketch", "u1", BINS)])
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
(
    KIND_LOSS,
    KIND_FILE,
    KIND_SLIM,
    KIND_NEAR,
    KIND_COPY,
    KIND_REQUEST,
    KIND_PAIR,
    KIND_REPLY,
    KIND_BAND,
    KIND_HOT,
    KIND_EDGE,
    KIND_KNOWN,
    KIND_NAMES,
    KIND_REMOVAL,
    KIND_PLACE,
) = range(15)
DTYPES = {
    KIND_LOSS: LOSS,
    KIND_FILE: FILE,
    KIND_NEAR: REMOVAL,
    KIND_COPY: COPY,
    KIND_NAMES: np.dtype("u1"),  # Arrow's IPC stream of names by spot
    KIND_REMOVAL: REMOVAL,
    KIND_PLACE: PLACE,
    KIND_SLIM: SLIM,
    KIND_REQUEST: REQUEST,
    KIND_PAIR: PAIR,
    KIND_REPLY: SKETCHED,
    KIND_BAND: BAND_MEMBER,
    KIND_HOT: HOT_BAND,
    KIND_EDGE: EDGE,
    KIND_KNOWN: EDGE,
}


def joined(parts: Iterable[Records]) -> Records:
    """Records of one type, in one array after the other, as one array; there is at least one.

    numpy copies records field by field. Without their fields they are blocks of bytes, and a tenth of the time.
    """
    arrays = list(parts)
    return np.concatenate([_blocks(records) for records in arrays]).view(arrays[0].dtype)


def picked(records: Records, places: NDArray[np.integer] | NDArray[np.bool_]) -> Records:
    """The records at these places, or for which a mask is true, as a copy: `records[places]`, in blocks as above."""
    at = np.flatnonzero(places) if places.dtype == np.bool_ else places
    return np.take(_blocks(records), at).view(records.dtype)


def _blocks(records: Records) -> Records:
    return records.view(f"V{records.itemsize}")


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


def row_group_bucket(places: Records, buckets: int) -> NDArray[np.int64]:
    """The bucket of each PLACE's row group (n), by a hash: all get alike many, however content is cut into files."""
    high, low = place_numbers(places).T
    mixed = (high * MULTIPLIER ^ low >> np.uint64(32)) * MULTIPLIER
    found: NDArray[np.int64] = ((mixed >> np.uint64(32)) % np.uint64(buckets)).astype(np.int64)
    return found


def spots_of(keys: NDArray[np.uint8]) -> Hashes:
    """Where the fingerprints of files lie, by their keys (n, KEY_BYTES): the number of a file of fingerprints in the
    high 32 bits, the row in it in the low ones."""
    return np.ascontiguousarray(keys[:, -8:]).view(">u8")[:, 0].astype(np.uint64)


def bucket_of(spots: Hashes, buckets: int) -> NDArray[np.int64]:
    """The bucket of each spot (n). Neighbours share one, so that a bucket reads few row groups; all are as large."""
    file, row = spots >> np.uint64(32), spots & np.uint64(0xFFFFFFFF)
    return ((file + row // np.uint64(_SPOT_ROWS)) % np.uint64(buckets)).astype(np.int64)


class Places:
    """Distinct numbers, and where each stands among them.

    Args:
        known: the numbers.
    """

    def __init__(self, known: Hashes) -> None:
        self._known, self._table = known, np.full(table_size(len(known)), -1, np.int64)
        _fill(known, self._table)

    def of(self, wanted: Hashes) -> NDArray[np.int64]:
        """The places of wanted numbers (n); how many are known for those that are not."""
        out = np.empty(len(wanted), np.int64)
        _locate(self._known, self._table, wanted, out)
        return out


@njit(nogil=True, cache=True)
def _fill(known: Hashes, table: NDArray[np.int64]) -> None:
    last = np.uint64(len(table) - 1)
    for place in range(len(known)):
        slot = mix(known[place]) & last
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & last
        table[slot] = place


@njit(nogil=True, cache=True)
def _locate(known: Hashes, table: NDArray[np.int64], wanted: Hashes, out: NDArray[np.int64]) -> None:
    last = np.uint64(len(table) - 1)
    for number in range(len(wanted)):
        slot = mix(wanted[number]) & last
        while table[slot] >= 0 and known[table[slot]] != wanted[number]:
            slot = (slot + np.uint64(1)) & last
        out[number] = table[slot] if table[slot] >= 0 else len(known)


def table_size(numbers: int) -> int:
    """Slots of a hash table of so many numbers: a power of two, at least half of them free."""
    return max(16, 1 << (2 * numbers - 1).bit_length()) if numbers else 16


@njit(nogil=True, cache=True)
def grouped(of: NDArray[np.int64], groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of group numbers (n) by group, in their order, and the bounds of the groups."""
    bounds, order = np.zeros(groups + 1, np.int64), np.empty(len(of), np.int64)
    for place in range(len(of)):
        bounds[of[place] + 1] += 1
    for group in range(groups):
        bounds[group + 1] += bounds[group]
    filled = bounds.copy()
    for place in range(len(of)):
        order[filled[of[place]]] = place
        filled[of[place]] += 1
    return order, bounds


def first_of_each(columns: Hashes) -> NDArray[np.int64]:
    """The places of the first of all equal rows of numbers (n, width), in their order."""
    return numbered(columns)[0]


def numbered(columns: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of the first of all equal rows of numbers (n, width), told apart by 64-bit hashes of them, and for
    each row (n) which of these it equals."""
    factors = np.array([0x9FB21C651E98DF25, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64)
    mixed = np.zeros(len(columns), np.uint64)
    for number, column in enumerate(columns.T):
        mixed = (mixed ^ column) * factors[number]
        mixed ^= mixed >> np.uint64(32)
    return _numbered(mixed, np.full(table_size(len(mixed)), -1, np.int64))


@njit(nogil=True, cache=True)
def _numbered(hashes: Hashes, table: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found, of, count, last = (
        np.empty(len(hashes), np.int64),
        np.empty(len(hashes), np.int64),
        0,
        np.uint64(len(table) - 1),
    )
    for row in range(len(hashes)):
        slot = hashes[row] & last
        while table[slot] >= 0 and hashes[found[table[slot]]] != hashes[row]:
            slot = (slot + np.uint64(1)) & last
        if table[slot] < 0:
            table[slot] = count
            found[count] = row
            count += 1
        of[row] = table[slot]
    return found[:count], of


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
