"""What was measured of files, read by the workers where it lies: bands and sketches never enter the JVM twice."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from spark_jobs.content import rows_of
from spark_jobs.near_duplicates.records import SLIM, Records, joined, picked, spots_of


class Source(NamedTuple):
    """A Parquet file with fingerprints: its folder and its name, and the path of the documents that it tells of."""

    folder: str
    part: str
    documents: str = ""


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
