"""The truth: all pairs of files whose sets of shingles are similar, found exactly, and what it says of a result.

No sketch, no band and nothing of spark_jobs is in it: words become numbers in a dictionary, runs of five become
numbers of shingles by exact factorization, and a prefix filter (AllPairs: Bayardo, Ma and Srikant 2007) finds the
pairs. A set of n shingles that is t similar to another shares with it one of its n - ceil(t n) + 1 rarest, so only
sets that share a rare shingle are compared. `check` holds the result against tests/oracles.py.
"""

import re
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numba import njit
from oracles import SHINGLE_WORDS, jaccard_of, shingles_of

ROUNDING = 1e-9  # 0.7 * 10 is 7.000000000000001 in floating point


class Truth(NamedTuple):
    """Distinct contents of a corpus and the pairs of them that are at least `threshold` similar."""

    content: np.ndarray  # (rows,) number of the row's content, by first appearance
    left: np.ndarray  # (pairs,) numbers of contents, left < right
    right: np.ndarray
    similarity: np.ndarray  # (pairs,)

    def at(self, threshold: float) -> "Truth":
        """The same for a higher threshold."""
        return Truth(self.content, *(each[self.similarity >= threshold] for each in self[1:]))


def similar_pairs(texts: pa.ChunkedArray, threshold: float) -> Truth:
    """All pairs of distinct contents with similarity >= threshold. Files without words are similar to none."""
    content, distinct = pd.factorize(texts.to_pandas())
    shingles, bounds = _shingle_sets(list(distinct))
    order = np.argsort(np.diff(bounds), kind="stable")
    left, right, similarity = _join(shingles, bounds, order, threshold)
    return Truth(content, np.minimum(left, right), np.maximum(left, right), similarity)


def check(truth: Truth, texts: pa.ChunkedArray, rows: np.ndarray, threshold: float) -> int:
    """Number of pairs among these rows, after asserting that comparing all of them in plain Python finds the same."""
    numbers = np.unique(truth.content[rows])
    first_row = dict(zip(truth.content[::-1].tolist(), range(len(truth.content) - 1, -1, -1), strict=True))
    sets = {number: shingles_of(texts[first_row[number]].as_py()) for number in numbers.tolist()}
    expected = {}
    for one, other in combinations(sets, 2):
        similarity = jaccard_of(sets[one], sets[other])
        if similarity >= threshold:
            expected[one, other] = similarity
    among = np.isin(truth.left, numbers) & np.isin(truth.right, numbers)
    pairs = zip(truth.left[among].tolist(), truth.right[among].tolist(), strict=True)
    found = dict(zip(pairs, truth.similarity[among].tolist(), strict=True))
    assert found == expected, f"the exact join found {len(found)} pairs where brute force finds {len(expected)}"
    return len(found)


def _shingle_sets(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct shingle numbers of all texts end to end, each text's from the rarest to the commonest, and bounds."""
    words, lengths = _word_numbers(texts)
    ends = np.cumsum(lengths)
    pairs = _exact_numbers(words[:-1], words[1:])
    fours = _exact_numbers(pairs[:-2], pairs[2:])
    shingles = _exact_numbers(fours[:-1], words[SHINGLE_WORDS - 1 :])
    text = np.repeat(np.arange(len(texts)), lengths)[: len(shingles)]
    whole = np.arange(len(shingles)) + SHINGLE_WORDS <= ends[text]
    distinct = pd.unique(text[whole] * (len(words) + 1) + shingles[whole])  # a text and a shingle in one integer
    text, shingle = np.divmod(distinct, len(words) + 1)
    files = np.bincount(shingle)
    rank = np.empty(len(files), np.int64)
    rank[np.argsort(files, kind="stable")] = np.arange(len(files))
    ordered = np.lexsort((rank[shingle], text))
    return rank[shingle[ordered]], np.searchsorted(text[ordered], np.arange(len(texts) + 1))


def _word_numbers(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of all words end to end, and words per text.

    A text of one to four words is filled up with a number that no word has, and so has the one shingle of its words.
    """
    vocabulary: dict[str, int] = {}
    numbers, lengths = [], []
    for text in texts:
        words = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in re.findall(r"\w+", text)]
        if words:
            words += [0] * (SHINGLE_WORDS - len(words))
        numbers.append(np.array(words, np.int64))
        lengths.append(len(words))
    return np.concatenate(numbers), np.array(lengths)


def _exact_numbers(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """One number for each pair of numbers, equal where the pairs are."""
    return pd.factorize(left * (int(right.max()) + 1) + right)[0]


@njit(cache=True)
def _join(
    shingles: np.ndarray, bounds: np.ndarray, order: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk the sets from small to large; compare each with the earlier ones that share a shingle of both prefixes."""
    head = np.full(shingles.max() + 1, -1)  # the last posting of a shingle, each of which names the one before
    before = np.empty(len(shingles), np.int64)
    owner = np.empty(len(shingles), np.int64)
    postings = 0
    compared = np.full(len(bounds), -1)
    left, right, similarity = [np.int64(0) for _ in range(0)], [np.int64(0) for _ in range(0)], [0.0 for _ in range(0)]
    for one in order:
        begin, size = bounds[one], bounds[one + 1] - bounds[one]
        prefix = size - int(np.ceil(threshold * size - ROUNDING)) + 1 if size else 0
        for at in range(begin, begin + prefix):
            shingle = shingles[at]
            posting = head[shingle]
            while posting >= 0:
                other = owner[posting]
                if bounds[other + 1] - bounds[other] < threshold * size - ROUNDING:
                    break  # those before are smaller still
                if compared[other] != one:
                    compared[other] = one
                    jaccard = _jaccard(shingles, begin, bounds[one + 1], bounds[other], bounds[other + 1], threshold)
                    if jaccard >= threshold:
                        left.append(one)
                        right.append(other)
                        similarity.append(jaccard)
                posting = before[posting]
            owner[postings], before[postings], head[shingle] = one, head[shingle], postings
            postings += 1
    return np.array(left), np.array(right), np.array(similarity)


@njit(cache=True)
def _jaccard(shingles: np.ndarray, a: int, a_end: int, b: int, b_end: int, threshold: float) -> float:
    """Similarity of two sorted runs, or 0 as soon as the threshold is out of reach."""
    total = (a_end - a) + (b_end - b)
    needed = threshold / (1 + threshold) * total - ROUNDING  # of shared shingles
    both = 0
    while a < a_end and b < b_end:
        if both + min(a_end - a, b_end - b) < needed:
            return 0.0
        first, second = shingles[a], shingles[b]
        both += first == second
        a += first <= second
        b += second <= first
    return both / (total - both)
