"""What was measured of files, read by the workers where it lies: bands and sketches never enter the JVM twice."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_jobs.content import rows_of, text_buffers
from spark_jobs.near_duplicates.copies import content_bucket
from spark_jobs.near_duplicates.exchange import BLOBS, flushed, scattered
from spark_jobs.near_duplicates.fingerprints import exact_hashes, matrix
from spark_jobs.near_duplicates.keep_order import RANK_BYTES, Keys, keys_of, settled
from spark_jobs.near_duplicates.records import FILE, KIND_FILE, SLIM, Records, joined, picked, spots_of
from spark_jobs.rules.licenses import licence_classes
from spark_jobs.workers import begin_task

_Keys = Callable[[pa.RecordBatch, Records, NDArray[np.uint64]], Keys]
# Names of the Parquet files of a folder, by delivery.
Parts = Sequence[Sequence[str]]


class Source(NamedTuple):
    """A Parquet file with fingerprints: its folder and its name, and the path of the documents that it tells of."""

    folder: str
    part: str
    documents: str = ""


def fresh_files(files: DataFrame, fingerprints: Parts, documents: Parts, buckets: int) -> DataFrame:
    """Blobs of FILEs in the buckets of their contents.

    Args:
        files: what is measured of them but for bands and sketches, `delivery`, and where their fingerprints lie
            (`fingerprint_file`, `fingerprint_row`).
        fingerprints, documents: the names of the files that hold fingerprints and content.
        buckets: number of buckets.
    """

    def key(batch: pa.RecordBatch, found: Records, spots: NDArray[np.uint64]) -> Keys:
        stars, sizes = (np.asarray(pc.fill_null(batch.column(name), 0)) for name in ("stars", "size"))
        licences, ids = licence_classes(batch.column("licenses")), found["id"].copy().view(np.uint8)
        return keys_of(licences, stars, found["repo"], sizes, ids.reshape(-1, 16), spots)

    return _packed(files, fingerprints, documents, buckets, key)


def earlier_files(files: DataFrame, fingerprints: Parts, documents: Parts, buckets: int) -> DataFrame:
    """The same of files of earlier deliveries, whose `rank` is known, and whether they were kept (`settled`)."""

    def key(batch: pa.RecordBatch, found: Records, spots: NDArray[np.uint64]) -> Keys:
        ranks = matrix(batch.column("rank"), "u1")[:, :RANK_BYTES]
        keys = np.hstack([ranks, spots.astype(">u8")[:, None].view(np.uint8)])
        return np.where(np.asarray(batch.column("settled"))[:, None], settled(keys), keys)

    return _packed(files, fingerprints, documents, buckets, key)


def _packed(files: DataFrame, fingerprints: Parts, documents: Parts, buckets: int, key: _Keys) -> DataFrame:
    first = np.cumsum([0, *map(len, fingerprints)], dtype=np.uint64)

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        begin_task()
        for found in flushed(records(batch) for batch in batches if batch.num_rows):
            yield scattered(found, KIND_FILE, content_bucket(found, buckets))

    def records(batch: pa.RecordBatch) -> Records:
        found = np.empty(batch.num_rows, FILE)
        found["content"] = matrix(batch.column("content_hash"), "<u8")
        found["id"] = matrix(batch.column("file_id"), "<u8")
        repos = pc.fill_null(batch.column("repo"), "")
        found["repo"] = np.where(np.asarray(pc.equal(repos, "")), 0, exact_hashes(*text_buffers(repos))[:, 0])
        place = found["place"]
        found["shingles"] = place["shingles"] = np.minimum(np.asarray(batch.column("shingles")), 0xFFFFFFFF)
        for name in ("delivery", "row_group", "row"):
            place[name] = np.asarray(batch.column(name))
        place["part"] = _numbers(batch, "part", documents)
        files = _numbers(batch, "fingerprint_file", fingerprints) + first[place["delivery"]]
        spots = files << np.uint64(32) | np.asarray(batch.column("fingerprint_row")).astype(np.uint64)
        found["key"] = key(batch, found, spots)
        return found

    return files.mapInArrow(pack, BLOBS)


def _numbers(batch: pa.RecordBatch, column: str, names: Parts) -> NDArray[np.uint64]:
    """The number of each row's file (n) among those of its delivery; 0 where these are gone."""
    deliveries, found = np.asarray(batch.column("delivery")), np.empty(batch.num_rows, np.uint64)
    for delivery in np.unique(deliveries).tolist():
        here = np.flatnonzero(deliveries == delivery)
        there = batch.column(column).take(pa.array(here))
        found[here] = np.asarray(pc.fill_null(pc.index_in(there, pa.array(names[delivery], there.type)), 0))
    return found


def by_spot(parts: Iterable[Records]) -> Records:
    """SLIM records as one array, sorted by spot."""
    files = joined([np.empty(0, SLIM), *parts])
    return picked(files, np.argsort(spots_of(files["key"])))


def looked_up(
    spots: NDArray[np.uint64], sources: Sequence[Source], columns: Sequence[str]
) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """Columns of the fingerprints at these spots (sorted, each once), in batches: which of them, and as many rows."""
    numbers, rows = spots >> np.uint64(32), (spots & np.uint64(0xFFFFFFFF)).astype(np.int64)
    starts = np.flatnonzero(np.diff(numbers, prepend=np.uint64(0xFFFFFFFFFFFFFFFF)))
    for first, end in zip(starts, [*starts, len(spots)][1:], strict=True):
        source = sources[int(numbers[first])]
        for batch in rows_of(source.folder, source.part, rows[first:end], columns):
            yield slice(first, first + batch.num_rows), batch
            first += batch.num_rows
