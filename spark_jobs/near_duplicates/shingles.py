r"""The sets of shingles of documents, and their exact similarity.

Words are the matches of `\w+`; shingles all runs of SHINGLE_WORDS consecutive words, as 64-bit hashes; a document
of fewer words has the one shingle of all its words, and one without words has none.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spark_jobs.near_duplicates.headers import header_end, header_tables
from spark_jobs.near_duplicates.settings import SHINGLE_WORDS, WHOLE_TEXT, Fingerprint
from spark_jobs.near_duplicates.words import Bytes, Hashes, Offsets, shingles_of, workspace
from spark_jobs.rules.characters import character_classes


@njit(nogil=True, cache=True)
def _shingle_sets(
    data: Bytes,
    offsets: Offsets,
    classes: Bytes,
    size: int,
    headers: Any,
    marks: Bytes,
    table: Hashes,
    room: Hashes,
    out: Hashes,
    bounds: Offsets,
) -> None:
    """Sorted distinct shingles of every document, end to end in `out`; `bounds` (n + 1) tell them apart."""
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        if headers is not None:
            begin = header_end(data, begin, end, headers)
        count = shingles_of(data, begin, end, size, classes, marks, table, room)
        first = bounds[row]
        out[first : first + count] = room[:count]
        out[first : first + count].sort()
        bounds[row + 1] = first + count


def shingle_sets(
    data: Bytes, offsets: Offsets, size: int = SHINGLE_WORDS, taken: Fingerprint = WHOLE_TEXT
) -> tuple[Hashes, Offsets]:
    """The sorted distinct 64-bit hashes of documents' runs of `size` words, end to end, and their n + 1 bounds.

    Args:
        data: the documents' valid UTF-8, end to end.
        offsets: n + 1 bounds of the documents in `data`.
        size: words in a run.
        taken: what is taken of a text.

    Memory is 4 bytes a byte of text, and 5 a byte of the longest document, while it runs.
    """
    out = np.empty(int(offsets[-1] - offsets[0] + len(offsets)) // 2 + len(offsets), np.uint64)
    bounds = np.zeros(len(offsets), np.int64)
    room = workspace(int(np.diff(offsets).max(initial=0)))
    headers = header_tables() if taken.strip_header else None
    _shingle_sets(data, offsets, character_classes(), size, headers, *room, out, bounds)
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
