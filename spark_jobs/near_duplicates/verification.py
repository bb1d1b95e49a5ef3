"""Proof: the exact Jaccard similarity of the pairs that their sketches leave open, from their content.

Content is fetched from the row groups where it lies and never shuffled: a worker takes a run of pairs, reads each
row group that they touch once, keeps the shingle sets of the wanted rows alone, and merges the sets pair by pair.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.content import pieces, text_buffers
from spark_jobs.near_duplicates.edges import SHINGLES, UNITS, count_of, edge_blobs
from spark_jobs.near_duplicates.exchange import Blobs, Records, exchanged
from spark_jobs.near_duplicates.records import DTYPES, first_of_each, numbered, place_numbers
from spark_jobs.near_duplicates.settings import Fingerprint
from spark_jobs.near_duplicates.shingles import jaccard, shingle_sets

# Edges that are worth a task of their own. Every task reads the row groups of its own pairs, and a similar file may
# lie anywhere, so that many tasks read much of the content many times.
_TASK_EDGES = 500_000
# Shingle sets that a worker holds at once. Each run reads the row groups of its files.
RUN_BYTES = 256 << 20


def verified(
    edges: DataFrame,
    documents: Sequence[str],
    parts: Sequence[Sequence[str]],
    threshold: float,
    taken: Fingerprint,
    workers: int,
) -> DataFrame:
    """Blobs of those of the edges whose exact similarity is at least the threshold, with that similarity.

    Args:
        edges: blobs of EDGEs, each pair once, in UNITS buckets: the less content two of them share, the less is read.
        documents: paths of the tables that hold the content, by delivery.
        parts: the names of their files, by delivery.
        threshold: least Jaccard similarity of the shingle sets.
        taken: what is taken of a text.
        workers: cores that share the work.
    """
    tasks = min(UNITS, max(workers, count_of(edges) // _TASK_EDGES))
    shares = edges.withColumn("bucket", F.floor(F.col("bucket") * tasks / UNITS).cast("int"))

    def verify(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in groups:
            records = np.concatenate([records for _, records in blobs])
            for run in _runs(records):
                yield from edge_blobs(_verify(run, documents, parts, threshold, taken))

    return exchanged(shares, tasks, verify, DTYPES)


def _runs(edges: Records) -> Iterator[Records]:
    """Edges in runs whose files, each counted once a run, have about RUN_BYTES of shingles."""
    while len(edges):
        places = np.ascontiguousarray(edges["places"]).ravel()
        first = first_of_each(place_numbers(places))
        over = int(np.searchsorted(np.cumsum(places["shingles"][first].astype(np.int64) * 8), RUN_BYTES))
        end = len(edges) if over == len(first) else max(1, int(first[over]) // 2)
        yield edges[:end]
        edges = edges[end:]


def _verify(
    run: Records,
    documents: Sequence[str],
    parts: Sequence[Sequence[str]],
    threshold: float,
    taken: Fingerprint,
) -> Records:
    """The edges of a run that are similar."""
    places = np.ascontiguousarray(run["places"]).ravel()
    columns = place_numbers(places)
    files, of = numbered(columns)
    order = np.lexsort(columns[files].T[::-1])
    numbers = np.argsort(order)[of]
    hashes, bounds = _fetch(places[files[order]], documents, parts, taken)
    similarity = jaccard(hashes, bounds, numbers[::2].copy(), numbers[1::2].copy())
    similar = run[similarity >= threshold]
    similar["similarity"], similar["proof"] = similarity[similarity >= threshold], SHINGLES
    return similar


def _fetch(
    files: NDArray[np.void], documents: Sequence[str], parts: Sequence[Sequence[str]], taken: Fingerprint
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Shingle sets of files, in the order of their PLACEs; each row group is read once."""
    hashes, bounds = np.empty(int(files["shingles"].astype(np.int64).sum()), np.uint64), [np.zeros(1, np.int64)]
    groups = files[["delivery", "part", "row_group"]]
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])) if len(files) else np.empty(0, np.int64)
    for start, rows in zip(starts, np.split(files["row"], starts[1:]), strict=True):
        delivery, part, row_group = groups[start].tolist()
        columns = [pa.array([parts[delivery][part]]), pa.array([row_group]), pa.array([rows])]
        work = pa.record_batch(columns, names=["part", "row_group", "rows"])
        for piece in pieces(documents[delivery], [work], ["content"]):
            found, ends = shingle_sets(*text_buffers(piece.batch.column("content")), taken=taken)
            begin = bounds[-1][-1]
            hashes[begin : begin + len(found)] = found
            bounds.append(begin + ends[1:])
    return hashes, np.concatenate(bounds)
