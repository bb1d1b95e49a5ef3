"""What de-duplication knows of a document: its exact hash, its shingles' number, band digests and a sketch.

One kernel walks the documents of an Arrow column: no Python object a document or a word, and the GIL is free.

* Bands: 252 MinHash values (Broder 1997) under datasketch 2's `affine32` permutations, bit for bit, in BANDS groups of
  ROWS; a group's digest is 64 bits. Two files of similarity s share one with probability 1 - (1 - s^ROWS)^BANDS.
* Sketch: one-permutation hashing (Li, Owen and Zhang 2012) into BINS bins without densification. A bin holds 8 bits of
  the least shingle hash that fell into it, or 0 if none did. It is compared in `sketches.py`.
* Exact hash: MurmurHash3 x64 128 of the bytes.
"""

import functools
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from spark_jobs.near_duplicates.headers import header_end, header_tables
from spark_jobs.near_duplicates.settings import BANDS, BINS, ROWS, SEED, SHINGLE_WORDS, Fingerprint
from spark_jobs.near_duplicates.words import MULTIPLIER, Bytes, Hashes, Offsets, load, mix, shingles_of, workspace
from spark_jobs.rules.characters import character_classes

PERMUTATIONS = BANDS * ROWS

# Of one document, in the kernel's result: 16 + 8 + 336 + 1024 bytes.
FINGERPRINT = np.dtype(
    [("content_hash", "<u8", 2), ("shingles", "<i8"), ("bands", "<u8", BANDS), ("sketch", "u1", BINS)]
)

_BIN_BITS = np.uint64(BINS.bit_length() - 1)
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_C1, _C2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
_N1, _N2 = np.uint64(0x52DCE729), np.uint64(0x38495AB5)
_FIVE = np.uint64(5)

Sketches = NDArray[np.uint32]


@functools.cache
def permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Multipliers (odd) and addends of the permutations h -> a h + b mod 2^32, as datasketch 2 draws them."""
    generator = np.random.RandomState(SEED)
    multipliers = generator.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    addends = generator.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
    return multipliers, addends


@njit(inline="always")
def _rotate(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@njit(nogil=True, cache=True)
def _murmur3(data: Bytes, first: int, end: int, out: Hashes) -> None:
    """MurmurHash3 x64 128 with seed 0 (Appleby 2011, public domain)."""
    h1 = h2 = np.uint64(0)
    at = first
    while at + 16 <= end:
        h1 ^= _rotate(load(data, at, end) * _C1, 31) * _C2
        h1 = (_rotate(h1, 27) + h2) * _FIVE + _N1
        h2 ^= _rotate(load(data, at + 8, end) * _C2, 33) * _C1
        h2 = (_rotate(h2, 31) + h1) * _FIVE + _N2
        at += 16
    if at + 8 < end:
        h2 ^= _rotate(load(data, at + 8, end) * _C2, 33) * _C1
    if at < end:
        h1 ^= _rotate(load(data, at, end) * _C1, 31) * _C2
    h1 ^= np.uint64(end - first)
    h2 ^= np.uint64(end - first)
    h1 += h2
    h2 += h1
    h1, h2 = mix(h1), mix(h2)
    h1 += h2
    h2 += h1
    out[0], out[1] = h1, h2


@njit(nogil=True, cache=True)
def _minima(
    shingles: Hashes,
    multipliers: NDArray[np.uint32],
    addends: NDArray[np.uint32],
    mixed: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> None:
    """The least value of each permutation over the shingles; `mixed` has room for as many."""
    count = len(shingles)
    for number in range(count):
        value = np.uint32(shingles[number])
        value ^= value >> np.uint32(16)
        value = np.uint32(value * np.uint32(0x85EBCA6B))
        value ^= value >> np.uint32(13)
        value = np.uint32(value * np.uint32(0xC2B2AE35))
        mixed[number] = value ^ (value >> np.uint32(16))
    for column in range(len(multipliers)):
        multiplier, addend = multipliers[column], addends[column]
        least = np.uint32(0xFFFFFFFF)
        for number in range(count):
            least = min(least, np.uint32(np.uint32(multiplier * mixed[number]) + addend))
        out[column] = least


@njit(nogil=True, cache=True)
def _digests(minima: NDArray[np.uint32], out: Hashes) -> None:
    """64-bit digests of the groups of ROWS minima; the band's number is part of its digest."""
    for band in range(BANDS):
        value = np.uint64(band + 1) * MULTIPLIER
        for column in range(band * ROWS, (band + 1) * ROWS):
            value = mix(value ^ np.uint64(minima[column]))
        out[band] = value


@njit(nogil=True, cache=True)
def _bins(shingles: Hashes, least: Hashes, out: Bytes) -> None:
    """The sketch: a shingle's high bits choose its bin, and 8 bits of each bin's least one are kept, 1 to 255."""
    least[:] = _EMPTY
    for number in range(len(shingles)):
        value = shingles[number]
        place = value >> (np.uint64(64) - _BIN_BITS)
        least[place] = min(least[place], value)
    for place in range(len(least)):
        found = least[place]
        out[place] = 0 if found == _EMPTY else 1 + (found * MULTIPLIER >> np.uint64(32)) % np.uint64(255)


@njit(nogil=True, cache=True)
def _fingerprints(
    data: Bytes,
    offsets: Offsets,
    classes: Bytes,
    permutations: tuple[NDArray[np.uint32], NDArray[np.uint32]],
    headers: Any,
    room: tuple[Bytes, Hashes, Hashes],
    mixed: NDArray[np.uint32],
    hashes: Hashes,
    counts: Offsets,
    bands: Hashes,
    sketches: Bytes,
) -> None:
    minima, least = np.empty(PERMUTATIONS, np.uint32), np.empty(BINS, np.uint64)
    marks, table, shingles = room
    for row in range(len(offsets) - 1):
        first, end = offsets[row], offsets[row + 1]
        _murmur3(data, first, end, hashes[row])
        if headers is not None:
            first = header_end(data, first, end, headers)
        count = shingles_of(data, first, end, SHINGLE_WORDS, classes, marks, table, shingles)
        counts[row] = count
        _minima(shingles[:count], permutations[0], permutations[1], mixed, minima)
        _digests(minima, bands[row])
        _bins(shingles[:count], least, sketches[row])


def fingerprints(data: Bytes, offsets: Offsets, taken: Fingerprint) -> NDArray[np.void]:
    """FINGERPRINTs of documents (n), from their valid UTF-8 end to end, its n + 1 bounds, and what is taken of it.

    A document without words has bands and a sketch that mean nothing: its number of shingles is 0.
    """
    found = np.zeros(len(offsets) - 1, FINGERPRINT)
    room = workspace(int(np.diff(offsets).max(initial=0)))
    mixed = np.empty(len(room[2]), np.uint32)
    columns = [found[name] for name in ("content_hash", "shingles", "bands", "sketch")]
    headers = header_tables() if taken.strip_header else None
    _fingerprints(data, offsets, character_classes(), permutations(), headers, room, mixed, *columns)
    return found


@njit(nogil=True, cache=True)
def _hashes(data: Bytes, offsets: Offsets, out: Hashes) -> None:
    for row in range(len(offsets) - 1):
        _murmur3(data, offsets[row], offsets[row + 1], out[row])


def exact_hashes(data: Bytes, offsets: Offsets) -> Hashes:
    """The exact hashes (n, 2) of texts, from their bytes end to end and the n + 1 bounds."""
    found = np.empty((len(offsets) - 1, 2), np.uint64)
    _hashes(data, offsets, found)
    return found


def minhashes(data: Bytes, offsets: Offsets) -> Sketches:
    """The MinHash values (n, PERMUTATIONS) behind the band digests, of documents as in `fingerprints`."""
    room = workspace(int(np.diff(offsets).max(initial=0)))
    mixed, found = np.empty(len(room[2]), np.uint32), np.empty((len(offsets) - 1, PERMUTATIONS), np.uint32)
    for row in range(len(found)):
        count = shingles_of(data, offsets[row], offsets[row + 1], SHINGLE_WORDS, character_classes(), *room)
        _minima(room[2][:count], *permutations(), mixed, found[row])
    return found


def binary(rows: NDArray[np.generic]) -> pa.Array:
    """The rows of a matrix as binary values of its row size, little-endian, without a Python object a row."""
    width = rows.itemsize * int(np.prod(rows.shape[1:]))
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * width
    data = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    return pa.Array.from_buffers(pa.large_binary(), len(rows), [None, pa.py_buffer(offsets), data])


def matrix(values: pa.Array, dtype: str | np.dtype) -> NDArray[np.generic]:
    """A column of binary values of one width as the rows of a matrix (n, width / item size)."""
    large = values.cast(pa.large_binary())
    kind = np.dtype(dtype)
    _, bounds, data = large.buffers()
    ends = np.frombuffer(bounds, np.int64)[large.offset : large.offset + len(large) + 1]
    width = int(ends[1] - ends[0]) if len(large) else kind.itemsize
    flat = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]] if len(large) else np.empty(0, np.uint8)
    return flat.view(kind).reshape(len(large), width // kind.itemsize)
