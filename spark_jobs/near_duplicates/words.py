r"""Words and their runs, straight from the bytes of an Arrow column: the innermost loop of de-duplication.

Words are the matches of `\w+`. A first pass marks the bytes that belong to words, eight lanes or more at once, and
then decodes the characters that are not ASCII where there are any; a second walks the edges in those marks 64 bytes at
a time, so that no branch depends on a character.
A word is hashed eight bytes at a time, a run of words by a multilinear sum of their hashes (Lemire and Kaser 2014,
"Strongly universal string hashing is fast"), finished by MurmurHash3's mixer.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.cpython.unsafe import numbers
from numba.extending import intrinsic
from numpy.typing import NDArray

from spark_jobs.rules.characters import WORD, decode

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]
Hashes = NDArray[np.uint64]

MULTIPLIER = np.uint64(0x9FB21C651E98DF25)
_FINAL_1, _FINAL_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_trailing_zeros: Any = numbers.trailing_zeros
_ONE, _EIGHT, _TOP = np.uint64(1), np.uint64(8), np.uint64(63)
_LOW_BYTES = np.array([(1 << 8 * width) - 1 for width in range(9)], np.uint64)
_HIGH_BITS = np.uint64(0x8080808080808080)
_MASK_OF_FLAGS = np.uint64(0x0102040810204080)

# A document with more words than this has its shingles sorted: a table of them would not fit any cache.
_TABLE_SHINGLES = 1 << 20


def _load_eight(_context: Any, data: Any, at: Any) -> Any:
    """Typing and code of `unaligned`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(array.data, [arguments[1]]), ir.IntType(64).as_pointer())
        loaded = builder.load(pointer)
        loaded.align = 1
        return loaded

    return types.uint64(data, at), generate


# The eight bytes from `data[at]` on as a little-endian number, in one load: (data, at) -> uint64.
unaligned: Any = intrinsic(_load_eight)


@njit(inline="always")
def load(data: Bytes, at: int, end: int) -> np.uint64:
    """Up to eight bytes of `data[at:end]` as a little-endian number, without reading past the array."""
    if at + 8 <= len(data):
        value = np.uint64(unaligned(data, at))
        return value if end - at >= 8 else value & ((_ONE << (_EIGHT * np.uint64(end - at))) - _ONE)
    value = np.uint64(0)
    for number in range(min(end - at, 8)):
        value |= np.uint64(data[at + number]) << (_EIGHT * np.uint64(number))
    return value


@njit(inline="always")
def mix(value: np.uint64) -> np.uint64:
    """MurmurHash3's 64-bit finaliser: every bit of the result depends on every bit of the value."""
    value ^= value >> np.uint64(33)
    value *= _FINAL_1
    value ^= value >> np.uint64(33)
    value *= _FINAL_2
    return value ^ (value >> np.uint64(33))


@njit(nogil=True, cache=True)
def _mark_ascii(text: Bytes, marks: Bytes) -> bool:
    """Mark the bytes of words with 1, the others with 0; False if there are others than ASCII, all marked with 0."""
    seen = np.uint8(0)
    for number in range(len(text)):
        byte = text[number]
        seen |= byte
        letter, digit = np.uint8((byte | np.uint8(0x20)) - np.uint8(97)), np.uint8(byte - np.uint8(48))
        marks[number] = (letter < 26) | (digit < 10) | (byte == 95)
    return bool(seen < 0x80)


@njit(nogil=True, cache=True)
def _mark_wide(data: Bytes, first: int, end: int, classes: Bytes, marks: Bytes) -> None:
    """Mark the characters of `data[first:end]` that are not ASCII; the marks of those that are stand."""
    at = first
    while at < end:
        high = load(data, at, end) & _HIGH_BITS
        if high == 0:
            at += 8
            continue
        at += _trailing_zeros(high) >> 3
        code, width = decode(data, at)
        marks[at - first : at - first + width] = (classes[code] & WORD) != 0
        at += width


@njit(inline="always")
def _word_hash(data: Bytes, at: int, end: int) -> np.uint64:
    """A word's hash. Its first 16 bytes, beyond which few words go, take no branch that depends on its length."""
    size = end - at
    if at + 16 <= len(data):
        first = np.uint64(unaligned(data, at)) & _LOW_BYTES[min(size, 8)]
        second = np.uint64(unaligned(data, at + 8)) & _LOW_BYTES[min(max(size - 8, 0), 8)]
    else:
        first, second = load(data, at, end), load(data, at + 8, end) if size > 8 else np.uint64(0)
    value: np.uint64 = (np.uint64(size) ^ first) * MULTIPLIER
    value ^= value >> np.uint64(32)
    value = (value ^ second) * MULTIPLIER
    value ^= value >> np.uint64(32)
    at += 16
    while at < end:
        value = (value ^ load(data, at, end)) * MULTIPLIER
        value ^= value >> np.uint64(32)
        at += 8
    return value


@njit(nogil=True, cache=True)
def _word_hashes(data: Bytes, first: int, end: int, classes: Bytes, marks: Bytes, out: Hashes) -> int:
    """Write the hash of every word of `data[first:end]` to `out`; return how many there are."""
    size = end - first
    if not _mark_ascii(data[first:end], marks[:size]):
        _mark_wide(data, first, end, classes, marks)
    marks[size : size + 64] = 0
    count, begin, inside, carry = 0, 0, False, np.uint64(0)
    for block in range(0, size + 1, 64):
        mask = np.uint64(0)
        for number in range(8):
            flags = unaligned(marks, block + 8 * number)
            mask |= ((flags * _MASK_OF_FLAGS) >> np.uint64(56)) << (_EIGHT * np.uint64(number))
        edges = mask ^ ((mask << _ONE) | carry)
        carry = mask >> _TOP
        while edges != 0:
            place = first + block + _trailing_zeros(edges)
            edges &= edges - _ONE
            if inside:
                out[count] = _word_hash(data, begin, place)
                count += 1
            begin, inside = place, not inside
    return count


@njit(nogil=True, cache=True)
def _run_hashes(words: Hashes, count: int, size: int) -> int:
    """Put in place of word hashes those of all runs of `size` of them; of fewer words, the one run of all."""
    length = min(count, size)
    if length == 0:
        return 0
    factors = np.empty(length, np.uint64)
    factor = MULTIPLIER
    for number in range(length):
        factors[number] = factor
        factor = mix(factor) | _ONE
    runs = count - length + 1
    for first in range(runs):
        value = np.uint64(length)
        for number in range(length):
            value += words[first + number] * factors[number]
        words[first] = mix(value)
    return runs


@njit(nogil=True, cache=True)
def _distinct(hashes: Hashes, count: int, table: Hashes) -> int:
    """Move the distinct ones of the first `count` hashes to the front and return how many they are."""
    if count > _TABLE_SHINGLES:
        hashes[:count].sort()
        kept = 1
        for number in range(1, count):
            if hashes[number] != hashes[kept - 1]:
                hashes[kept] = hashes[number]
                kept += 1
        return kept
    size = 16
    while size < 2 * count:
        size *= 2
    table[:size] = 0  # a shingle of hash 0 is taken for one of hash 1
    kept, last = 0, np.uint64(size - 1)
    for number in range(count):
        value = max(hashes[number], _ONE)
        slot = value & last
        while table[slot] != 0 and table[slot] != value:
            slot = (slot + _ONE) & last
        if table[slot] == 0:
            table[slot] = value
            hashes[kept] = value
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def shingles_of(
    data: Bytes, first: int, end: int, size: int, classes: Bytes, marks: Bytes, table: Hashes, out: Hashes
) -> int:
    """Write the distinct hashes of a document's runs of `size` words to `out`, and return how many they are.

    Args:
        data: UTF-8, of which the document is `data[first:end]`.
        size: words in a run; a document of fewer words has the one run of all its words.
        classes: `character_classes()`.
        marks, table, out: what `workspace` made room for.
    """
    words = _word_hashes(data, first, end, classes, marks, out)
    return _distinct(out, _run_hashes(out, words, size), table)


def workspace(longest: int) -> tuple[Bytes, Hashes, Hashes]:
    """Room for the marks, the table and the shingles of documents of up to `longest` bytes: 5 bytes a byte of text,
    and 32 MB at most for the table."""
    words = longest // 2 + 1  # no document has more: "a b c"
    table = 16
    while table < 2 * min(words, _TABLE_SHINGLES):
        table *= 2
    return np.empty(longest + 128, np.uint8), np.empty(table, np.uint64), np.empty(words, np.uint64)
