"""Blobs on disk: what workers write is what Spark and a worker read back, by kind, and counted."""

import os
from collections import Counter

import numpy as np

from spark_jobs.near_duplicates.edges import edge_blobs, in_one_task
from spark_jobs.near_duplicates.exchange import scattered
from spark_jobs.near_duplicates.records import (
    EDGE,
    KIND_EDGE,
    KIND_HOT,
    KIND_KNOWN,
    KIND_PAIR,
    KIND_REQUEST,
    PAIR,
    REQUEST,
)
from spark_jobs.near_duplicates.stored import stored, stored_exchange


def maker():
    """Makes blobs of pairs and of requests, some of neither, for each number; and what these are."""

    def pairs_of(number):
        found = np.zeros(number % 5, PAIR)
        found["better"], found["worse"] = number, np.arange(len(found))
        return found

    def requests_of(number):
        found = np.zeros(number % 3, REQUEST)
        found["spot"], found["bucket"] = number, 7
        return found

    def made(batches):
        for batch in batches:
            for number in batch.column("id").to_pylist():
                pairs, requests = pairs_of(number), requests_of(number)
                yield scattered(pairs, KIND_PAIR, np.full(len(pairs), number % 4))
                yield scattered(requests, KIND_REQUEST, np.full(len(requests), number % 2))

    return made, pairs_of, requests_of


def test_kinds_are_apart_and_counted(spark, tmp_path):
    made, pairs_of, requests_of = maker()
    found = stored(spark.range(0, 100, 1, 3), made, str(tmp_path))
    for kind, dtype, of in ((KIND_PAIR, PAIR, pairs_of), (KIND_REQUEST, REQUEST, requests_of)):
        expected = Counter(record.tobytes() for number in range(100) for record in of(number))
        assert found.count(kind) == expected.total() > 50
        assert Counter(record.tobytes() for part in found.records(kind) for record in part) == expected
        rows = found.blobs(spark, kind).collect()
        assert {row.kind for row in rows} == {kind}
        assert sum(row["count"] for row in rows) == expected.total()
        read = np.concatenate([np.frombuffer(row.records, dtype) for row in rows])
        assert Counter(record.tobytes() for record in read) == expected
    assert found.count() == found.count(KIND_PAIR) + found.count(KIND_REQUEST)
    assert (found.count(KIND_HOT), list(found.records(KIND_HOT))) == (0, [])
    assert found.blobs(spark, KIND_HOT).collect() == []


def test_nothing_is_stored_as_nothing(spark, tmp_path):
    found = stored(spark.range(1), maker()[0], str(tmp_path))
    assert (found.counts, found.count()) == ({}, 0)
    assert found.blobs(spark, KIND_PAIR).collect() == []
    assert list(found.records(KIND_PAIR)) == []


def test_buckets_are_stored_as_they_are_exchanged(spark, tmp_path):
    made, pairs_of, _ = maker()
    blobs = stored(spark.range(0, 100, 1, 3), made, str(tmp_path / "blobs")).blobs(spark, KIND_PAIR)

    def each(buckets):
        for bucket, parts in buckets:
            records = np.concatenate([records for _, records in parts])
            yield scattered(np.sort(records, order=["better", "worse"]), KIND_PAIR, np.full(len(records), bucket))

    rows = stored_exchange(blobs, 2, each, str(tmp_path / "sorted")).blobs(spark, KIND_PAIR).collect()
    assert sorted(row.bucket for row in rows) == [0, 1, 2, 3]
    for row in rows:
        expected = np.concatenate([pairs_of(number) for number in range(100) if number % 4 == row.bucket])
        assert row.records == expected.tobytes()


def test_one_task_has_all_edges_and_its_worker_goes_on(spark, tmp_path):
    """A worker that leaves some of its input is ended by Spark, and another one would start for each walk."""

    def walk(edges):
        found = edges[:1].copy()
        found["similarity"], found["band"] = os.getpid(), len(edges)
        yield from edge_blobs(found)

    parts = {kind: np.zeros(number, EDGE) for kind, number in ((KIND_EDGE, 40), (KIND_KNOWN, 2))}
    given = stored(
        spark.range(1, numPartitions=1),
        lambda _: (blob for kind, edges in parts.items() for blob in edge_blobs(edges, kind=kind)),
        str(tmp_path / "given"),
    )
    edges, workers = dict.fromkeys(parts, given), set()
    for number in range(4):
        (found,) = in_one_task(spark, edges, walk, str(tmp_path / f"walk{number}")).records(KIND_EDGE)
        assert found["band"].tolist() == [42]
        workers.add(found["similarity"][0])
    assert len(workers) < 4
