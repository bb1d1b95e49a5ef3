"""Sorted runs and the pairs of bands, against plain Python: without Spark."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.near_duplicates import candidates
from spark_jobs.near_duplicates.candidates import _BY_DIGEST, HUBS, distinct_pairs
from spark_jobs.near_duplicates.keep_order import KEY_BYTES, RANK_BYTES
from spark_jobs.near_duplicates.records import BAND_MEMBER, KIND_BAND, PAIR
from spark_jobs.near_duplicates.runs import sorted_runs

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
    members["key"][::3, :RANK_BYTES] = 128  # alike but for the spots
    members["shingles"] = draw.integers(60, 101, count)
    return members


def random_parts(draw, members, most):
    """The same members in parts of 1 to `most`."""
    cuts = np.cumsum(draw.integers(1, most + 1, len(members)))
    return np.split(members, cuts[cuts < len(members)]) if len(members) else []


def texts(rows):
    """Rows of bytes as `bytes`."""
    return np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel().tolist()


def spot_of(key):
    """Where the fingerprint of a key's file lies."""
    return int.from_bytes(key[RANK_BYTES:], "big")


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
    st.booleans(),
)
def test_runs_are_sorted_and_lose_no_pair_whatever_their_size(
    seed, count, digests, keys, most, run_members, shared_only
):
    draw = np.random.default_rng(seed)
    members = random_members(draw, count, digests, keys)
    run_bytes = run_members * BAND_MEMBER.itemsize
    pieces = list(sorted_runs(iter(random_parts(draw, members, most)), _BY_DIGEST, shared_only, run_bytes))
    found = np.concatenate([np.empty(0, BAND_MEMBER), *pieces])
    assert orders(found) == sorted(orders(found))
    assert shared_only or files_of(found) == files_of(members)
    # Those that share their digest with nobody are in no pair: they may be left out, the others must be there.
    assert files_of(sharing(found)) == files_of(sharing(members))
    assert not Counter(files_of(found)) - Counter(files_of(members))
    # A piece takes a member of each run at least.
    assert all(len(piece) <= max(run_members, -(-count // run_members)) for piece in pieces)


def test_members_that_fit_are_one_run_of_those_that_share_a_digest():
    members = random_members(np.random.default_rng(1), 5000, 3000)
    (run,) = sorted_runs(np.array_split(members, 7), _BY_DIGEST, shared_only=True)
    assert len(run) < len(members)
    assert orders(run) == sorted(orders(sharing(members)))


def test_nothing_has_no_runs():
    for parts in ([], [np.empty(0, BAND_MEMBER)], [random_members(np.random.default_rng(1), 1, 1)]):
        assert sum(map(len, sorted_runs(parts, _BY_DIGEST, shared_only=True))) == 0


def test_runs_that_wait_on_disk_are_read_after_all_are_written():
    """Many more members than a run, one part larger than a run, and runs that end long before others."""
    draw = np.random.default_rng(2)
    members = random_members(draw, 20_000, 900)
    members = members[np.argsort(members["digest"] % 7 == 0, kind="stable")]
    parts = [members[:5000], *random_parts(draw, members[5000:], 300)]
    pieces = list(sorted_runs(parts, _BY_DIGEST, run_bytes=1000 * BAND_MEMBER.itemsize))
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
    """The pairs (spots) of buckets (number: parts of members), by bucket, and what is told of hot bands."""
    run_bytes = run_members * BAND_MEMBER.itemsize
    monkeypatch.setattr(
        candidates, "sorted_runs", lambda *given, **also: sorted_runs(*given, **also, run_bytes=run_bytes)
    )
    hot, found = [], defaultdict(list)
    for bucket, members in buckets.items():
        blobs = ((KIND_BAND, part) for part in members)
        for pairs in candidates._pairs_of_buckets(iter([(bucket, blobs)]), parts, threshold, hot):
            assert pairs.dtype == PAIR
            assert (pairs["band"] == bucket // parts).all()
            found[bucket] += zip(pairs["better"].tolist(), pairs["worse"].tolist(), strict=True)
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
        assert set(found[number]) == {(spot_of(better), spot_of(worse)) for better, worse in expected}
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
        assert set(found[6]) == {(spot_of(better), spot_of(worse)) for better, worse in expected}
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
    spots = draw.integers(0, 1 << 64, files, dtype=np.uint64)
    pairs = np.empty(count, PAIR)
    pairs["better"], pairs["worse"] = draw.choice(spots, count), draw.choice(spots, count)
    pairs["band"] = draw.integers(0, 42, count)
    return pairs


def first_bands(pairs):
    found = {}
    for better, worse, band in pairs.tolist():
        found[better, worse] = min(band, found.get((better, worse), band))
    return found


@settings(deadline=None)
@given(seeds, st.integers(0, 300), st.integers(1, 30))
def test_distinct_pairs_have_the_first_of_their_bands(seed, count, files):
    """Whatever order they come in."""
    pairs = random_pairs(np.random.default_rng(seed), count, files)
    found = distinct_pairs(pairs)
    assert found.dtype == PAIR
    assert first_bands(found) == first_bands(pairs)
    assert len(found) == len(first_bands(pairs))


@pytest.mark.parametrize("at_once", [1, 10, 200, 100_000])
def test_gathered_pairs_are_distinct_in_each_array_and_complete(at_once, monkeypatch):
    monkeypatch.setattr(candidates, "_PAIRS_AT_ONCE", at_once)
    draw = np.random.default_rng(7)
    parts = [random_pairs(draw, int(draw.integers(0, 60)), 8) for _ in range(40)]
    gathered = list(candidates._gathered(iter(parts)))
    assert set(first_bands(np.concatenate(gathered))) == {
        *first_bands(np.concatenate(parts)),
    }
    assert all(len(pairs) == len(first_bands(pairs)) for pairs in gathered)
    assert len(gathered) <= sum(map(len, parts)) // max(1, at_once // 2) + 1
    assert list(candidates._gathered(iter([]))) == []
