"""Candidate pairs and the edges that sketches leave of them, through Spark, against plain Python."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from small_corpus import similar_rows
from small_fingerprints import slim_records, slim_table, write_sources

from spark_jobs.content import text_buffers
from spark_jobs.near_duplicates.candidates import HUBS, candidate_pairs
from spark_jobs.near_duplicates.comparison import edges_of
from spark_jobs.near_duplicates.edges import ESTIMATE, OPEN, SKETCH
from spark_jobs.near_duplicates.fingerprints import fingerprints
from spark_jobs.near_duplicates.records import (
    KIND_EDGE,
    KIND_PAIR,
    KIND_REQUEST,
    PAIR,
    REQUEST,
    bucket_of,
    spots_of,
)
from spark_jobs.near_duplicates.settings import BANDS, WHOLE_TEXT
from spark_jobs.near_duplicates.sketches import DIFFERENT, SIMILAR, judge


def records_of(spark, stored, kind, dtype):
    """The records of one kind, by bucket."""
    found = defaultdict(list)
    for blob in stored.blobs(spark, kind).collect():
        assert (blob.kind, blob["count"] * dtype.itemsize) == (kind, len(blob.records))
        found[blob.bucket].append(np.frombuffer(blob.records, dtype))
    return {bucket: np.concatenate(parts) for bucket, parts in found.items()}


def banded_files(draw):
    """Bands of few values, so that chance puts files together, and one band of more than HUBS; and shingles."""
    digests = draw.integers(0, 60, (170, BANDS), dtype=np.uint64) + np.arange(BANDS, dtype=np.uint64) * np.uint64(100)
    digests[: 2 * HUBS + 6, :5] = digests[0, :5]
    return draw.permutation(digests), draw.choice([70, 100, 101], len(digests))


@pytest.mark.parametrize(("buckets", "partitions"), [(1, 1), (7, 3)])
def test_candidates_are_the_pairs_of_every_band_with_its_best(spark, tmp_path, buckets, partitions):
    draw = np.random.default_rng(3)
    digests, shingles = banded_files(draw)
    sources, spots = write_sources(tmp_path, {"bands": digests}, (60, 61))
    files = slim_records(draw, spots, shingles)
    bands, expected = defaultdict(list), set()
    for number in sorted(range(len(files)), key=lambda number: files["key"][number].tobytes()):
        for band, digest in enumerate(digests[number].tolist()):
            bands[band, digest].append(number)
    for members in bands.values():
        for place, worse in enumerate(members):
            for better in members[: min(place, HUBS)]:
                fewer, more = sorted([shingles[better], shingles[worse]])
                if fewer >= 0.7 * more:
                    expected.add((better, worse))
    assert max(map(len, bands.values())) > 2 * HUBS
    table = slim_table(spark, files, buckets, partitions)
    blobs = candidate_pairs(table, len(files), sources, 0.7, buckets, tasks=2, folder=str(tmp_path / "pairs"))
    number_of = {spot: number for number, spot in enumerate(spots.tolist())}
    found, wanted = set(), set()
    for bucket, pairs in records_of(spark, blobs, KIND_PAIR, PAIR).items():
        assert (bucket_of(pairs["worse"], buckets) == bucket).all()
        for better, worse, band in pairs.tolist():
            found.add((number_of[better], number_of[worse]))
            if bucket_of(np.array([better], np.uint64), buckets)[0] != bucket:
                wanted.add((better, bucket))
            assert digests[number_of[better], band] == digests[number_of[worse], band]
    assert found == expected
    requests = records_of(spark, blobs, KIND_REQUEST, REQUEST)
    assert {tuple(request) for part in requests.values() for request in part.tolist()} == wanted
    assert all((bucket_of(part["spot"], buckets) == bucket).all() for bucket, part in requests.items())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Fingerprints of texts that are alike in all degrees, the files' records, and where the fingerprints lie."""
    texts = sorted({row["content"] for row in similar_rows() if row["content"]})
    found = fingerprints(*text_buffers(pa.array(texts)), WHOLE_TEXT)
    found = found[found["shingles"] > 0]
    columns = {name: found[name] for name in ("bands", "sketch")}
    sources, spots = write_sources(tmp_path_factory.mktemp("compared"), columns, (30, 80))
    return found, slim_records(np.random.default_rng(5), spots, found["shingles"]), sources


@pytest.mark.parametrize(("buckets", "exact"), [(1, True), (3, False), (40, True)])
def test_edges_are_the_pairs_that_sketches_do_not_refute(spark, tmp_path, compared, buckets, exact):
    found, files, sources = compared
    table = slim_table(spark, files, buckets, 3)
    pairs = candidate_pairs(table, len(files), sources, 0.7, buckets, tasks=2, folder=str(tmp_path / "pairs"))
    met, number_of = {}, {spot: number for number, spot in enumerate(spots_of(files["key"]).tolist())}
    for part in records_of(spark, pairs, KIND_PAIR, PAIR).values():
        for better, worse, band in part.tolist():
            pair = number_of[better], number_of[worse]
            met[pair] = min(band, met.get(pair, band))
    expected = {}
    better, worse = np.array(sorted(met)).T.copy()
    estimates, verdicts = judge(found, found, better, worse, 0.7)
    for *pair, estimate, verdict in zip(better, worse, estimates.tolist(), verdicts, strict=True):
        if verdict == SIMILAR or (verdict != DIFFERENT and (exact or estimate >= 0.7)):
            proof = SKETCH if verdict == SIMILAR else OPEN if exact else ESTIMATE
            places = files["place"][pair].tolist()
            keys = [files["key"][number].tobytes() for number in pair]
            expected[tuple(keys)] = (estimate, met[tuple(pair)], proof, places)
    stored = edges_of(table, pairs, sources, 0.7, 2, exact, str(tmp_path / "edges"))
    edges = np.concatenate(list(stored.records(KIND_EDGE)))
    assert stored.counts == {KIND_EDGE: len(edges)}
    assert len(edges) == len(expected) > 50
    assert {edge[4] for edge in edges.tolist()} == {SKETCH, OPEN if exact else ESTIMATE}
    for edge in edges:
        facts = (*(edge[name].item() for name in ("similarity", "band", "proof")), edge["places"].tolist())
        assert expected[edge["better"].tobytes(), edge["worse"].tobytes()] == facts
