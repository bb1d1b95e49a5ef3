"""What sketches prove, against exact similarities: over all degrees of similarity, sizes and thresholds."""

import math
import random
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pytest
from oracles import jaccard_of, shingles_of

from spark_jobs.content import text_buffers
from spark_jobs.near_duplicates.fingerprints import _bins, fingerprints
from spark_jobs.near_duplicates.records import SKETCHED
from spark_jobs.near_duplicates.settings import BINS, Fingerprint
from spark_jobs.near_duplicates.sketches import (
    DIFFERENT,
    FALSE_DIFFERENT,
    FALSE_SIMILAR,
    SIMILAR,
    UNDECIDED,
    chance_agreements,
    judge,
)

THRESHOLDS = (0.05, 0.5, 0.7, 0.85, 1.0)
MOST_SHINGLES = 3000


def sketched(sets):
    """Sketches of sets of random hashes, as a text's shingles are."""
    records, least = np.zeros(len(sets), SKETCHED), np.empty(BINS, np.uint64)
    for record, hashes in zip(records, sets, strict=True):
        record["shingles"] = len(hashes)
        _bins(hashes, least, record["sketch"])
    return records


def overlapping(draw, common, left_alone, right_alone):
    """Sketches of pairs of sets that have so many hashes in common and so many alone, and their similarities."""
    lefts, rights = [], []
    for both, left, right in zip(common, left_alone, right_alone, strict=True):
        hashes = draw.integers(0, 1 << 64, both + left + right, dtype=np.uint64)
        lefts.append(hashes[: both + left])
        rights.append(np.concatenate([hashes[:both], hashes[both + left :]]))
    return sketched(lefts), sketched(rights), common / (common + left_alone + right_alone)


def pairs_near(draw, similarity, spread, count, most=MOST_SHINGLES):
    """Pairs of any sizes up to `most`, small ones as often as large ones, and of similarities around that one."""
    union = np.exp(draw.uniform(0, np.log(most), count)).astype(np.int64)
    wanted = similarity + draw.uniform(-spread, spread, count)
    common = np.clip(np.round(union * wanted), 0, union).astype(np.int64)
    left_alone = draw.integers(0, union - common + 1)
    right_alone = union - common - left_alone
    empty = (common == 0) & ((left_alone == 0) | (right_alone == 0))  # two documents that have words
    return overlapping(draw, common, left_alone + empty, right_alone + empty)


def judged(left, right, threshold):
    rows = np.arange(len(left))
    estimates, verdicts = judge(left, right, rows, rows, threshold)
    assert ((estimates >= 0) & (estimates <= 1)).all()
    assert np.isin(verdicts, [DIFFERENT, UNDECIDED, SIMILAR]).all()
    return estimates, verdicts


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_verdicts_are_never_wrong_near_the_threshold(threshold):
    """A pair at the threshold is called different once in 10,000 cases at most: the bound is generous by far."""
    draw = np.random.default_rng(17)
    for spread in (0.01, 0.05):
        left, right, similarities = pairs_near(draw, threshold, spread, 10_000)
        for one, other in ((left, right), (right, left)):
            _, verdicts = judged(one, other, threshold)
            assert not ((verdicts == SIMILAR) & (similarities < threshold)).any()
            assert not ((verdicts == DIFFERENT) & (similarities >= threshold)).any()
        assert 0.2 < (similarities >= threshold).mean() < 0.8 or threshold == 1


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_verdicts_are_never_wrong_at_any_similarity(threshold):
    draw = np.random.default_rng(18)
    left, right, similarities = pairs_near(draw, 0.5, 0.5, 10_000)
    _, verdicts = judged(left, right, threshold)
    assert not ((verdicts == SIMILAR) & (similarities < threshold)).any()
    assert not ((verdicts == DIFFERENT) & (similarities >= threshold)).any()


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.55, 0.56, 0.7, 0.85])
def test_pairs_just_at_the_threshold_are_never_different(threshold):
    """Of all sizes that can be just there: the bound itself must not be lost in rounding."""
    step = {0.05: 20, 0.5: 2, 0.55: 20, 0.56: 25, 0.7: 10, 0.85: 20}[threshold]
    draw = np.random.default_rng(19)
    union = np.tile(np.arange(step, MOST_SHINGLES, step), 10)
    common = np.round(union * threshold).astype(np.int64)
    left_alone = draw.integers(0, union - common + 1)
    left, right, similarities = overlapping(draw, common, left_alone, union - common - left_alone)
    assert (similarities >= threshold).all()
    assert (judged(left, right, threshold)[1] != DIFFERENT).all()
    # One shingle less in common is too few, and never called similar.
    less = common > 1
    left, right, similarities = overlapping(
        draw, common[less] - 1, left_alone[less] + 1, (union - common - left_alone)[less]
    )
    assert (similarities < threshold).all()
    assert (judged(left, right, threshold)[1] != SIMILAR).all()


def test_texts_are_judged_as_their_exact_similarities_say():
    draw, documents = random.Random(3), []
    for _ in range(300):
        words = [f"w{draw.randrange(10**6)}" for _ in range(int(math.exp(draw.uniform(0, 8))))]
        changed = words[draw.randrange(len(words) // 4 + 1) :]
        for _ in range(int(len(changed) * draw.choice([0, 0.01, 0.03, 0.1, 0.3]))):
            changed[draw.randrange(len(changed))] = "other"
        documents += [" ".join(words), " ".join(changed)]
    found = fingerprints(*text_buffers(pa.array(documents)), Fingerprint())
    sets = [shingles_of(document) for document in documents]
    similarities = np.array([jaccard_of(one, other) for one, other in zip(sets[::2], sets[1::2], strict=True)])
    unions = np.array([len(one | other) for one, other in zip(sets[::2], sets[1::2], strict=True)])
    assert max(map(len, sets)) > 2000
    assert 0.2 < (similarities >= 0.7).mean() < 0.8
    rows = np.arange(0, len(documents), 2)
    for threshold in THRESHOLDS:
        estimates, verdicts = judge(found, found, rows, rows + 1, threshold)
        assert not ((verdicts == SIMILAR) & (similarities < threshold)).any()
        assert not ((verdicts == DIFFERENT) & (similarities >= threshold)).any()
        errors = np.abs(estimates - similarities)
        assert errors[unions >= 20].max() < 0.1
        assert (errors * unions)[unions < 20].max() <= 2  # two of few shingles share a bin: one is not seen
        assert errors.mean() < 0.02


@pytest.mark.parametrize("shingles", [1, 5, 40, 300, 1000, 3000])
def test_estimates_are_right_on_average(shingles):
    """Chance agreements are taken out as if all bins were filled: few shingles are estimated too low, by 1/255."""
    draw, count = np.random.default_rng(shingles), 3000
    common = draw.integers(shingles // 4, shingles + 1, count)
    left_alone = draw.integers(0, shingles - common + 1)
    left_alone += common + left_alone == 0
    right_alone = shingles - common - left_alone
    right_alone += common + right_alone <= 0
    left, right, similarities = overlapping(draw, common, left_alone, np.maximum(right_alone, 0))
    errors = judged(left, right, 0.7)[0] - similarities
    deviation = errors.std() / math.sqrt(count)
    assert -(1 - similarities).mean() / 254 - 4 * deviation - 1e-12 <= errors.mean() <= 4 * deviation + 1e-12
    # The spread is that of a sample of as many as there are bins at most, drawn without replacement.
    bins = min(shingles, BINS)
    assert errors.std() < 1.1 * math.sqrt((similarities * (1 - similarities)).mean() / bins) + 1 / 255


@pytest.mark.parametrize(("threshold", "least"), [(0.05, 5), (0.5, 15), (0.7, 50), (0.85, 200), (1.0, 3001)])
def test_identical_documents_are_similar(threshold, least):
    """All above a size that grows with the threshold; none of any size is different."""
    draw = np.random.default_rng(20)
    sizes = np.arange(1, MOST_SHINGLES + 1)
    files = sketched([draw.integers(0, 1 << 64, size, dtype=np.uint64) for size in sizes])
    estimates, verdicts = judged(files, files, threshold)
    assert (estimates == 1).all()
    assert (verdicts != DIFFERENT).all()
    assert (verdicts[sizes >= least] == SIMILAR).all()


def test_documents_that_have_nothing_in_common_are_never_similar():
    draw = np.random.default_rng(21)
    sizes = np.exp(draw.uniform(0, np.log(MOST_SHINGLES), (2, 5000))).astype(np.int64)
    left, right, similarities = overlapping(draw, np.zeros(5000, np.int64), *sizes)
    assert not similarities.any()
    for threshold in THRESHOLDS:
        verdicts = judged(left, right, threshold)[1]
        assert (verdicts != SIMILAR).all()
        assert (verdicts == DIFFERENT).mean() > (0.99 if threshold >= 0.5 else 0.6)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85])
def test_small_documents_and_distant_pairs_are_mostly_decided(threshold):
    draw = np.random.default_rng(22)
    left, right, similarities = pairs_near(draw, 0.5, 0.5, 4000, most=50)
    verdicts = judged(left, right, threshold)[1]
    assert (verdicts[similarities < threshold] == DIFFERENT).mean() > 0.85
    assert (verdicts != UNDECIDED).mean() > 0.45
    left, right, similarities = pairs_near(draw, 0.5, 0.5, 4000)
    large = np.minimum(left["shingles"], right["shingles"]) >= 1000
    distant = (similarities < threshold - 0.12) | (similarities > threshold + 0.18)
    assert (large & distant).sum() > 100
    assert (judged(left, right, threshold)[1][large & distant] != UNDECIDED).all()


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.7, 0.85])
def test_verdicts_follow_similarity(threshold):
    """Of pairs that differ in nothing else, none that is more similar is judged worse."""
    common = np.arange(0, 901, 10)
    hashes = np.random.default_rng(23).integers(0, 1 << 64, 2000, dtype=np.uint64)
    files = sketched([hashes[: both + 50] for both in common])
    others = sketched([np.concatenate([hashes[:both], hashes[1000 : 1050 + 900 - both]]) for both in common])
    estimates, verdicts = judged(files, others, threshold)
    similarities = common / 1000
    assert np.corrcoef(estimates, similarities)[0, 1] > 0.99
    far = np.abs(similarities - threshold) > 0.2
    assert (verdicts[far] == np.where(similarities[far] > threshold, SIMILAR, DIFFERENT)).mean() > 0.9
    assert (np.diff(verdicts.astype(int)) >= 0).mean() > 0.95


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_documents_without_words_are_similar_to_none(threshold):
    draw = np.random.default_rng(24)
    files = sketched([draw.integers(0, 1 << 64, size, dtype=np.uint64) for size in (*range(200), 1000, 3000)])
    none = np.zeros(len(files), np.int64)
    everyone = np.arange(len(files))
    for left, right in ((none, everyone), (everyone, none)):
        estimates, verdicts = judge(files, files, left, right, threshold)
        assert not estimates.any()
        assert verdicts[0] == DIFFERENT
        assert (verdicts == DIFFERENT).all() or (threshold < 0.5 and (verdicts != SIMILAR).all())


def test_no_pairs_are_judged():
    rows = np.empty(0, np.int64)
    estimates, verdicts = judge(sketched([]), sketched([]), rows, rows, 0.7)
    assert (estimates.tolist(), verdicts.tolist()) == ([], [])


def test_pairs_are_those_of_their_rows():
    draw = np.random.default_rng(25)
    left, right, _ = pairs_near(draw, 0.7, 0.3, 200)
    whole = judged(left, right, 0.7)
    rows = draw.integers(0, 200, 500)
    moved = draw.permutation(200)
    places = np.argsort(moved)
    found = judge(left, right[moved], rows, places[rows], 0.7)
    for column, expected in zip(found, whole, strict=True):
        assert (column == expected[rows]).all()


def poisson_tail(mean, count):
    """Probability of more than `count`."""
    terms = (math.exp(-mean + number * math.log(mean) - math.lgamma(number + 1)) for number in range(count + 1, 400))
    return math.fsum(terms)


def test_chance_agreements_are_the_poisson_quantile():
    for threshold in (0.05, 0.3, 0.5, 0.7, 0.85, 0.99):
        for filled in (1, 2, 3, 5, 10, 30, 100, 300, 700, BINS):
            for risk in (0.3, 0.01, FALSE_DIFFERENT, FALSE_SIMILAR, FALSE_SIMILAR / 2):
                mean = max(filled * (1 - threshold), 4) / 255  # a few bins may differ at any threshold
                count = chance_agreements(filled, threshold, risk)
                assert count == filled or poisson_tail(mean, count) <= risk
                assert count == 0 or poisson_tail(mean, count - 1) > risk
    assert chance_agreements(BINS, 1.0, FALSE_SIMILAR) > 0


def test_agreement_by_chance_is_no_proof_of_equality():
    """Of two million pairs of small files that differ in one shingle, some agree in every bin."""
    shared = np.random.default_rng(27).integers(0, 1 << 64, 19, dtype=np.uint64)
    alone = np.random.default_rng(28).integers(0, 1 << 64, 2000, dtype=np.uint64)
    files = sketched([np.append(shared, one) for one in alone])
    left, right = np.triu_indices(len(files), 1)
    _, verdicts = judge(files, files, left, right, 1.0)
    assert (verdicts != SIMILAR).all()
    assert len(np.unique(files["sketch"], axis=0)) < len(files)  # some do


def test_different_shingles_agree_as_often_as_is_allowed_for():
    """The model that chance agreements rest on: 1 in 255 bins that both sketches fill."""
    draw = np.random.default_rng(26)
    files = sketched([draw.integers(0, 1 << 64, 5000, dtype=np.uint64) for _ in range(400)])["sketch"]
    left, right = files[::2], files[1::2]
    both = (left > 0) & (right > 0)
    expected, seen = both.sum() / 255, (both & (left == right)).sum()
    assert abs(seen - expected) < NormalDist().inv_cdf(1 - 1e-6) * math.sqrt(expected)
    counts = np.bincount(files[files > 0], minlength=256)[1:]
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 254 + 5 * math.sqrt(2 * 254)  # all 255 values are as likely
