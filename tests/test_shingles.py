"""Words, shingles and sketches against plain Python and datasketch, bit for bit."""

import itertools
import random

import numpy as np
import pyarrow as pa
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import jaccard_of, shingles_of

from spark_jobs.content import text_buffers
from spark_jobs.near_duplicates.candidates import BANDS, ROWS, band_digests, recall
from spark_jobs.near_duplicates.shingles import PERMUTATIONS, SEED, jaccard, shingle_sets, sketches

WORDS = ["a", "A", "b", "_", "x_1", "é", "e\u0301", "日本", "𝔘", "١٢", "word"]
GAPS = [" ", "\n", "\r\n", ".", "—", "\u2028", "🙂", "\0", " (", "\t\t"]
words_apart = st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)).map("".join)
small_texts = st.lists(words_apart, max_size=6).map("".join)
texts = small_texts | st.lists(words_apart, max_size=40).map("".join) | st.text(max_size=60)


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6))
def test_shingle_sets_are_those_of_plain_python(documents):
    hashes, bounds = shingle_sets(*text_buffers(pa.array(documents)))
    sets = [shingles_of(document) for document in documents]
    assert np.diff(bounds).tolist() == [len(shingles) for shingles in sets]
    for begin, end in itertools.pairwise(bounds):
        assert (np.diff(hashes[begin:end].astype(object)) > 0).all()
    left, right = np.array(list(itertools.product(range(len(documents)), repeat=2))).T
    expected = [jaccard_of(sets[one], sets[other]) for one, other in zip(left, right, strict=True)]
    assert jaccard(hashes, bounds, left, right).tolist() == expected


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6))
def test_sketches_are_those_of_datasketch(documents):
    data, offsets = text_buffers(pa.array(documents))
    found, counts = sketches(data, offsets)
    hashes, bounds = shingle_sets(data, offsets)
    assert counts.tolist() == np.diff(bounds).tolist()
    for number in range(len(documents)):
        theirs = MinHash(PERMUTATIONS, seed=SEED, scheme="affine32", hashfunc=lambda value: value & 0xFFFFFFFF)
        theirs.update_batch(hashes[bounds[number] : bounds[number + 1]].tolist())
        assert found[number].tolist() == theirs.hashvalues.tolist()


def test_order_case_and_number_of_words_tell_shingles_apart():
    documents = ["a b c d e", "a b c d E", "e d c b a", "a b c d", "a b c d e a b c d e", "ab c d e", "a b a b a b"]
    hashes, bounds = shingle_sets(*text_buffers(pa.array(documents)))
    sets = [set(hashes[begin:end].tolist()) for begin, end in itertools.pairwise(bounds)]
    assert [len(shingles) for shingles in sets] == [1, 1, 1, 1, 5, 1, 2]
    assert sets[0] < sets[4]
    assert len(set().union(*sets)) == 11


def test_documents_without_words_have_no_shingles_and_are_similar_to_none():
    documents = ["", " ", "\n\n", "...", "🙂🙂", "+-*/ ()[]{}", "a", ""]
    data, offsets = text_buffers(pa.array(documents))
    found, counts = sketches(data, offsets)
    assert counts.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    assert (found[counts == 0] == np.iinfo(np.uint32).max).all()
    everyone = np.arange(len(documents))
    hashes, bounds = shingle_sets(data, offsets)
    assert jaccard(hashes, bounds, everyone, everyone).tolist() == counts.tolist()
    assert jaccard(hashes, bounds, everyone, everyone[::-1].copy()).sum() == 0


def test_long_documents_of_the_shortest_words():
    text = "a b " * 50_000
    assert np.diff(shingle_sets(*text_buffers(pa.array([text, text])))[1]).tolist() == [2, 2]
    long_word = "x" * (1 << 20)
    assert np.diff(shingle_sets(*text_buffers(pa.array([long_word])))[1]).tolist() == [1]


def test_bands_find_pairs_as_often_as_the_closed_form_says():
    assert recall(0.0) == 0
    assert recall(1.0) == 1
    draw, documents = random.Random(0), []
    for _ in range(400):
        words = [f"w{draw.randrange(10**6)}" for _ in range(draw.randrange(80, 120))]
        changed = list(words)
        for _ in range(draw.randrange(2, 7)):
            changed[draw.randrange(len(words))] = "other"
        documents += [" ".join(words), " ".join(changed)]
    similarities = [
        jaccard_of(shingles_of(one), shingles_of(other))
        for one, other in zip(documents[::2], documents[1::2], strict=True)
    ]
    digests = band_digests(sketches(*text_buffers(pa.array(documents)))[0])
    seen = (digests[::2] == digests[1::2]).any(axis=1)
    chances = np.array([1 - (1 - similarity**6) ** 42 for similarity in similarities])
    assert [recall(similarity) for similarity in similarities] == chances.tolist()
    assert BANDS * ROWS == PERMUTATIONS
    deviation = np.sqrt((chances * (1 - chances)).sum())
    assert deviation > 3  # many pairs are uncertain, so that the test means something
    assert abs(seen.sum() - chances.sum()) < 4 * deviation
