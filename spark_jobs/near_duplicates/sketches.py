"""What two sketches prove of the similarity of two documents, and what they leave open.

A bin that is filled in either sketch holds the least of the union's shingles in it, and the two agree where that
shingle is common to both. The N filled bins are thus a simple random sample, without replacement, of the union (whose
size at a given similarity follows from the two numbers of shingles), and the number of agreeing ones is
hypergeometric, whose tails decide. Small documents need no chance at all: agreeing bins are different
common shingles, and filled bins different shingles of the union. Bins of different shingles agree in 1 of 255 cases,
which can only hide a difference; they are bounded by the Poisson tail.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spark_jobs.near_duplicates.settings import BINS
from spark_jobs.near_duplicates.words import unaligned

# Chance that a pair below the threshold is called similar, and that one at the threshold is called different. The
# first would remove a file without a twin; the second adds to what banding misses (5 in 1,000 at the threshold).
FALSE_SIMILAR, FALSE_DIFFERENT = 1e-9, 1e-4

DIFFERENT, UNDECIDED, SIMILAR = np.uint8(0), np.uint8(1), np.uint8(2)

_CHANCE_AGREEMENT = 1 / 255
_ROUNDING = 1e-9  # 0.7 * 17 / 1.7 is 7.000000000000001
_FEW_BINS = 4.0  # may differ at any threshold, so that agreement is never taken for proof of equality
_LOW_BITS, _EVEN_BYTES = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0x00FF00FF00FF00FF)


@njit(inline="always")
def _zero_bytes(word: np.uint64) -> np.uint64:
    """1 in each byte of the word that is 0, and 0 in the others (Warren, Hacker's Delight)."""
    return ~(((word & _LOW_BITS) + _LOW_BITS) | word | _LOW_BITS) >> np.uint64(7)


@njit(inline="always")
def _sum_of_bytes(word: np.uint64) -> int:
    pairs = (word & _EVEN_BYTES) + ((word >> np.uint64(8)) & _EVEN_BYTES)
    return int((pairs * np.uint64(0x0001000100010001)) >> np.uint64(48))


@njit(inline="always")
def _compare(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> tuple[int, int]:
    """How many bins agree, and how many are filled in either: eight at a time, in lanes of 64 bits, since numba makes
    64 bits of every byte that it adds. A byte holds the counts of BINS / 8 bins, which are 128."""
    agreeing = empty = np.uint64(0)
    for place in range(0, BINS, 8):
        one, other = np.uint64(unaligned(left, place)), np.uint64(unaligned(right, place))
        void = _zero_bytes(one | other)
        agreeing += _zero_bytes(one ^ other) ^ void
        empty += void
    return _sum_of_bytes(agreeing), BINS - _sum_of_bytes(empty)


@njit(nogil=True, cache=True)
def _mean_by_chance(filled: int, threshold: float) -> float:
    """Of the bins that differ at the threshold, how many agree by chance on average."""
    return max(filled * (1 - threshold), _FEW_BINS) * _CHANCE_AGREEMENT


@njit(nogil=True, cache=True)
def chance_agreements(filled: int, threshold: float, risk: float) -> int:
    """The number of bins, of those that differ at the threshold, that no more agree by chance at this risk."""
    mean = _mean_by_chance(filled, threshold)
    term = math.exp(-mean)
    tail, count = 1 - term, 0
    while tail > risk and count < filled:
        count += 1
        term *= mean / count
        tail -= term
    return count


@njit(nogil=True, cache=True)
def _probability(found: int, drawn: int, common: int, union: int) -> float:
    """Chance that `found` of the shingles drawn from a union, without replacement, are among its common ones."""
    return math.exp(_choose(common, found) + _choose(union - common, drawn - found) - _choose(union, drawn))


@njit(nogil=True, cache=True)
def _choose(of: int, these: int) -> float:
    """The logarithm of a binomial coefficient."""
    return math.lgamma(of + 1.0) - math.lgamma(these + 1.0) - math.lgamma(of - these + 1.0)


@njit(nogil=True, cache=True)
def _at_least(found: int, drawn: int, common: int, union: int) -> float:
    """A bound of the chance that no fewer are found: beyond the mean the terms of the tail fall faster than those of
    the geometric series that begins with its first two. 1 where `found` is not beyond the mean."""
    if found * union <= drawn * common:
        return 1.0
    if found > min(common, drawn):
        return 0.0
    ratio = (common - found) * (drawn - found) / ((found + 1.0) * (union - common - drawn + found + 1.0))
    return _probability(found, drawn, common, union) / (1 - ratio)


@njit(nogil=True, cache=True)
def _at_most(found: int, drawn: int, common: int, union: int) -> float:
    """The same of the chance that no more are found."""
    if found * union >= drawn * common:
        return 1.0
    if found < drawn - (union - common):
        return 0.0
    ratio = found * (union - common - drawn + found) / ((common - found + 1.0) * (drawn - found + 1.0))
    return _probability(found, drawn, common, union) / (1 - ratio)


@njit(nogil=True, cache=True)
def _seldom(agreeing: int, by_chance: int, drawn: int, common: int, union: int, threshold: float) -> bool:
    """Whether so many bins agree, some of them by chance, less often than FALSE_SIMILAR allows; more than `by_chance`
    do in half of that."""
    if _at_least(agreeing - by_chance, drawn, common, union) <= FALSE_SIMILAR / 2:
        return True  # the largest of the tails below, whose weights are no more than 1 together
    mean = _mean_by_chance(drawn, threshold)
    share, tail = math.exp(-mean), 0.0
    for chance in range(by_chance + 1):
        tail += share * _at_least(agreeing - chance, drawn, common, union)
        if tail > FALSE_SIMILAR / 2:
            return False
        share *= mean / (chance + 1)
    return True


@njit(nogil=True, cache=True)
def _verdict(agreeing: int, filled: int, total: int, threshold: float) -> np.uint8:
    """What so many agreeing and filled bins say of two documents with `total` shingles together."""
    if (total - filled) / filled < threshold:
        return DIFFERENT
    least = math.ceil(threshold * total / (1 + threshold) - _ROUNDING)  # common shingles of a similar pair
    short = least / (total - least) - agreeing / filled
    if short > 0:
        # Hoeffding (1963) bounds the tail too, which spares most pairs the exact one.
        if math.exp(-2 * filled * short * short) <= FALSE_DIFFERENT:
            return DIFFERENT
        return DIFFERENT if _at_most(agreeing, filled, least, total - least) <= FALSE_DIFFERENT else UNDECIDED
    by_chance = chance_agreements(filled, threshold, FALSE_SIMILAR / 2)
    common = agreeing - by_chance
    if common / (total - common) >= threshold:
        return SIMILAR
    seldom = _seldom(agreeing, by_chance, filled, least - 1, total - least + 1, threshold)
    return SIMILAR if seldom else UNDECIDED


@njit(nogil=True, cache=True)
def _judge(
    left: NDArray[np.void],
    right: NDArray[np.void],
    left_rows: NDArray[np.int64],
    right_rows: NDArray[np.int64],
    threshold: float,
    estimates: NDArray[np.float64],
    verdicts: NDArray[np.uint8],
) -> None:
    for row in range(len(left_rows)):
        one, other = left[left_rows[row]], right[right_rows[row]]
        agreeing, filled = _compare(one["sketch"], other["sketch"])
        if filled == 0:  # two documents without words are similar to none
            estimates[row], verdicts[row] = 0, DIFFERENT
            continue
        total = int(one["shingles"]) + int(other["shingles"])
        share = (agreeing / filled - _CHANCE_AGREEMENT) / (1 - _CHANCE_AGREEMENT)
        estimates[row] = min(max(share, 0.0), 1.0)
        verdicts[row] = _verdict(agreeing, filled, total, threshold)


def judge(
    left: NDArray[np.void],
    right: NDArray[np.void],
    left_rows: NDArray[np.signedinteger],
    right_rows: NDArray[np.signedinteger],
    threshold: float,
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Estimates of the similarity of pairs (n), and whether they are DIFFERENT, SIMILAR or UNDECIDED at the threshold.

    Args:
        left, right: records with the documents' `sketch` (BINS bytes) and number of distinct `shingles`.
        left_rows, right_rows: which of them make the pairs (n).
        threshold: similarity to be decided.
    """
    estimates, verdicts = np.empty(len(left_rows), np.float64), np.empty(len(left_rows), np.uint8)
    _judge(left, right, left_rows, right_rows, threshold, estimates, verdicts)
    return estimates, verdicts
