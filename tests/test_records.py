"""Fixed-size records: in blobs, in buckets, and as numbers that compare and repeat as their bytes do."""

import itertools
from bisect import bisect_left

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.near_duplicates import exchange
from spark_jobs.near_duplicates.exchange import flushed, scattered
from spark_jobs.near_duplicates.keep_order import KEY_BYTES, RANK_BYTES
from spark_jobs.near_duplicates.records import (
    _SPOT_ROWS,
    BAND_MEMBER,
    DTYPES,
    EDGE,
    KIND_BAND,
    PAIR,
    PLACE,
    SKETCHED,
    Places,
    bucket_of,
    first_of_each,
    grouped,
    joined,
    numbered,
    numbers,
    picked,
    place_numbers,
    row_group_bucket,
    search,
    spots_of,
)

seeds = st.integers(0, 1 << 32)


def random_records(draw, count, kind=KIND_BAND):
    return np.frombuffer(draw.bytes(count * DTYPES[kind].itemsize), DTYPES[kind])


# Records in blobs


@settings(deadline=None)
@given(
    seeds, st.integers(0, 200), st.integers(1, 60), st.sampled_from(sorted(DTYPES)), st.sampled_from(["<i8", "<u4"])
)
def test_scattered_records_are_in_their_buckets_in_order(seed, count, buckets, kind, integers):
    draw = np.random.default_rng(seed)
    records = random_records(draw, count, kind)
    to = (draw.integers(0, buckets, count) * 1_000_003).astype(integers)
    batch = scattered(records, kind, to)
    batch.validate(full=True)
    assert batch.column("bucket").to_pylist() == sorted(set(to.tolist()))
    expected = [records[to == bucket].tobytes() for bucket in sorted(set(to.tolist()))]
    assert batch.column("records").to_pylist() == expected
    assert batch.column("count").to_pylist() == [len(blob) // DTYPES[kind].itemsize for blob in expected]
    assert set(batch.column("kind").to_pylist()) <= {kind}
    rows = list(exchange._rows([batch]))
    assert [bucket for bucket, _, _ in rows] == batch.column("bucket").to_pylist()
    assert [found.tobytes() for _, _, found in rows] == expected
    assert all(found.dtype == DTYPES[kind] for _, _, found in rows)


def test_scattered_records_may_be_a_part_of_others():
    records = random_records(np.random.default_rng(8), 60)
    to = np.arange(60) % 7
    batch = scattered(records[::-2], KIND_BAND, to[::-2])
    assert batch.equals(scattered(records[::-2].copy(), KIND_BAND, to[::-2].copy()))
    assert pa.types.is_large_binary(batch.schema.field("records").type)


@settings(deadline=None)
@given(seeds, st.lists(st.integers(0, 30), max_size=20), st.integers(1, 3000))
def test_flushed_records_are_the_same_in_larger_arrays(seed, sizes, flush_bytes):
    draw = np.random.default_rng(seed)
    parts = [random_records(draw, size) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "FLUSH_BYTES", flush_bytes)
        found = list(flushed(iter(parts)))
    assert b"".join(one.tobytes() for one in found) == b"".join(part.tobytes() for part in parts)
    largest = max((part.nbytes for part in parts), default=0)
    assert all(flush_bytes <= one.nbytes < flush_bytes + largest for one in found[:-1])


# Spots and their buckets


@settings(deadline=None)
@given(seeds, st.integers(0, 60))
def test_spots_are_the_ends_of_keys(seed, count):
    keys = np.random.default_rng(seed).integers(0, 256, (count, KEY_BYTES), dtype=np.uint8)
    for given_keys in (keys, keys[::-1], np.asfortranarray(keys)):
        assert spots_of(given_keys).tolist() == [int.from_bytes(key.tobytes()[RANK_BYTES:]) for key in given_keys]


@pytest.mark.parametrize("rows", [[1 << 19], [1000] * 300, range(1, 100_000, 1500)], ids=["one", "small", "any"])
@pytest.mark.parametrize("buckets", [1, 2, 7, 30])
def test_buckets_are_even_and_have_neighbours(rows, buckets):
    """Of files of fingerprints with so many rows."""
    spots = np.concatenate([(file << 32) + np.arange(count) for file, count in enumerate(rows)]).astype(np.uint64)
    found = bucket_of(spots, buckets)
    counts = np.bincount(found, minlength=buckets)
    assert len(counts) == buckets
    assert counts.max() <= 1.4 * len(spots) / buckets + _SPOT_ROWS
    assert np.count_nonzero(np.diff(found)) < len(rows) + len(spots) / _SPOT_ROWS


# Numbers of bytes


@settings(deadline=None)
@given(seeds, st.integers(0, 60), st.integers(1, KEY_BYTES), st.integers(1, 256))
def test_numbers_compare_as_bytes(seed, count, width, values):
    wide = np.random.default_rng(seed).integers(256 - values, 256, (count, width + 3), dtype=np.uint8)
    for rows in (wide[:, 3:], np.ascontiguousarray(wide[:, 3:])):
        found = numbers(rows)
        assert found.dtype == np.uint64
        assert found.shape == (count, -(-width // 8))
        texts = [row.tobytes() for row in rows]
        expected = [
            tuple(int.from_bytes(text[at : at + 8].ljust(8, b"\0")) for at in range(0, width, 8)) for text in texts
        ]
        assert [tuple(row) for row in found.tolist()] == expected
        by_number = sorted(zip(expected, texts, strict=True))
        assert [text for _, text in by_number] == sorted(texts)


@settings(deadline=None)
@given(st.lists(st.tuples(*(st.integers(0, (1 << bits) - 1) for bits in (16, 32, 32, 32, 32))), max_size=20))
def test_places_compare_as_the_content_lies(places):
    records = np.array(places, PLACE)
    inside = np.zeros(len(places), SKETCHED)
    inside["place"] = records
    for given_places in (records, inside["place"]):
        found = [tuple(row) for row in place_numbers(given_places).tolist()]
        assert found == [(delivery << 32 | part, group << 32 | row) for delivery, part, group, row, _ in places]
    by_number = sorted(range(len(places)), key=found.__getitem__)
    assert [places[at][:4] for at in by_number] == sorted(place[:4] for place in places)


rows_of_numbers = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.tuples(*[st.sampled_from([0, 1, 2, 255, 1 << 32, 1 << 63, (1 << 64) - 1]) | st.integers(0, 9)] * width),
        max_size=60,
    ).map(lambda rows: (width, rows))
)


@settings(deadline=None)
@given(rows_of_numbers)
def test_first_of_each_is_that_of_a_dictionary(case):
    width, rows = case
    places = {}
    for place, row in enumerate(rows):
        places.setdefault(row, place)
    assert first_of_each(np.array(rows, np.uint64).reshape(-1, width)).tolist() == list(places.values())


@settings(deadline=None)
@given(rows_of_numbers)
def test_numbered_rows_are_those_of_numpy(case):
    width, rows = case
    columns = np.array(rows, np.uint64).reshape(-1, width)
    _, first, inverse = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    found, of = numbered(columns)
    assert found.tolist() == sorted(first.tolist())
    assert found[of].tolist() == first[inverse.ravel()].tolist()


def test_first_of_each_tells_many_regular_rows_apart():
    """Numbers of places and spots are not random: deliveries, parts, row groups and rows count up."""
    axes = [range(3), range(40), range(25), range(100)]
    places = np.array([(*place, 0) for place in itertools.product(*axes)], PLACE)
    columns = place_numbers(places)
    assert first_of_each(columns).tolist() == list(range(len(places)))
    draw = np.random.default_rng(10)
    chosen = draw.integers(0, len(places), 200_000)
    first = first_of_each(columns[chosen])
    _, expected = np.unique(chosen, return_index=True)
    assert first.tolist() == sorted(expected.tolist())
    square = np.array(list(itertools.product(range(300), repeat=2)), np.uint64)
    assert len(first_of_each(square)) == len(first_of_each(square << np.uint64(32))) == len(square)
    spots = (np.arange(8, dtype=np.uint64)[:, None] << np.uint64(32) | np.arange(1 << 14, dtype=np.uint64)).ravel()
    pairs = draw.integers(0, len(spots), (2, 1 << 20))
    apart = np.unique(pairs[0] * len(spots) + pairs[1])
    assert len(first_of_each(spots[pairs.T])) == len(apart)


@settings(deadline=None)
@given(rows_of_numbers, st.data())
def test_search_is_bisection(case, data):
    width, rows = case
    rows = sorted(rows)
    known = st.sampled_from(rows) if rows else st.nothing()
    wanted = data.draw(st.lists(known | st.tuples(*[st.integers(0, (1 << 64) - 1)] * width), max_size=20))
    found = search(np.array(rows, np.uint64).reshape(-1, width), np.array(wanted, np.uint64).reshape(-1, width))
    assert found.tolist() == [bisect_left(rows, one) for one in wanted]


# Tables of numbers


@settings(deadline=None)
@given(st.sets(st.integers(0, (1 << 64) - 1), max_size=60), st.lists(st.integers(0, (1 << 64) - 1), max_size=60))
def test_places_are_those_of_a_list(known, others):
    values = list(known)
    wanted = [*others, *values[::-1], *values[:3]]
    found = Places(np.array(values, np.uint64)).of(np.array(wanted, np.uint64))
    assert found.tolist() == [values.index(one) if one in known else len(values) for one in wanted]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60))
def test_grouped_places_are_a_stable_sort(of):
    order, bounds = grouped(np.array(of, np.int64), 10)
    assert order.tolist() == sorted(range(len(of)), key=of.__getitem__)
    assert np.diff(bounds).tolist() == [of.count(group) for group in range(10)]


@pytest.mark.parametrize("buckets", [1, 8, 17, 62, 1000])
@pytest.mark.parametrize("parts", [1, 40, 20_000])
def test_row_groups_are_shared_out_evenly_however_content_is_cut(parts, buckets):
    places = np.zeros(20_000, PLACE)
    number = np.arange(len(places))
    places["part"], places["row_group"] = number % parts, number // parts
    places["delivery"], places["row"] = 3, number
    found = row_group_bucket(places, buckets)
    mean = len(places) / buckets
    assert found.min() >= 0
    assert np.bincount(found, minlength=buckets).max() < mean + 6 * np.sqrt(mean)
    places["row"] = 7  # of the row group, and not of its rows
    assert (row_group_bucket(places, buckets) == found).all()


@pytest.mark.parametrize("dtype", [BAND_MEMBER, PAIR, EDGE, SKETCHED], ids=lambda dtype: "-".join(dtype.names[:2]))
def test_records_are_copied_in_blocks_as_numpy_copies_their_fields(dtype):
    generator = np.random.default_rng(7)
    parts = [np.frombuffer(generator.bytes(count * dtype.itemsize), dtype) for count in (0, 5, 1, 40)]
    together = joined(parts)
    assert together.dtype == dtype
    assert together.tobytes() == np.concatenate(parts).tobytes()
    places, mask = generator.integers(0, 46, 100), generator.random(46) < 0.5
    assert picked(together, places).tobytes() == together[places].tobytes()
    assert picked(together[::2], mask[::2]).tobytes() == together[::2][mask[::2]].tobytes()
