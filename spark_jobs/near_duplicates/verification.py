"""Proof: the exact Jaccard similarity of the pairs that their sketches leave open, from their content.

Content is read where it lies, each row group once, and never shuffled: what is kept of it are the shingle sets of the
files that are in an open pair, which the workers that read them write beside the other scratch rows. Then the pairs
are shared out, connected ones together, and their sets merged.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs.content import pieces, rows_of, text_buffers
from spark_jobs.near_duplicates.edges import SHINGLES, UNITS, edge_blobs, edges_in
from spark_jobs.near_duplicates.exchange import BLOBS, Blobs, buckets_in, flushed, gathered, scattered
from spark_jobs.near_duplicates.records import (
    KIND_EDGE,
    KIND_PLACE,
    Hashes,
    Records,
    first_of_each,
    joined,
    numbered,
    picked,
    place_numbers,
    row_group_bucket,
    search,
)
from spark_jobs.near_duplicates.settings import Fingerprint
from spark_jobs.near_duplicates.shingles import jaccard, shingle_sets
from spark_jobs.near_duplicates.stored import Stored, stored_exchange
from spark_jobs.parts import write_parts

# Edges that are worth a task of their own.
_TASK_EDGES = 250_000
# Shingle sets that a worker holds at once, and that it gathers for a row group of the file that it writes.
RUN_BYTES, _ROW_GROUP_BYTES = 256 << 20, 4 << 20

_SETS = pa.schema([("high", pa.uint64()), ("low", pa.uint64()), ("shingles", pa.large_list(pa.uint64()))])
_OPTIONS = {"compression": "none", "use_dictionary": False, "write_statistics": False}


def verified(
    spark: SparkSession,
    edges: Stored,
    documents: Sequence[str],
    parts: Sequence[Sequence[str]],
    threshold: float,
    taken: Fingerprint,
    workers: int,
    sets: str,
    folder: str,
) -> Stored:
    """Blobs of those of the edges whose exact similarity is at least the threshold, with that similarity.

    Args:
        spark: the session.
        edges: blobs of EDGEs, each pair once, in UNITS buckets: the more files two of them share, the less is read.
        documents: paths of the tables that hold the content, by delivery.
        parts: the names of their files, by delivery.
        threshold: least Jaccard similarity of the shingle sets.
        taken: what is taken of a text.
        workers: cores that share the work.
        sets: where the shingle sets go meanwhile.
        folder: where the blobs are stored.
    """
    tasks = min(UNITS, max(workers, edges.count(KIND_EDGE) // _TASK_EDGES))
    blobs = edges.blobs(spark, KIND_EDGE)
    _write_sets(blobs, documents, parts, taken, tasks, sets)
    shares = blobs.withColumn("bucket", F.floor(F.col("bucket") * tasks / UNITS).cast("int"))

    def verify(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in groups:
            records = joined(records for _, records in blobs)
            for run in _runs(records):
                yield from edge_blobs(_verify(run, threshold, sets, tasks))

    return stored_exchange(shares, tasks, verify, folder)


def _write_sets(
    edges: DataFrame,
    documents: Sequence[str],
    parts: Sequence[Sequence[str]],
    taken: Fingerprint,
    tasks: int,
    folder: str,
) -> None:
    """Write the shingle sets of the files of edges: those of a row group of content to one file."""

    def scatter(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for records in flushed(edges_in(batches)):
            places = _distinct(np.ascontiguousarray(records["places"]).ravel())
            yield scattered(places, KIND_PLACE, row_group_bucket(places, tasks))

    def fetch(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _, blobs in buckets_in(batches):
            yield from _fetch(_distinct(joined(records for _, records in blobs)), documents, parts, taken)

    places = gathered(edges.mapInArrow(scatter, BLOBS), tasks)
    write_parts(places, fetch, _SETS, folder, "sets", _ROW_GROUP_BYTES, **_OPTIONS)


def _distinct(places: Records) -> Records:
    """Each place once, as the content lies."""
    places = picked(places, first_of_each(place_numbers(places)))
    return picked(places, np.lexsort(place_numbers(places).T[::-1]))


def _fetch(
    files: Records, documents: Sequence[str], parts: Sequence[Sequence[str]], taken: Fingerprint
) -> Iterator[pa.RecordBatch]:
    """Rows of _SETS of files, in the order of their PLACEs; each row group is read once."""
    groups = files[["delivery", "part", "row_group"]]
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])) if len(files) else np.empty(0, np.int64)
    for first, end in zip(starts, [*starts, len(files)][1:], strict=True):
        delivery, part, row_group = groups[first].tolist()
        columns = [pa.array([parts[delivery][part]]), pa.array([row_group]), pa.array([files["row"][first:end]])]
        work = pa.record_batch(columns, names=["part", "row_group", "rows"])
        for piece in pieces(documents[delivery], [work], ["content"]):
            hashes, bounds = shingle_sets(*text_buffers(piece.batch.column("content")), taken=taken)
            high, low = place_numbers(files[first : first + len(piece.rows)]).T.copy()
            sets = pa.LargeListArray.from_arrays(pa.array(bounds), pa.array(hashes))
            yield pa.record_batch([pa.array(high), pa.array(low), sets], schema=_SETS)
            first += len(piece.rows)


def _runs(edges: Records) -> Iterator[Records]:
    """Edges in runs whose files, each counted once a run, have about RUN_BYTES of shingles."""
    while len(edges):
        places = np.ascontiguousarray(edges["places"]).ravel()
        first = first_of_each(place_numbers(places))
        over = int(np.searchsorted(np.cumsum(places["shingles"][first].astype(np.int64) * 8), RUN_BYTES))
        end = len(edges) if over == len(first) else max(1, int(first[over]) // 2)
        yield edges[:end]
        edges = edges[end:]


def _verify(run: Records, threshold: float, folder: str, files: int) -> Records:
    """The edges of a run that are similar, by the sets in `folder`, which are in so many files."""
    places = np.ascontiguousarray(run["places"]).ravel()
    first, of = numbered(place_numbers(places))
    hashes, bounds, order = _sets_of(places[first], folder, files)
    numbers = np.argsort(order)[of]
    similarity = jaccard(hashes, bounds, numbers[::2].copy(), numbers[1::2].copy())
    similar = picked(run, similarity >= threshold)
    similar["similarity"], similar["proof"] = similarity[similarity >= threshold], SHINGLES
    return similar


def _sets_of(places: Records, folder: str, files: int) -> tuple[Hashes, NDArray[np.int64], NDArray[np.int64]]:
    """The shingle sets of distinct places end to end, their bounds, and whose they are, by numbers of the places."""
    hashes, bounds = np.empty(int(places["shingles"].astype(np.int64).sum()), np.uint64), [np.zeros(1, np.int64)]
    owners, of_file, numbers = [np.empty(0, np.int64)], row_group_bucket(places, files), place_numbers(places)
    for file in np.unique(of_file).tolist():
        name, here = f"sets-{file:05d}.parquet", np.flatnonzero(of_file == file)
        here = here[np.lexsort(numbers[here].T[::-1])]
        known = np.concatenate([_place_columns(batch) for batch in rows_of(folder, name, None, ["high", "low"])])
        rows = search(known, numbers[here])
        for batch in rows_of(folder, name, rows, ["shingles"]):
            sets = batch.column("shingles")
            found, begin = np.asarray(sets.flatten()), int(bounds[-1][-1])
            hashes[begin : begin + len(found)] = found
            bounds.append(begin + np.cumsum(np.asarray(sets.value_lengths())))
        owners.append(here)
    return hashes, np.concatenate(bounds), np.concatenate(owners)


def _place_columns(batch: pa.RecordBatch) -> Hashes:
    return np.column_stack([np.asarray(batch.column(name)) for name in ("high", "low")])
