"""What was measured of files, read by the workers where it lies: bands and sketches never enter the JVM twice."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from spark_jobs.content import LOCATION, rows_of
from spark_jobs.near_duplicates.exchange import BLOBS, Records, flushed, scattered
from spark_jobs.near_duplicates.fingerprints import matrix
from spark_jobs.near_duplicates.records import KIND_SLIM, SLIM, bucket_of, spots_of


class Source(NamedTuple):
    """A Parquet file with fingerprints: its folder and its name."""

    folder: str
    part: str


def slim_blobs(files: DataFrame, parts: Sequence[Sequence[str]], buckets: int) -> DataFrame:
    """Blobs of SLIM records, in the buckets of their spots.

    Args:
        files: `key`, `shingles`, `delivery`, and where the content lies.
        parts: the names of the files that hold the content, by delivery.
        buckets: number of buckets.
    """

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for found in flushed(_slim(batch, parts) for batch in batches):
            yield scattered(found, KIND_SLIM, bucket_of(spots_of(found["key"]), buckets))

    return files.select("key", "shingles", "delivery", *LOCATION).mapInArrow(pack, BLOBS)


def _slim(batch: pa.RecordBatch, parts: Sequence[Sequence[str]]) -> Records:
    found = np.empty(batch.num_rows, SLIM)
    place = found["place"]
    found["key"] = matrix(batch.column("key"), "u1")
    found["shingles"] = place["shingles"] = np.minimum(np.asarray(batch.column("shingles")), 0xFFFFFFFF)
    for name in ("delivery", "row_group", "row"):
        place[name] = np.asarray(batch.column(name))
    for delivery, names in enumerate(parts):
        here = np.flatnonzero(place["delivery"] == delivery)
        numbers = pc.index_in(batch.column("part").take(pa.array(here)), pa.array(names, batch.column("part").type))
        place["part"][here] = np.asarray(numbers)
    return found


def by_spot(parts: Iterable[Records]) -> Records:
    """SLIM records as one array, sorted by spot."""
    files = np.concatenate([np.empty(0, SLIM), *parts])
    return files[np.argsort(spots_of(files["key"]))]


def looked_up(
    files: Records, sources: Sequence[Source], column: str, dtype: str
) -> Iterator[tuple[Records, NDArray[np.generic]]]:
    """Files (SLIM, sorted by spot) with a column of their fingerprints, a binary one, in batches: (n), (n, values)."""
    spots = spots_of(files["key"])
    numbers, rows = spots >> np.uint64(32), (spots & np.uint64(0xFFFFFFFF)).astype(np.int64)
    starts = np.flatnonzero(np.diff(numbers, prepend=np.uint64(0xFFFFFFFFFFFFFFFF)))
    for first, end in zip(starts, [*starts, len(files)][1:], strict=True):
        source = sources[int(numbers[first])]
        for batch in rows_of(source.folder, source.part, rows[first:end], [column]):
            yield files[first : first + batch.num_rows], matrix(batch.column(column), dtype)
            first += batch.num_rows
