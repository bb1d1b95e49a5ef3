"""Fingerprints against mmh3, datasketch and the closed form of banding; whatever the batches."""

import itertools
import random

import mmh3
import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import jaccard_of, shingles_of

from spark_jobs.content import text_buffers
from spark_jobs.near_duplicates.candidates import recall
from spark_jobs.near_duplicates.fingerprints import (
    FINGERPRINT,
    PERMUTATIONS,
    _digests,
    binary,
    fingerprints,
    matrix,
    minhashes,
)
from spark_jobs.near_duplicates.settings import BANDS, BINS, ROWS, SEED, Fingerprint, Settings
from spark_jobs.near_duplicates.shingles import shingle_sets

PLAIN = Fingerprint()

WORDS = ["a", "B", "_", "x_1", "é", "e\u0301", "日本", "𝔘", "word", "abcdefgh", "abcdefghi", "z" * 17]
GAPS = [" ", "\n", ".", "—", "🙂", "\0", " ("]
texts = st.lists(st.sampled_from(WORDS) | st.sampled_from(GAPS), max_size=60).map("".join) | st.text(max_size=80)


def taken(documents, fingerprint=PLAIN):
    return fingerprints(*text_buffers(pa.array(documents, pa.large_string())), fingerprint)


def variants(count, seed):
    """Texts that are alike in all degrees: each a copy of one of few, with some of its words changed."""
    draw = random.Random(seed)
    roots = [[f"{root}w{draw.randrange(10**6)}" for _ in range(draw.randrange(20, 200))] for root in range(4)]
    found = []
    for _ in range(count):
        words = list(draw.choice(roots))
        for _ in range(draw.randrange(6)):
            words[draw.randrange(len(words))] = f"new{draw.randrange(10**6)}"
        found.append(" ".join(words))
    return found


# The exact hash


def test_exact_hashes_are_those_of_mmh3():
    """Of every length over the 16 bytes that are hashed at once, at every place in a buffer, and at its very end."""
    draw = random.Random(5)
    lengths = [*range(65), *range(64, -1, -1), *(draw.randrange(5000) for _ in range(100)), 1, 7, 15]
    documents = ["".join(map(chr, draw.choices(range(128), k=length))) for length in lengths]
    found = taken(documents)["content_hash"]
    assert [one.tobytes() for one in found] == [mmh3.hash_bytes(document.encode(), 0) for document in documents]


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6))
def test_exact_hashes_of_any_text_are_those_of_mmh3(documents):
    found = taken(documents)["content_hash"]
    assert [one.tobytes() for one in found] == [mmh3.hash_bytes(document.encode(), 0) for document in documents]


# Shingles, MinHash values and bands


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6))
def test_minhashes_are_those_of_datasketch(documents):
    data, offsets = text_buffers(pa.array(documents))
    found = minhashes(data, offsets)
    hashes, bounds = shingle_sets(data, offsets)
    assert found.shape == (len(documents), PERMUTATIONS)
    for row, (begin, end) in zip(found, itertools.pairwise(bounds), strict=True):
        theirs = MinHash(PERMUTATIONS, seed=SEED, scheme="affine32", hashfunc=lambda value: value & 0xFFFFFFFF)
        theirs.update_batch(hashes[begin:end].tolist())
        assert row.tolist() == theirs.hashvalues.tolist()


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6))
def test_fingerprints_count_the_distinct_shingles(documents):
    found = taken(documents)
    counts = [len(shingles_of(document)) for document in documents]
    assert found["shingles"].tolist() == counts
    filled = (found["sketch"] > 0).sum(axis=1)
    assert (filled <= np.minimum(counts, BINS)).all()
    assert ((filled > 0) == (np.array(counts) > 0)).all()


def test_bands_are_equal_where_their_minhash_values_are():
    documents = variants(120, seed=8)
    bands = taken(documents)["bands"]
    groups = minhashes(*text_buffers(pa.array(documents))).reshape(-1, BANDS, ROWS)
    assert bands.shape == (len(documents), BANDS)
    same = (groups[:, None] == groups[None]).all(axis=-1)
    assert ((bands[:, None] == bands[None]) == same).all()
    assert (same.any(axis=-1) & ~same.all(axis=-1)).sum() > 500  # many pairs share a part of their bands
    by_band = [set(column) for column in bands.T.tolist()]
    assert sum(map(len, by_band)) == len(set().union(*by_band))


def test_digests_tell_values_their_order_and_their_bands_apart():
    draw, digests = np.random.default_rng(4), np.empty((400, BANDS), np.uint64)
    minima = draw.integers(0, 3, (400, PERMUTATIONS), dtype=np.uint32)
    minima[0], minima[1] = 0, 0xFFFFFFFF
    for values, row in zip(minima, digests, strict=True):
        _digests(values, row)
    meanings = {}
    for values, row in zip(minima.reshape(-1, BANDS, ROWS).tolist(), digests.tolist(), strict=True):
        for band, digest in enumerate(row):
            assert meanings.setdefault(digest, (band, values[band])) == (band, values[band])
    distinct = {(band, *group) for row in minima.reshape(-1, BANDS, ROWS).tolist() for band, group in enumerate(row)}
    assert len(meanings) == len(distinct)
    assert len(set(digests[0].tolist())) == BANDS


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
    bands = taken(documents)["bands"]
    seen = (bands[::2] == bands[1::2]).any(axis=1)
    chances = np.array([1 - (1 - similarity**6) ** 42 for similarity in similarities])
    assert [recall(similarity) for similarity in similarities] == chances.tolist()
    assert BANDS * ROWS == PERMUTATIONS
    deviation = np.sqrt((chances * (1 - chances)).sum())
    assert deviation > 3  # many pairs are uncertain, so that the test means something
    assert abs(seen.sum() - chances.sum()) < 4 * deviation


# Batches


@settings(deadline=None)
@given(st.lists(texts, min_size=1, max_size=6), st.booleans(), st.data())
def test_fingerprints_do_not_depend_on_batches(documents, strip_header, data):
    fingerprint = Fingerprint(strip_header)
    whole = taken(documents, fingerprint)
    assert whole.dtype == FINGERPRINT
    alone = [taken([document], fingerprint) for document in documents]
    assert whole.tobytes() == np.concatenate(alone).tobytes()
    first = data.draw(st.integers(0, len(documents) - 1))
    part = pa.array(documents, pa.large_string())[first:]
    assert fingerprints(*text_buffers(part), fingerprint).tobytes() == whole[first:].tobytes()


def test_a_long_document_before_leaves_nothing_behind():
    documents = [*variants(20, seed=1), "", "a", "a b c d e f", "é"]
    longer = " ".join(str(number) for number in range(20_000))
    around = [text for document in documents for text in (longer, document)]
    assert taken(around)[1::2].tobytes() == taken(documents).tobytes()


def test_no_documents_have_no_fingerprints():
    data, offsets = text_buffers(pa.array([], pa.large_string()))
    assert fingerprints(data, offsets, PLAIN).tobytes() == b""
    assert minhashes(data, offsets).shape == (0, PERMUTATIONS)


def test_documents_without_words_have_no_shingles_and_an_empty_sketch():
    documents = ["", " ", "\n\n", "...", "🙂🙂", "+-*/ ()[]{}"]
    found = taken(documents)
    assert not found["shingles"].any()
    assert not found["sketch"].any()
    assert (minhashes(*text_buffers(pa.array(documents))) == np.iinfo(np.uint32).max).all()
    assert len({one.tobytes() for one in found["content_hash"]}) == len(documents)


# Columns of binary values


@settings(deadline=None)
@given(
    st.sampled_from(["u1", "<u4", "<u8"]),
    st.integers(0, 8),
    st.integers(1, 5),
    st.sampled_from([pa.binary(), pa.large_binary()]),
    st.data(),
)
def test_matrices_come_back_from_binary_columns(kind, count, width, column, data):
    values = np.frombuffer(random.Random(count).randbytes(count * width * 8), np.uint8)
    rows = values[: count * width * np.dtype(kind).itemsize].view(kind).reshape(count, width)
    values = binary(rows).cast(column)
    assert values.to_pylist() == [row.tobytes() for row in rows]
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    for part, expected in ((values, rows), (values[first:last], rows[first:last])):
        found = matrix(part, kind)
        assert found.dtype == np.dtype(kind)
        assert len(found) == len(expected)
        assert found.tolist() == expected.tolist()


def test_records_and_their_columns_come_back_from_binary_columns():
    found = taken(variants(9, seed=2))
    values = binary(found)
    assert values.type == pa.large_binary()
    assert [len(value.as_py()) for value in values] == [FINGERPRINT.itemsize] * 9
    assert matrix(values, FINGERPRINT)[:, 0].tobytes() == found.tobytes()
    assert matrix(values[3:7], FINGERPRINT)[:, 0].tobytes() == found[3:7].tobytes()
    for name in ("content_hash", "bands", "sketch"):  # not contiguous
        column = binary(found[name])
        assert column.to_pylist() == [row.tobytes() for row in found[name]]
        assert matrix(column, found[name].dtype).tolist() == found[name].tolist()
    assert binary(found[:0]).to_pylist() == []
    assert len(matrix(binary(found[:0]), FINGERPRINT)) == 0
    assert len(matrix(pa.array([], pa.binary()), "<u8")) == 0


# What names them


def test_schemes_name_fingerprints():
    schemes = {fingerprint.scheme: fingerprint for fingerprint in (PLAIN, Fingerprint(strip_header=True))}
    assert len(schemes) == 2
    for scheme, fingerprint in schemes.items():
        assert Fingerprint.of_scheme(scheme, "signals") == fingerprint
    with pytest.raises(ValueError, match=r"signals has fingerprints of scheme words4.*measure again"):
        Fingerprint.of_scheme("words4", "signals")


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 1.01, 85.0, float("nan")])
def test_a_threshold_out_of_bounds_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold is {threshold}; it must be in"):
        Settings(threshold, "exact", "leaders", PLAIN).configuration()


def test_settings_tell_all_that_decides_duplicates():
    """A change of any of them is a change of the manifest."""
    told = [
        str(Settings(*choice).configuration())
        for choice in itertools.product(
            (0.7, 1.0), ("exact", "sketch"), ("leaders", "components"), (PLAIN, Fingerprint(True))
        )
    ]
    assert len(set(told)) == len(told)
