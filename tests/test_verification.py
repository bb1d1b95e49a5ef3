"""Exact similarities of pairs whose content is fetched where it lies, in runs of any size, against plain Python."""

import random

import numpy as np
import pyarrow as pa
import pytest
from oracles import jaccard_of, shingles_of
from small_corpus import similar_rows, write_documents

from spark_jobs.content import part_names
from spark_jobs.near_duplicates import verification
from spark_jobs.near_duplicates.edges import OPEN, SHINGLES, UNITS, by_place, edge_blobs, rows_of
from spark_jobs.near_duplicates.exchange import SCHEMA
from spark_jobs.near_duplicates.records import EDGE, KIND_EDGE, PLACE
from spark_jobs.near_duplicates.settings import WHOLE_TEXT
from spark_jobs.near_duplicates.stored import stored
from spark_jobs.near_duplicates.verification import verified

PARTS, ROWS_A_GROUP = 2, 11


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two deliveries of documents: their paths, their parts, open edges between their files, and the similarities."""
    folder, documents, places, texts = tmp_path_factory.mktemp("documents"), [], [], []
    for delivery in range(2):
        rows = [row for row in similar_rows(seed=delivery) if row["content"] is not None]
        documents.append(write_documents(folder / f"delivery{delivery}", rows, PARTS, ROWS_A_GROUP))
        for number, row in enumerate(rows):
            place, text = divmod(number, PARTS), row["content"]
            places.append((delivery, place[1], *divmod(place[0], ROWS_A_GROUP), len(shingles_of(text))))
            texts.append(text)
    sets = [shingles_of(text) for text in texts]
    worded = [number for number, shingles in enumerate(sets) if shingles]
    near = [(one, other) for one in worded for other in worded if one < other and sets[one] & sets[other]]
    draw = random.Random(1)
    pairs = draw.sample(near, 250) + [tuple(draw.sample(worded, 2)) for _ in range(50)]
    edges = np.zeros(len(pairs), EDGE)
    edges["better"][:, 0], edges["worse"][:, :2] = 0x80, np.arange(len(pairs), dtype=">u2").view("u1").reshape(-1, 2)
    edges["band"], edges["proof"], edges["similarity"] = np.arange(len(pairs)) % 42, OPEN, 0.5
    edges["places"] = np.array(places, PLACE)[np.array(pairs)]
    similarities = np.array([jaccard_of(sets[one], sets[other]) for one, other in pairs])
    assert 50 < (similarities >= 0.7).sum() < 200
    return documents, [part_names(path) for path in documents], edges, similarities


def proven(edges, similarities):
    """What is to be found of the edges, in their order."""
    found = edges[similarities >= 0.7]
    found["similarity"], found["proof"] = similarities[similarities >= 0.7], SHINGLES
    return found


def rows_of_edges(spark, edges):
    """The edges as rows, in three partitions."""
    return rows_of(spark.createDataFrame(pa.Table.from_batches(edge_blobs(edges), SCHEMA))).repartition(3)


@pytest.mark.parametrize("run_bytes", [1, 3000, 20_000, 256 << 20])
def test_edges_are_the_same_in_runs_of_any_size(spark, corpus, monkeypatch, tmp_path, run_bytes):
    monkeypatch.setattr(verification, "RUN_BYTES", run_bytes)
    documents, parts, edges, similarities = corpus
    runs = list(verification._runs(edges))
    assert np.concatenate(runs).tobytes() == edges.tobytes()
    assert (len(runs) == len(edges), len(runs) == 1) == (run_bytes == 1, run_bytes == 256 << 20)
    for run in runs:
        files = {tuple(file): shingles for *file, shingles in run["places"].ravel().tolist()}
        assert len(run) == 1 or 8 * sum(files.values()) < run_bytes
    blobs = spark.createDataFrame(pa.Table.from_batches(edge_blobs(edges), SCHEMA))
    verification._write_sets(blobs, documents, parts, WHOLE_TEXT, 5, str(tmp_path))
    found = [verification._verify(run, 0.7, str(tmp_path), 5) for run in runs]
    assert np.concatenate(found).tobytes() == proven(edges, similarities).tobytes()


@pytest.mark.parametrize("by", ["files", "places"])
def test_verified_edges_are_those_that_are_similar(spark, corpus, tmp_path, by):
    """However they were shared out: by the files that they have in common, or by where these lie."""
    documents, parts, edges, similarities = corpus
    units = np.arange(len(edges)) * UNITS // len(edges)
    if by == "places":
        open_ones = by_place(rows_of_edges(spark, edges), str(tmp_path / "open"))
        assert {row.bucket for row in open_ones.blobs(spark, KIND_EDGE).collect()} <= set(range(UNITS))
    else:
        open_ones = stored(spark.range(1, numPartitions=1), lambda _: edge_blobs(edges, units), str(tmp_path / "open"))
    folders = str(tmp_path / "sets"), str(tmp_path / "verified")
    found = verified(spark, open_ones, documents, parts, 0.7, WHOLE_TEXT, 3, *folders)
    records = np.concatenate(list(found.records(KIND_EDGE)))
    expected = proven(edges, similarities)
    assert sorted(record.tobytes() for record in records) == sorted(record.tobytes() for record in expected)


def test_edges_by_place_have_the_row_groups_of_their_worse_files_together(spark, tmp_path, corpus):
    edges = corpus[2]
    groups, count = {}, 0
    for row in by_place(rows_of_edges(spark, edges), str(tmp_path)).blobs(spark, KIND_EDGE).collect():
        for _, (delivery, part, row_group, *_) in np.frombuffer(row.records, EDGE)["places"].tolist():
            assert groups.setdefault((delivery, part, row_group), row.bucket) == row.bucket
            count += 1
    assert count == len(edges)
