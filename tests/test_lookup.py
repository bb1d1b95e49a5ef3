"""What workers read where it lies: the rows that are asked for and no others, against pyarrow."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_fingerprints import slim_records, write_sources

from spark_jobs import content
from spark_jobs.content import part_names, rows_of
from spark_jobs.near_duplicates.fingerprints import matrix
from spark_jobs.near_duplicates.lookup import by_spot, looked_up
from spark_jobs.near_duplicates.settings import BANDS, BINS

seeds = st.integers(0, 1 << 32)
shares = st.sampled_from([0, 0.01, 0.3, 0.95, 1])
batch_bytes = st.sampled_from([1, 3000, 1 << 24])


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of two files, one with row groups of many sizes, none among them, the other in a folder below."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "deep").mkdir()
    table = pa.table({"number": range(200), "text": [f"text {row} " * (row % 9) for row in range(200)]})
    with pq.ParquetWriter(folder / "a.parquet", table.schema) as writer:
        for first, end in ((0, 1), (1, 90), (90, 90), (90, 130), (130, 200)):
            writer.write_table(table.slice(first, end - first))
    pq.write_table(table.slice(0, 50), folder / "deep" / "b.parquet", row_group_size=7)
    return folder


@settings(deadline=None)
@given(seeds, shares, batch_bytes)
def test_rows_of_a_file_are_those_that_are_asked_for(texts, seed, share, at_once):
    draw = np.random.default_rng(seed)
    paths = [(texts, part) for part in part_names(str(texts))] + [(texts / "a.parquet", "")]
    assert [part for _, part in paths] == ["a.parquet", "deep/b.parquet", ""]
    for path, part in paths:
        whole = pq.read_table(path / part if part else path)
        rows = np.flatnonzero(draw.random(len(whole)) < share)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(content, "BATCH_BYTES", at_once)
            batches = list(rows_of(str(path), part, rows, ["text", "number"]))
        assert all(batch.num_rows for batch in batches)
        found = pa.Table.from_batches(batches, pa.schema([whole.schema.field("text"), whole.schema.field("number")]))
        assert found.to_pylist() == whole.select(["text", "number"]).take(pa.array(rows)).to_pylist()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Four files of fingerprints, one of a single row: their sources, the spots of the rows, and the columns."""
    draw = np.random.default_rng(3)
    columns = {
        "bands": draw.integers(0, 1 << 64, (130, BANDS), dtype=np.uint64),
        "sketch": draw.integers(0, 256, (130, BINS), dtype=np.uint8),
    }
    return *write_sources(tmp_path_factory.mktemp("sources"), columns, (40, 41, 70)), columns


@settings(deadline=None)
@given(seeds, shares, batch_bytes, st.sampled_from([["bands"], ["sketch", "bands"]]))
def test_looked_up_is_what_lies_there(sources, seed, share, at_once, columns):
    files_of, spots, values = sources
    draw = np.random.default_rng(seed)
    rows = np.flatnonzero(draw.random(len(spots)) < share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "BATCH_BYTES", at_once)
        found = list(looked_up(spots[rows], files_of, columns))
    assert (
        np.concatenate([np.empty(0, np.uint64), *(spots[rows][at] for at, _ in found)]).tolist()
        == spots[rows].tolist()
    )
    for at, batch in found:
        for name in columns:
            there = matrix(batch.column(name), values[name].dtype)
            assert there.tolist() == values[name][rows[at]].tolist()


def test_records_are_brought_into_the_order_of_their_spots(sources):
    draw = np.random.default_rng(1)
    files = slim_records(draw, sources[1], draw.integers(1, 1000, len(sources[1])))
    mixed = draw.permutation(files)
    assert by_spot([mixed[:50], mixed[50:]]).tobytes() == files.tobytes()
