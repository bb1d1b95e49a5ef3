r"""Words, shingles and sketches of documents, straight from the bytes of an Arrow column.

Words are the matches of `\w+`; shingles all runs of SHINGLE_WORDS consecutive words, as 64-bit hashes; a document
of fewer words has the one shingle of all its words, and one without words has none. Sketches are MinHash values
(Broder 1997) under datasketch 2's `affine32` permutations, bit for bit, so that datasketch can check them.
"""

import functools

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spark_jobs.rules.characters import WORD, character_classes, decode

SHINGLE_WORDS = 5
PERMUTATIONS = 252  # 42 bands of 6 rows
SEED = 1
SCHEME = f"words{SHINGLE_WORDS}-affine32-{PERMUTATIONS}-seed{SEED}"

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Sketches = NDArray[np.uint32]

_MULTIPLIER = np.uint64(0x9FB21C651E98DF25)
_FINAL_1, _FINAL_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


@functools.cache
def permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Multipliers (odd) and addends of the permutations h -> a h + b mod 2^32, as datasketch 2 draws them."""
    generator = np.random.RandomState(SEED)
    multipliers = generator.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    addends = generator.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
    return multipliers, addends


@njit(inline="always")
def _mix(value: np.uint64) -> np.uint64:
    """MurmurHash3's 64-bit finaliser: every bit of the result depends on every bit of the value."""
    value ^= value >> np.uint64(33)
    value *= _FINAL_1
    value ^= value >> np.uint64(33)
    value *= _FINAL_2
    return value ^ (value >> np.uint64(33))


@njit(inline="always")
def _shingle(words: Hashes, last: int, count: int) -> np.uint64:
    """Hash of the `count` word hashes that end at number `last` of a ring of word hashes; order counts."""
    value = np.uint64(count)
    for step in range(count):
        value = (value ^ words[(last - count + 1 + step) % len(words)]) * _MULTIPLIER
        value ^= value >> np.uint64(29)
    return _mix(value)


@njit(nogil=True, cache=True)
def _shingles_of(data: Bytes, at: int, end: int, classes: Bytes, size: int, out: Hashes) -> int:
    """Write the hashes of a document's runs of `size` words, repeats included, to `out`; return how many there are."""
    ring = np.empty(size, np.uint64)
    words = count = 0
    value, inside = np.uint64(0), False
    while at <= end:
        is_word, width = False, 1
        if at < end:
            byte = data[at]
            if byte < 0x80:
                is_word = (classes[byte] & WORD) != 0
            else:
                code, width = decode(data, at)
                is_word = (classes[code] & WORD) != 0
        if is_word:
            if not inside:
                value, inside = np.uint64(0xCBF29CE484222325), True
            for step in range(width):
                value = (value ^ np.uint64(data[at + step])) * _MULTIPLIER
                value ^= value >> np.uint64(32)
        elif inside:
            ring[words % size] = value
            words += 1
            inside = False
            if words >= size:
                out[count] = _shingle(ring, words - 1, size)
                count += 1
        at += width
    if 0 < words < size:
        out[0] = _shingle(ring, words - 1, words)
        count = 1
    return count


@njit(inline="always")
def _distinct(hashes: Hashes) -> int:
    """Sort in place, move the distinct values to the front and return how many there are."""
    if len(hashes) == 0:
        return 0
    hashes.sort()
    kept = 1
    for number in range(1, len(hashes)):
        if hashes[number] != hashes[kept - 1]:
            hashes[kept] = hashes[number]
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def _sketch(
    data: Bytes,
    offsets: Offsets,
    classes: Bytes,
    multipliers: NDArray[np.uint32],
    addends: NDArray[np.uint32],
    room: Hashes,
    sketches: Sketches,
    counts: Offsets,
) -> None:
    """Sketch and number of distinct shingles of every document; `room` holds the shingles of the longest one."""
    for row in range(len(offsets) - 1):
        found = _shingles_of(data, offsets[row], offsets[row + 1], classes, SHINGLE_WORDS, room)
        distinct = _distinct(room[:found])
        counts[row] = distinct
        sketch = sketches[row]
        for number in range(distinct):
            value = np.uint32(room[number])
            value ^= value >> np.uint32(16)
            value = np.uint32(value * np.uint32(0x85EBCA6B))
            value ^= value >> np.uint32(13)
            value = np.uint32(value * np.uint32(0xC2B2AE35))
            value ^= value >> np.uint32(16)
            for column in range(len(multipliers)):
                permuted = np.uint32(np.uint32(multipliers[column] * value) + addends[column])
                sketch[column] = min(sketch[column], permuted)


@njit(nogil=True, cache=True)
def _shingle_sets(data: Bytes, offsets: Offsets, classes: Bytes, size: int, out: Hashes, bounds: Offsets) -> None:
    """Sorted distinct shingles of every document, end to end in `out`; `bounds` (n + 1) tell them apart."""
    for row in range(len(offsets) - 1):
        first = bounds[row]
        found = _shingles_of(data, offsets[row], offsets[row + 1], classes, size, out[first:])
        bounds[row + 1] = first + _distinct(out[first : first + found])


def _room(offsets: Offsets) -> int:
    """No document has more words than half its bytes, and one: "a b c"."""
    return int(np.diff(offsets).max(initial=0)) // 2 + 1


def sketches(data: Bytes, offsets: Offsets) -> tuple[Sketches, NDArray[np.int64]]:
    """MinHash sketches (n, PERMUTATIONS) and numbers of distinct shingles (n) of documents.

    Args:
        data: the documents' valid UTF-8, end to end.
        offsets: n + 1 bounds of the documents in `data`.

    A document without words has a sketch of all ones that means nothing: its number of shingles is 0.
    """
    found = np.full((len(offsets) - 1, PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    counts = np.zeros(len(offsets) - 1, np.int64)
    room = np.empty(_room(offsets), np.uint64)
    _sketch(data, offsets, character_classes(), *permutations(), room, found, counts)
    return found, counts


def shingle_sets(data: Bytes, offsets: Offsets, size: int = SHINGLE_WORDS) -> tuple[Hashes, Offsets]:
    """The sorted distinct 64-bit hashes of documents' runs of `size` words, end to end, and their n + 1 bounds.

    Memory is 4 bytes a byte of text at most while it runs.
    """
    out = np.empty((int(offsets[-1] - offsets[0]) + len(offsets)) // 2 + len(offsets), np.uint64)
    bounds = np.zeros(len(offsets), np.int64)
    _shingle_sets(data, offsets, character_classes(), size, out, bounds)
    return out[: bounds[-1]].copy(), bounds


@njit(nogil=True, cache=True)
def _intersections(hashes: Hashes, bounds: Offsets, left: Offsets, right: Offsets, out: NDArray[np.float64]) -> None:
    for pair in range(len(left)):
        a, a_end = bounds[left[pair]], bounds[left[pair] + 1]
        b, b_end = bounds[right[pair]], bounds[right[pair] + 1]
        both = 0
        total = (a_end - a) + (b_end - b)
        while a < a_end and b < b_end:
            first, second = hashes[a], hashes[b]
            both += first == second
            a += first <= second
            b += second <= first
        out[pair] = both / max(total - both, 1)


def jaccard(hashes: Hashes, bounds: Offsets, left: Offsets, right: Offsets) -> NDArray[np.float64]:
    """Exact Jaccard similarity of pairs of the sets that `shingle_sets` returned, by their numbers; (pairs,)."""
    similarity = np.zeros(len(left), np.float64)
    _intersections(hashes, bounds, left, right, similarity)
    return similarity
