"""The surviving rows with all their columns, written by the workers that read them: text never enters the JVM."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from spark_jobs.content import arrow_schema_of, part_names, pieces, reading_tasks
from spark_jobs.near_duplicates.edges import edge_blobs, edges_in
from spark_jobs.near_duplicates.exchange import BLOBS, Blobs, buckets_in, exchanged, gathered, of_kind, scattered
from spark_jobs.near_duplicates.keep_order import is_fresh
from spark_jobs.near_duplicates.records import (
    KIND_SLIM,
    SLIM,
    Records,
    picked,
    place_numbers,
    row_group_bucket,
    spots_of,
)
from spark_jobs.parts import write_none, write_parts
from spark_jobs.storage import Storage

# Text that a worker gathers for a row group.
_ROW_GROUP_BYTES = 32 << 20
# Records of files that a bucket of row groups may have.
_BUCKET_BYTES = 16 << 20


def write_survivors(slim: DataFrame, near: DataFrame, files: int, documents: Sequence[str], output: str) -> int:
    """Write the rows of the fresh files that stay as Parquet; return their number.

    Args:
        slim: blobs of SLIM records, the best file of each content.
        near: blobs of EDGEs, to each near-duplicate (worse) from the file that it goes for.
        files: how many files there are in `slim`.
        documents: paths of the content by delivery.
        output: the folder.
    """
    rows = 0
    for delivery, path in enumerate(documents):
        storage = Storage(path)
        tasks = reading_tasks(slim.sparkSession, storage.files()) if storage.exists() else 1
        buckets = max(tasks, files * SLIM.itemsize // _BUCKET_BYTES)
        found = _by_row_group(slim, near, delivery, buckets)
        if storage.exists():
            rows += _write(gathered(found, tasks), path, output, f"part-{delivery:03d}")
        elif not exchanged(found, tasks, _counts, "files long").isEmpty():
            raise ValueError(f"{path} is gone, and files of it are kept again: their rows cannot be written")
    if not rows and Storage(documents[-1]).exists():
        write_none(arrow_schema_of(documents[-1]), output)
    return rows


def _by_row_group(slim: DataFrame, near: DataFrame, delivery: int, buckets: int) -> DataFrame:
    """The fresh files of a delivery, and the edges to those of them that go, in buckets of row groups."""

    def scatter_files(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for blob in batch.column("records"):
                files = np.frombuffer(blob.as_buffer(), SLIM)
                here = picked(files, is_fresh(files["key"]) & (files["place"]["delivery"] == delivery))
                yield scattered(here, KIND_SLIM, row_group_bucket(here["place"], buckets))

    def scatter_edges(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for edges in edges_in(batches):
            here = picked(edges, edges["places"][:, 1]["delivery"] == delivery)
            yield from edge_blobs(here, row_group_bucket(here["places"][:, 1], buckets))

    return slim.mapInArrow(scatter_files, BLOBS).unionAll(near.mapInArrow(scatter_edges, BLOBS))


def _staying(groups: Iterator[tuple[int, Blobs]]) -> Iterator[Records]:
    """The PLACEs of the files of each bucket that stay, as their content lies."""
    for _, blobs in groups:
        following: list[tuple[int, Records]] = []
        files = of_kind(blobs, KIND_SLIM, SLIM, following)
        gone = [spots_of(edges["worse"]) for _, edges in chain(following, blobs)]
        places = files["place"][~np.isin(spots_of(files["key"]), np.concatenate([np.empty(0, np.uint64), *gone]))]
        if len(places):
            yield picked(places, np.lexsort(place_numbers(places).T[::-1]))


def _counts(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
    return (pa.record_batch({"files": pa.array([len(places)])}) for places in _staying(groups))


def _work(places: Records, parts: Sequence[str]) -> pa.RecordBatch:
    """What `pieces` reads: a row for each row group."""
    groups = places[["part", "row_group"]]
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    rows, bounds = pa.array(places["row"].astype(np.int32)), pa.array(np.append(starts, len(places)).astype(np.int32))
    columns = {
        "part": pa.array(parts, pa.large_string()).take(pa.array(places["part"][starts])),
        "row_group": pa.array(places["row_group"][starts].astype(np.int32)),
        "rows": pa.ListArray.from_arrays(bounds, rows),
    }
    return pa.record_batch(columns)


def _write(found: DataFrame, documents: str, output: str, name: str) -> int:
    schema, parts = arrow_schema_of(documents), part_names(documents)

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        work = (_work(places, parts) for places in _staying(buckets_in(batches)))
        for piece in pieces(documents, work, schema.names):
            columns = [
                piece.batch.column(field.name).cast(field.type)
                if field.name in piece.batch.schema.names
                else pa.nulls(len(piece.rows), field.type)
                for field in schema
            ]
            yield pa.record_batch(columns, schema=schema)

    # Contents do not repeat: to look for those that do is a tenth of what writing them takes.
    repeating = [field for field in schema.names if field != "content"]
    return write_parts(
        found, read, schema, output, name, _ROW_GROUP_BYTES, compression="zstd", use_dictionary=repeating
    )
