"""Where a file's licence header or generated banner ends, so that fingerprints can leave it out.

A header is the block of comments, and of blank lines, that a file begins with, if it speaks of a licence, of
copyright or of being generated. Files of one project share it without resembling each other.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

# Words that make a leading comment a header, in lower case; "licen" is both spellings.
_BETRAYING = ("copyright", "licen", "generated", "spdx", "do not edit", "do not modify")
# Comments to the end of a line, and those with an end of their own.
_LINE = ("#", "//", "--", ";", "%")
_OPENING, _CLOSING = ("/*", "<!--", "{-", "(*"), ("*/", "-->", "-}", "*)")
# Lines that look like comments and are code.
_CODE = ("#include", "#define", "#if", "#pragma", "#undef", "#error", "#import")

_Texts = tuple[NDArray[np.uint8], NDArray[np.int64]]
_Tables = tuple[_Texts, _Texts, _Texts, _Texts, _Texts]


def _packed(texts: tuple[str, ...]) -> _Texts:
    bounds = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return np.frombuffer("".join(texts).encode(), np.uint8).copy(), bounds


_TABLES = (_packed(_BETRAYING), _packed(_LINE), _packed(_CODE), _packed(_OPENING), _packed(_CLOSING))


@njit(nogil=True, cache=True)
def _which(data: Bytes, at: int, end: int, texts: Bytes, bounds: NDArray[np.int64]) -> int:
    """The first of the texts that stands at `data[at]`, without regard to case; -1 if none does."""
    for number in range(len(bounds) - 1):
        size = bounds[number + 1] - bounds[number]
        if at + size > end:
            continue
        matched = 0
        while matched < size:
            byte = data[at + matched]
            if 0x41 <= byte <= 0x5A:
                byte |= np.uint8(0x20)
            if byte != texts[bounds[number] + matched]:
                break
            matched += 1
        if matched == size:
            return number
    return -1


@njit(nogil=True, cache=True)
def _line_end(data: Bytes, at: int, end: int) -> int:
    while at < end and data[at] != 10:
        at += 1
    return int(min(at + 1, end))


@njit(nogil=True, cache=True)
def _comment_end(data: Bytes, at: int, end: int, tables: _Tables) -> int:
    """Where the comment that begins at `data[at]` ends; `at` if there is none, or one without an end."""
    _, line, code, opening, closing = tables
    block = _which(data, at, end, opening[0], opening[1])
    if block >= 0:
        size = closing[1][block + 1] - closing[1][block]
        ending, bounds = closing[0][closing[1][block] : closing[1][block + 1]], np.array([0, size])
        inside = at + opening[1][block + 1] - opening[1][block]
        while inside < end:
            if _which(data, inside, end, ending, bounds) == 0:
                return int(inside + size)
            inside += 1
        return at
    is_line = _which(data, at, end, line[0], line[1]) >= 0 and _which(data, at, end, code[0], code[1]) < 0
    return _line_end(data, at, end) if is_line else at


@njit(nogil=True, cache=True)
def header_end(data: Bytes, first: int, end: int, tables: _Tables) -> int:
    """Where the header of the document `data[first:end]` ends; `first` if it has none, or is nothing else."""
    betraying = tables[0]
    at = done = first
    while at < end:
        if data[at] <= 32:
            at += 1
            continue
        comment = _comment_end(data, at, end, tables)
        if comment == at:
            break
        at = done = comment
    if at >= end:
        return first
    for place in range(first, done):
        if _which(data, place, done, betraying[0], betraying[1]) >= 0:
            return done
    return first


def header_tables() -> _Tables:
    """What `header_end` looks for."""
    return _TABLES
