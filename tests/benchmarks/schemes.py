"""Sketches of other schemes in the same 1,024 bytes: how far they are off, what they leave open, and what they cost.

    MinHash          a permutation a value (Broder 1997): those of datasketch 2's `affine32`
    C-MinHash        one permutation, shifted from value to value (Li and Li 2022). Here the high bits of a hash make a
                     place among 2^18 (its first permutation), and a table of random keys orders places (its second)
    densified        one-permutation hashing whose empty bins copy filled ones (Shrivastava 2017)
    one permutation  the project's: empty bins stay empty, and `sketches.py` takes the filled ones for a sample

Pairs are versions of real files and, where these are too few, real files or cuts of them with stretches of words
replaced by another file's or deleted: as many of each range of similarity in each range of the union's size. All
schemes decide at the risks of `sketches.py`. The agreement of the others is taken for binomial and held against the
similarities next to the threshold that the two sizes allow. Densified values copy each other and spread wider than
that, so what they leave open is told too low. Speed is that of words, shingles and sketch on one core.
"""

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, pairwise
from typing import NamedTuple

import corpus
import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.stats import binom

from spark_jobs.near_duplicates.fingerprints import _bins, _minima
from spark_jobs.near_duplicates.settings import BINS, SEED, SHINGLE_WORDS
from spark_jobs.near_duplicates.shingles import jaccard, shingle_sets
from spark_jobs.near_duplicates.sketches import DIFFERENT, FALSE_DIFFERENT, FALSE_SIMILAR, SIMILAR, UNDECIDED, judge
from spark_jobs.near_duplicates.words import MULTIPLIER, Bytes, Hashes, Offsets, mix, shingles_of, workspace
from spark_jobs.rules.characters import character_classes

FILES, CELL_PAIRS, THRESHOLD, TIMINGS = 3000, 400, 0.7, 3
SIMILARITIES, UNIONS = (0.0, 0.3, 0.5, 0.65, 0.75, 0.9, 1.0), (1, 51, 501)  # where ranges begin
CUTS = (1_000_000, 1_000_000, 1_000_000, 400, 400, 40, 40)  # words at most of a cut; an eighth at least
PLACE_BITS = 18

_EMPTY, _HALF = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(32)
_ODD = np.uint32(0x9E3779B1)


class Scheme(NamedTuple):
    """How a document's shingles become so many values of so many bits."""

    name: str
    values: int
    bits: int
    sketch: Callable[[Hashes, Offsets, NDArray], None]


class Pairs(NamedTuple):
    """Documents that are compared, their numbers of shingles (pairs, 2), and what is true of them."""

    left: Offsets
    right: Offsets
    sizes: Offsets
    similarity: NDArray[np.float64]
    union: Offsets


@njit(nogil=True, cache=True)
def _shingles(data: Bytes, offsets: Offsets, size: int, classes: Bytes, room: tuple, out: Hashes) -> Offsets:
    """What every scheme starts from: distinct shingles in the order of the text, end to end, and their bounds."""
    bounds = np.zeros(len(offsets), np.int64)
    for row in range(len(offsets) - 1):
        count = shingles_of(data, offsets[row], offsets[row + 1], size, classes, *room)
        bounds[row + 1] = bounds[row] + count
        out[bounds[row] : bounds[row + 1]] = room[2][:count]
    return bounds


@njit(nogil=True, cache=True)
def _affine(shingles: Hashes, bounds: Offsets, factors: NDArray, addends: NDArray, out: NDArray[np.uint32]) -> None:
    mixed = np.empty(np.diff(bounds).max(), np.uint32)
    for row in range(len(out)):
        _minima(shingles[bounds[row] : bounds[row + 1]], factors, addends, mixed, out[row])


@njit(nogil=True, cache=True)
def _shifted(places: Offsets, bounds: Offsets, keys: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    """The least key at each shift, of four shingles at once: one alone waits for memory."""
    size = out.shape[1]
    for row in range(len(out)):
        least, last = out[row], bounds[row + 1] - 1
        least[:] = 0xFFFFFFFF
        for number in range(bounds[row], bounds[row + 1], 4):
            a, b = places[number], places[min(number + 1, last)]
            c, d = places[min(number + 2, last)], places[min(number + 3, last)]
            one, two, three, four = keys[a : a + size], keys[b : b + size], keys[c : c + size], keys[d : d + size]
            for shift in range(size):
                least[shift] = min(least[shift], min(min(one[shift], two[shift]), min(three[shift], four[shift])))


@njit(nogil=True, cache=True)
def densified(shingles: Hashes, bounds: Offsets, out: NDArray[np.uint32]) -> None:
    """The least shingle of each bin; an empty bin tries others in an order of its own until one is filled."""
    least = np.empty(out.shape[1], np.uint64)
    bins = np.uint64(len(least))
    for row in range(len(out)):
        least[:] = _EMPTY
        for number in range(bounds[row], bounds[row + 1]):
            place = (shingles[number] >> _HALF) * bins >> _HALF
            least[place] = min(least[place], shingles[number])
        for place in range(len(least)):
            source, tries = np.uint64(place), np.uint64(0)
            while least[source] == _EMPTY:
                tries += np.uint64(1)
                source = mix(np.uint64(place + 1) * MULTIPLIER + tries) % bins
            out[row, place] = np.uint32(least[source])


@njit(nogil=True, cache=True)
def one_permutation(shingles: Hashes, bounds: Offsets, out: NDArray[np.uint8]) -> None:
    """The project's sketch."""
    least = np.empty(out.shape[1], np.uint64)
    for row in range(len(out)):
        _bins(shingles[bounds[row] : bounds[row + 1]], least, out[row])


def minhash(shingles: Hashes, bounds: Offsets, out: NDArray[np.uint32]) -> None:
    """The least value of each permutation, which are drawn as the project's are."""
    random = np.random.RandomState(SEED)
    factors = random.randint(0, 1 << 31, size=(out.shape[1],), dtype=np.uint32)
    addends = random.randint(0, 1 << 32, size=(out.shape[1],), dtype=np.uint32)
    _affine(shingles, bounds, factors * np.uint32(2) + np.uint32(1), addends, out)


def circulant(shingles: Hashes, bounds: Offsets, out: NDArray[np.uint32]) -> None:
    """The least key at each shift; keys are random, so that they order the places, and next to none are equal."""
    keys = np.random.default_rng(SEED).integers(0, 1 << 32, 1 << PLACE_BITS, dtype=np.uint32)
    places = (shingles[: bounds[-1]] >> np.uint64(64 - PLACE_BITS)).astype(np.int64)
    _shifted(places, bounds, np.concatenate([keys, keys[: out.shape[1]]]), out)


SCHEMES = [
    Scheme("MinHash", 256, 32, minhash),
    Scheme("C-MinHash", 256, 32, circulant),
    Scheme("densified", 256, 32, densified),
    Scheme("MinHash", 1024, 8, minhash),
    Scheme("C-MinHash", 1024, 8, circulant),
    Scheme("densified", 1024, 8, densified),
    Scheme("one permutation", BINS, 8, one_permutation),
]


def sketches_of(scheme: Scheme, shingles: Hashes, bounds: Offsets) -> NDArray:
    """One row a document; of values that are not bytes yet, `compared` takes the bits."""
    out = np.empty((len(bounds) - 1, scheme.values), np.uint8 if scheme.sketch is one_permutation else np.uint32)
    scheme.sketch(shingles, bounds, out)
    return out


def compared(scheme: Scheme, sketches: NDArray, pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Estimates and verdicts; for all schemes, a pair whose sizes alone refute it is different."""
    total, rows = pairs.sizes.sum(axis=1), np.arange(len(pairs.left))
    needed = np.ceil(THRESHOLD * total / (1 + THRESHOLD) - 1e-9)  # common shingles
    if scheme.sketch is one_permutation:
        left, right = np.zeros((2, len(rows)), [("shingles", "<i8"), ("sketch", "u1", BINS)])
        left["shingles"], right["shingles"] = pairs.sizes.T
        left["sketch"], right["sketch"] = sketches[pairs.left], sketches[pairs.right]
        estimates, verdicts = judge(left, right, rows, rows, THRESHOLD)
    else:
        # The low bits of affine values depend on no others: those of all permutations would agree at once.
        kept = (sketches * _ODD >> np.uint32(32 - scheme.bits)).astype(f"u{scheme.bits // 8}")
        agreeing, chance = (kept[pairs.left] == kept[pairs.right]).sum(axis=1), 2.0**-scheme.bits
        estimates = np.maximum(agreeing / scheme.values - chance, 0) / (1 - chance)
        below, above = (chance + (1 - chance) * common / (total - common) for common in (needed - 1, needed))
        similar = binom.sf(agreeing - 1, scheme.values, below) <= FALSE_SIMILAR
        different = binom.cdf(agreeing, scheme.values, above) <= FALSE_DIFFERENT
        verdicts = np.where(similar, SIMILAR, np.where(different, DIFFERENT, UNDECIDED))
    return estimates, np.where(needed > pairs.sizes.min(axis=1), DIFFERENT, verdicts)


def real_files() -> tuple[list[str], list[tuple[int, int]]]:
    """Files of randomly chosen families that have words, and the pairs of versions of a file."""
    table = corpus.read(corpus.BENCH / "corpus" / "accuracy")
    families = np.array([corpus.File(b"", "", path).family for path in table["path"].to_pylist()])
    rows = np.argsort(families, kind="stable")[:FILES]
    named = zip(table["content"].take(rows).to_pylist(), families[rows].tolist(), strict=True)
    texts, names = zip(*((text, name) for text, name in named if re.search(r"\w", text)), strict=True)
    starts = np.flatnonzero(np.diff([-1, *names, 2]))
    return list(texts), [pair for span in pairwise(starts.tolist()) for pair in combinations(range(*span), 2)]


def made_pairs(texts: list[str]) -> Iterator[tuple[str, str]]:
    """Cuts of every file, each beside a variant of it."""
    random, words = np.random.default_rng(SEED), [re.findall(r"\w+", text) for text in texts]
    for most in CUTS:
        for file, donor in zip(words, random.permutation(len(words)).tolist(), strict=True):
            length = int(random.integers(most // 8, most + 1))
            first = int(random.integers(max(len(file) - length, 0) + 1))
            cut = file[first : first + length]
            yield " ".join(cut), " ".join(_variant(cut, words[donor], random))


def _variant(words: list[str], donor: list[str], random: np.random.Generator) -> list[str]:
    """The words with up to three stretches replaced or deleted, so that any range of similarity is as likely."""
    bound, stretches = int(random.integers(1, len(SIMILARITIES))), int(random.integers(1, 4))
    similarity = random.uniform(SIMILARITIES[bound - 1], SIMILARITIES[bound])
    changed = len(words) * (1 - similarity) / (1 + similarity)
    length = max(1, round(changed / stretches) - (SHINGLE_WORDS - 1))
    for part in reversed(range(stretches)):
        first, end = (len(words) * number // stretches for number in (part, part + 1))
        free = max(end - first - length, 0)
        at = first + int(random.choice([0, int(random.integers(free + 1)), free]))
        taken = int(random.integers(len(donor))) if random.random() < 0.7 else len(donor)
        words = words[:at] + donor[taken : taken + length] + words[at + length :]
    return words or donor[:1]


def balanced_pairs(left: Offsets, right: Offsets, data: Bytes, offsets: Offsets) -> Pairs:
    """The first pairs of every cell; without those of equal sets, which no scheme gets wrong."""
    hashes, bounds = shingle_sets(data, offsets)
    similarity, sizes = jaccard(hashes, bounds, left, right), np.diff(bounds)[np.stack([left, right], axis=1)]
    union = np.rint(sizes.sum(axis=1) / (1 + similarity)).astype(np.int64)
    cell = len(UNIONS) * np.digitize(similarity, SIMILARITIES) + np.digitize(union, UNIONS)
    cells = range(len(UNIONS) + 1, len(UNIONS) * len(SIMILARITIES) + 1)
    chosen = [np.flatnonzero((cell == number) & (similarity < 1))[:CELL_PAIRS] for number in cells]
    assert {len(rows) for rows in chosen} == {CELL_PAIRS}, "too few pairs in a cell"
    rows = np.concatenate(chosen)
    return Pairs(left[rows], right[rows], sizes[rows], similarity[rows], union[rows])


def figures(scheme: Scheme, sketches: NDArray, pairs: Pairs) -> list[str]:
    """The columns of `markdown` but the first and the last."""
    estimates, verdicts = compared(scheme, sketches, pairs)
    errors, ranges = 1000 * (estimates - pairs.similarity), np.digitize(pairs.similarity, SIMILARITIES)
    unions = [np.digitize(pairs.union, UNIONS) == number for number in range(1, len(UNIONS) + 1)]
    groups = [*(ranges == number for number in range(1, len(SIMILARITIES))), *unions]
    told = [f"{np.sqrt((errors[group] ** 2).mean()):.0f} ({errors[group].mean():+.1f})" for group in groups]
    told += [f"{(verdicts[group] == UNDECIDED).mean():.0%}" for group in unions]
    wrong = np.where(pairs.similarity >= THRESHOLD, DIFFERENT, SIMILAR) == verdicts
    return [*told, f"{wrong.sum()}"]


def seconds(work: Callable[[], object]) -> float:
    """What the processor takes, at best."""
    taken = []
    for _ in range(TIMINGS):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def markdown(rows: list[list[str]]) -> str:
    """The table: errors by similarity and by union, the share of pairs left open by union, wrong verdicts, speed."""
    ranges = [f"{low:g}–{high:g}" for low, high in pairwise(SIMILARITIES)]
    unions = [*(f"{low}–{high - 1}" for low, high in pairwise(UNIONS)), f"from {UNIONS[-1]}"]
    told = [*ranges, *(f"union {each}" for each in unions), *(f"open, {each}" for each in unions)]
    names = ["RMSE (bias), thousandths", *told, "wrong", "MB/s"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [names, ["---", *["--:"] * (len(names) - 1)], *rows])


def main() -> None:
    texts, near = real_files()
    made = [text for pair in made_pairs(texts) for text in pair]
    first, last = len(texts), len(texts) + len(made)
    left, right = np.array([*near, *zip(range(first, last, 2), range(first + 1, last, 2), strict=True)]).T.copy()
    encoded = [text.encode() for text in [*texts, *made]]
    data, offsets = np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)])
    pairs = balanced_pairs(left, right, data, offsets)
    room, shingles = workspace(max(map(len, encoded))), np.empty(int(offsets[-1]), np.uint64)

    def shingled(documents: int) -> Offsets:
        return _shingles(data, offsets[: documents + 1], SHINGLE_WORDS, character_classes(), room, shingles)

    bounds, rows = shingled(last), []
    before = seconds(partial(shingled, first))
    for scheme in SCHEMES:
        taken = before + seconds(partial(sketches_of, scheme, shingles, bounds[: first + 1]))
        told = figures(scheme, sketches_of(scheme, shingles, bounds), pairs)
        name, speed = f"{scheme.name}, {scheme.values:,} × {scheme.bits} bits", f"{offsets[first] / 1e6 / taken:,.0f}"
        rows.append([name, *told, speed])
    print(markdown(rows))


if __name__ == "__main__":
    main()
