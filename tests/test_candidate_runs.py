"""Sorted runs, pairs of bands and what they rest on, against plain Python: records without Spark."""

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.near_duplicates import candidates, exchange
from spark_jobs.near_duplicates.candidates import HUBS, distinct_pairs, sorted_runs
from spark_jobs.near_duplicates.exchange import flushed, scattered
from spark_jobs.near_duplicates.keep_order import ID_BYTES, KEY_BYTES, RANK_BYTES
from spark_jobs.near_duplicates.records import (
    BAND_MEMBER,
    DTYPES,
    KIND_BAND,
    PAIR,
    PLACE,
    SKETCHED,
    bucket_of,
    first_of_each,
    numbers,
    place_numbers,
    search,
)

seeds = st.integers(0, 1 << 32)


def random_members(draw, count, digests, keys=None):
    """BAND_MEMBERs of so many digests, near and far from each other; their keys are unique unless they are few."""
    members = np.empty(count, BAND_MEMBER)
    values = draw.integers(0, 1 << 64, digests, dtype=np.uint64, endpoint=False)
    values[::2] >>= np.uint64(60)
    values[:1] = 0xFFFFFFFFFFFFFFFF
    members["digest"] = draw.choice(values, count)
    members["key"] = draw.integers(0, 256, (count, KEY_BYTES), dtype=np.uint8)
    if keys is not None:
        members["key"] = draw.choice(members["key"][:keys], count)
    members["key"][::3, :RANK_BYTES] = 128  # alike but for the file ids
    members["shingles"] = draw.integers(60, 101, count)
    return members


def random_parts(draw, members, most):
    """The same members in parts of 1 to `most`."""
    cuts = np.cumsum(draw.integers(1, most + 1, len(members)))
    return np.split(members, cuts[cuts < len(members)]) if len(members) else []


def texts(rows):
    """Rows of bytes as `bytes`."""
    return np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel().tolist()


def orders(members):
    return list(zip(members["digest"].tolist(), texts(members["key"]), strict=True))


def files_of(members):
    """All that records hold, in an order of their own."""
    return sorted(zip(orders(members), members["shingles"].tolist(), strict=True))


def sharing(members):
    """The members that are not alone with their digest."""
    counts = Counter(members["digest"].tolist())
    return members[[counts[digest] > 1 for digest in members["digest"].tolist()]]


# Sorted runs


@settings(deadline=None)
@given(
    seeds,
    st.integers(0, 120),
    st.integers(1, 50),
    st.sampled_from([None, 1, 3]),
    st.integers(1, 30),
    st.integers(1, 200),
)
def test_runs_are_sorted_and_lose_no_pair_whatever_their_size(seed, count, digests, keys, most, run_members):
    draw = np.random.default_rng(seed)
    members = random_members(draw, count, digests, keys)
    run_bytes = run_members * BAND_MEMBER.itemsize
    pieces = list(sorted_runs(iter(random_parts(draw, members, most)), run_bytes))
    found = np.concatenate([np.empty(0, BAND_MEMBER), *pieces])
    assert orders(found) == sorted(orders(found))
    # Those that share their digest with nobody are in no pair: they may be there or not, the others must.
    assert files_of(sharing(found)) == files_of(sharing(members))
    assert not Counter(files_of(found)) - Counter(files_of(members))
    # A piece takes a member of each run at least.
    assert all(len(piece) <= max(run_members, -(-count // run_members)) for piece in pieces)


def test_members_that_fit_are_one_run_of_those_that_share_a_digest():
    members = random_members(np.random.default_rng(1), 5000, 3000)
    (run,) = sorted_runs(np.array_split(members, 7))
    assert len(run) < len(members)
    assert orders(run) == sorted(orders(sharing(members)))


def test_nothing_has_no_runs():
    for parts in ([], [np.empty(0, BAND_MEMBER)], [random_members(np.random.default_rng(1), 1, 1)]):
        assert sum(map(len, sorted_runs(parts))) == 0


def test_runs_that_wait_on_disk_are_read_after_all_are_written():
    """Many more members than a run, one part larger than a run, and runs that end long before others."""
    draw = np.random.default_rng(2)
    members = random_members(draw, 20_000, 900)
    members = members[np.argsort(members["digest"] % 7 == 0, kind="stable")]
    parts = [members[:5000], *random_parts(draw, members[5000:], 300)]
    pieces = list(sorted_runs(parts, 1000 * BAND_MEMBER.itemsize))
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= 1000
    assert files_of(np.concatenate(pieces)) == files_of(members)
    assert orders(np.concatenate(pieces)) == sorted(orders(members))


# Pairs of a band


def expected_pairs(members, hubs, threshold):
    """(better, worse) keys: each member with the best of its band, if sizes allow it and not both are settled."""
    bands = defaultdict(list)
    for (digest, key), size in files_of(members):
        bands[digest].append((key, size))
    found = set()
    for band in bands.values():
        for place, (worse, size) in enumerate(band):
            for better, best_size in band[: min(place, hubs)]:
                settled = better[0] < 0x80 and worse[0] < 0x80
                if min(size, best_size) >= threshold * max(size, best_size) and not settled:
                    found.add((better, worse))
    return found, {band[0][0]: len(band) for band in bands.values()}


def paired(buckets, parts, threshold, monkeypatch, run_members):
    """The pairs of buckets (number: parts of members), by bucket, and what is told of hot bands."""
    run_bytes = run_members * BAND_MEMBER.itemsize
    monkeypatch.setattr(candidates, "sorted_runs", lambda records: sorted_runs(records, run_bytes))
    hot, found = [], defaultdict(list)
    for bucket, members in buckets.items():
        blobs = ((KIND_BAND, part) for part in members)
        for pairs in candidates._pairs_of_buckets(iter([(bucket, blobs)]), parts, threshold, hot):
            assert pairs.dtype == PAIR
            assert (pairs["band"] == bucket // parts).all()
            found[bucket] += zip(texts(pairs["better"]), texts(pairs["worse"]), strict=True)
    return found, np.concatenate(hot)


def sizes_told(hot):
    """The most members that are told of a band, by its number and its best key."""
    told = defaultdict(int)
    for band, key, members in zip(hot["band"].tolist(), texts(hot["key"]), hot["members"].tolist(), strict=True):
        told[band, key] = max(told[band, key], members)
    return told


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("run_members", [1, 2, 7, 50, 10_000])
def test_every_member_meets_the_best_of_its_band(seed, run_members, monkeypatch):
    draw = np.random.default_rng(seed)
    hubs, threshold = int(draw.integers(1, 6)), float(draw.choice([0.05, 0.7, 0.85, 1.0]))
    monkeypatch.setattr(candidates, "HUBS", hubs)
    monkeypatch.setattr(candidates, "HOT_MEMBERS", 2)
    buckets = {
        number: random_members(draw, int(draw.integers(1, 90)), int(draw.integers(1, 12))) for number in (0, 5, 83)
    }
    parts = {number: random_parts(draw, members, 20) for number, members in buckets.items()}
    found, hot = paired(parts, 2, threshold, monkeypatch, run_members)
    sizes = {}
    for number, members in buckets.items():
        expected, bands = expected_pairs(members, hubs, threshold)
        assert len(found[number]) == len(set(found[number]))
        assert set(found[number]) == {(better[RANK_BYTES:], worse[RANK_BYTES:]) for better, worse in expected}
        sizes[number // 2] = bands
    # What is told of a band grows as its runs are read, and ends with its size.
    told = sizes_told(hot)
    for (band, key), count in told.items():
        assert 2 < count <= sizes[band][key]
    for band, counts in sizes.items():
        largest = sorted((count for count in counts.values() if count > 2), reverse=True)[: candidates.HOTTEST]
        assert sorted((count for (of, _), count in told.items() if of == band), reverse=True)[:3] == largest


def test_large_bands_have_pairs_with_their_hubs_alone(monkeypatch):
    """The real number of hubs, in bands around it and far above it, that begin and end anywhere in a run."""
    draw = np.random.default_rng(5)
    sizes = [1, HUBS - 1, 3, HUBS, HUBS + 1, 1, 1, 700, HUBS + 2, 2, 250]
    members = random_members(draw, sum(sizes), 1)
    members["digest"] = np.repeat(draw.permutation(len(sizes)), sizes)
    members["key"][:, 0] = draw.choice([0, 127, 128, 255], len(members))
    members = draw.permutation(members)
    expected, bands = expected_pairs(members, HUBS, 0.7)
    assert len(expected) > 700 * HUBS / 2
    for run_members in (HUBS, 100, 10_000):
        found, hot = paired({6: random_parts(draw, members, 400)}, 3, 0.7, monkeypatch, run_members)
        assert len(found[6]) == len(expected)
        assert set(found[6]) == {(better[RANK_BYTES:], worse[RANK_BYTES:]) for better, worse in expected}
        assert sizes_told(hot) == {(2, key): count for key, count in bands.items() if count > candidates.HOT_MEMBERS}


def test_buckets_do_not_meet(monkeypatch):
    """The same digest in two buckets is another band, or cannot be."""
    draw = np.random.default_rng(6)
    members = random_members(draw, 40, 1)
    hot = []
    buckets = [(bucket, iter([(KIND_BAND, part)])) for bucket, part in enumerate((members[:25], members[25:]))]
    found = [len(pairs) for pairs in candidates._pairs_of_buckets(iter(buckets), 1, 0.05, hot)]
    assert found == [len(expected_pairs(part, HUBS, 0.05)[0]) for part in (members[:25], members[25:])]


# Repeated pairs


def random_pairs(draw, count, files):
    ids = draw.integers(0, 256, (files, ID_BYTES), dtype=np.uint8)
    pairs = np.empty(count, PAIR)
    pairs["better"], pairs["worse"] = draw.choice(ids, count), draw.choice(ids, count)
    pairs["band"] = draw.integers(0, 42, count)
    return pairs


def first_bands(pairs):
    found = {}
    for better, worse, band in zip(texts(pairs["better"]), texts(pairs["worse"]), pairs["band"].tolist(), strict=True):
        found.setdefault((better, worse), band)
    return list(found.items())


@settings(deadline=None)
@given(seeds, st.integers(0, 300), st.integers(1, 30))
def test_distinct_pairs_have_the_first_of_their_bands(seed, count, files):
    """Whatever order they come in."""
    pairs = random_pairs(np.random.default_rng(seed), count, files)
    found = distinct_pairs(pairs)
    assert found.dtype == PAIR
    assert first_bands(found) == first_bands(pairs[np.argsort(pairs["band"], kind="stable")])
    assert len(found) == len(first_bands(pairs))


@pytest.mark.parametrize("at_once", [1, 10, 200, 100_000])
def test_gathered_pairs_are_distinct_in_each_array_and_complete(at_once, monkeypatch):
    monkeypatch.setattr(candidates, "_PAIRS_AT_ONCE", at_once)
    draw = np.random.default_rng(7)
    parts = [random_pairs(draw, int(draw.integers(0, 60)), 8) for _ in range(40)]
    gathered = list(candidates._gathered(iter(parts)))
    assert {pair for pair, _ in first_bands(np.concatenate(gathered))} == {
        pair for pair, _ in first_bands(np.concatenate(parts))
    }
    assert all(len(pairs) == len(first_bands(pairs)) for pairs in gathered)
    assert len(gathered) <= sum(map(len, parts)) // max(1, at_once // 2) + 1
    assert list(candidates._gathered(iter([]))) == []


# Records in blobs


@settings(deadline=None)
@given(
    seeds, st.integers(0, 200), st.integers(1, 60), st.sampled_from(sorted(DTYPES)), st.sampled_from(["<i8", "<u4"])
)
def test_scattered_records_are_in_their_buckets_in_order(seed, count, buckets, kind, integers):
    draw = np.random.default_rng(seed)
    records = np.frombuffer(draw.bytes(count * DTYPES[kind].itemsize), DTYPES[kind])
    to = (draw.integers(0, buckets, count) * 1_000_003).astype(integers)
    batch = scattered(records, kind, to)
    batch.validate(full=True)
    assert batch.column("bucket").to_pylist() == sorted(set(to.tolist()))
    expected = [records[to == bucket].tobytes() for bucket in sorted(set(to.tolist()))]
    assert batch.column("records").to_pylist() == expected
    assert batch.column("count").to_pylist() == [len(blob) // DTYPES[kind].itemsize for blob in expected]
    assert set(batch.column("kind").to_pylist()) <= {kind}
    rows = list(exchange._rows([batch], DTYPES))
    assert [bucket for bucket, _, _ in rows] == batch.column("bucket").to_pylist()
    assert [found.tobytes() for _, _, found in rows] == expected
    assert all(found.dtype == DTYPES[kind] for _, _, found in rows)


def test_scattered_records_may_be_a_part_of_others():
    records = random_members(np.random.default_rng(8), 60, 5)
    to = np.arange(60) % 7
    batch = scattered(records[::-2], KIND_BAND, to[::-2])
    assert batch.equals(scattered(records[::-2].copy(), KIND_BAND, to[::-2].copy()))
    assert pa.types.is_large_binary(batch.schema.field("records").type)


@settings(deadline=None)
@given(seeds, st.lists(st.integers(0, 30), max_size=20), st.integers(1, 3000))
def test_flushed_records_are_the_same_in_larger_arrays(seed, sizes, flush_bytes):
    draw = np.random.default_rng(seed)
    parts = [random_members(draw, size, 3) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "FLUSH_BYTES", flush_bytes)
        found = list(flushed(iter(parts)))
    assert b"".join(one.tobytes() for one in found) == b"".join(part.tobytes() for part in parts)
    largest = max((part.nbytes for part in parts), default=0)
    assert all(flush_bytes <= one.nbytes < flush_bytes + largest for one in found[:-1])


def test_buckets_of_ids_are_even_and_in_bounds():
    ids = np.random.default_rng(9).integers(0, 256, (30_000, KEY_BYTES), dtype=np.uint8)[:, RANK_BYTES:]
    for buckets in (1, 2, 7, 1000):
        found = bucket_of(ids, buckets)
        expected = [int.from_bytes(one.tobytes()[-8:], "little") % buckets for one in ids[:100]]
        assert found[:100].tolist() == expected
        counts = np.bincount(found, minlength=buckets)
        assert len(counts) == buckets
        assert np.abs(counts - 30_000 / buckets).max() < 6 * np.sqrt(30_000 / buckets)


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


def test_first_of_each_tells_many_regular_rows_apart():
    """Numbers of places are not random: deliveries, parts, row groups and rows count up."""
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


@settings(deadline=None)
@given(rows_of_numbers, st.data())
def test_search_is_bisection(case, data):
    width, rows = case
    rows = sorted(rows)
    known = st.sampled_from(rows) if rows else st.nothing()
    wanted = data.draw(st.lists(known | st.tuples(*[st.integers(0, (1 << 64) - 1)] * width), max_size=20))
    found = search(np.array(rows, np.uint64).reshape(-1, width), np.array(wanted, np.uint64).reshape(-1, width))
    assert found.tolist() == [bisect_left(rows, one) for one in wanted]
