"""What two sketches prove of the similarity of two documents, and what they leave open.

A bin that is filled in either sketch holds the least of the union's shingles in it, and the two agree where that
shingle is common to both. The N filled bins are thus a simple random sample, without replacement, of the union (whose
size at a given similarity follows from the two numbers of shingles), and the number of agreeing ones is
hypergeometric; Serfling (1974) bounds its tail. Small documents need no chance at all: agreeing bins are different
common shingles, and filled bins different shingles of the union. Bins of different shingles agree in 1 of 255 cases,
which can only hide a difference; they are bounded by the Poisson tail.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from spark_jobs.near_duplicates.settings import BINS

# Chance that a pair below the threshold is called similar, and that one at the threshold is called different. The
# first would remove a file without a twin; the second adds to what banding misses (5 in 1,000 at the threshold).
FALSE_SIMILAR, FALSE_DIFFERENT = 1e-9, 1e-4

DIFFERENT, UNDECIDED, SIMILAR = np.uint8(0), np.uint8(1), np.uint8(2)

_CHANCE_AGREEMENT = 1 / 255
_FEW_BINS = 4.0  # may differ at any threshold, so that agreement is never taken for proof of equality
_BLOCK = 128  # counts of a block fit a byte, so that the comparison runs on as many lanes as a register has bytes


@njit(inline="always")
def _compare(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> tuple[int, int]:
    """How many bins agree, and how many are filled in either."""
    agreeing = empty = 0
    for block in range(0, BINS, _BLOCK):
        agree, void = np.uint8(0), np.uint8(0)
        for place in range(block, block + _BLOCK):
            one, other = left[place], right[place]
            agree += np.uint8((one == other) & (one != 0))
            void += np.uint8((one | other) == 0)
        agreeing += int(agree)
        empty += int(void)
    return agreeing, BINS - empty


@njit(nogil=True, cache=True)
def chance_agreements(filled: int, threshold: float, risk: float) -> int:
    """The number of bins, of those that differ at the threshold, that no more agree by chance at this risk."""
    mean = max(filled * (1 - threshold), _FEW_BINS) * _CHANCE_AGREEMENT
    term = math.exp(-mean)
    tail, count = 1 - term, 0
    while tail > risk and count < filled:
        count += 1
        term *= mean / count
        tail -= term
    return count


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
        total = np.int64(one["shingles"]) + np.int64(other["shingles"])
        share = (agreeing / filled - _CHANCE_AGREEMENT) / (1 - _CHANCE_AGREEMENT)
        estimates[row] = min(max(share, 0.0), 1.0)
        union = total / (1 + threshold)
        spread = math.sqrt(max(1 - (filled - 1) / union, 0.0) / (2 * filled))
        common = agreeing - chance_agreements(filled, threshold, FALSE_SIMILAR / 2)
        proven = common / (total - common) >= threshold
        likely = common >= filled * (threshold + spread * math.sqrt(-math.log(FALSE_SIMILAR / 2)))
        refuted = (total - filled) / filled < threshold
        unlikely = agreeing < filled * (threshold - spread * math.sqrt(-math.log(FALSE_DIFFERENT)))
        if refuted or unlikely:
            verdicts[row] = DIFFERENT
        elif proven or likely:
            verdicts[row] = SIMILAR
        else:
            verdicts[row] = UNDECIDED


def judge(
    left: NDArray[np.void],
    right: NDArray[np.void],
    left_rows: NDArray[np.int64],
    right_rows: NDArray[np.int64],
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
