"""The surviving rows with all their columns, written by the workers that read them: text never enters the JVM."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.content import arrow_schema_of, part_names, pieces, spread
from spark_jobs.near_duplicates.exchange import Blobs, exchanged, of_kind
from spark_jobs.near_duplicates.keep_order import is_fresh
from spark_jobs.near_duplicates.records import KIND_REMOVAL, KIND_SLIM, SLIM, Records, picked, place_numbers, spots_of
from spark_jobs.parts import write_none, write_parts
from spark_jobs.storage import Storage

# Text that a worker gathers for a row group.
_ROW_GROUP_BYTES = 32 << 20
_LOCATED = "delivery int, part string, row_group int, rows array<int>"


def write_survivors(slim: DataFrame, removals: DataFrame, documents: Sequence[str], tasks: int, output: str) -> int:
    """Write the rows of the fresh files that stay as Parquet; return their number.

    Args:
        slim: blobs of SLIM records in buckets of spots, the best file of each content.
        removals: blobs of REMOVALs, in the same buckets.
        documents: paths of the content by delivery.
        tasks: Spark tasks that share the buckets.
        output: the folder.
    """
    parts = [part_names(path) if Storage(path).exists() else [] for path in documents]
    located, rows = _located(slim, removals, parts, tasks), 0
    for delivery, path in enumerate(documents):
        here = located.where(F.col("delivery") == delivery)
        if Storage(path).exists():
            rows += _write(here, path, output, f"part-{delivery:03d}")
        elif not here.isEmpty():
            raise ValueError(f"{path} is gone, and files of it are kept again: their rows cannot be written")
    if not rows and Storage(documents[-1]).exists():
        write_none(arrow_schema_of(documents[-1]), output)
    return rows


def _located(slim: DataFrame, removals: DataFrame, parts: Sequence[Sequence[str]], tasks: int) -> DataFrame:
    """Where the fresh files lie that are not removed: rows of _LOCATED, of some files of a row group."""

    def stay(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in groups:
            following: list[tuple[int, Records]] = []
            files = of_kind(blobs, KIND_SLIM, SLIM, following)
            gone = [spots_of(removed["key"]) for _, removed in chain(following, blobs)]
            stays = ~np.isin(spots_of(files["key"]), np.concatenate([np.empty(0, np.uint64), *gone]))
            yield from _by_row_group(files["place"][stays & is_fresh(files["key"])], parts)

    both = slim.unionAll(removals.where(F.col("kind") == KIND_REMOVAL))
    return exchanged(both, tasks, stay, _LOCATED)


def _by_row_group(places: Records, parts: Sequence[Sequence[str]]) -> Iterator[pa.RecordBatch]:
    places = picked(places, np.lexsort(place_numbers(places).T[::-1]))
    for delivery in np.unique(places["delivery"]).tolist():
        here = places[places["delivery"] == delivery]
        groups = here[["part", "row_group"]]
        starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
        names = pa.array(parts[delivery], pa.large_string()).take(pa.array(here["part"][starts]))
        columns = [pa.array(np.full(len(starts), delivery, np.int32)), names]
        columns.append(pa.array(here["row_group"][starts].astype(np.int32)))
        rows, bounds = pa.array(here["row"].astype(np.int32)), pa.array(np.append(starts, len(here)).astype(np.int32))
        columns.append(pa.ListArray.from_arrays(bounds, rows))
        yield pa.record_batch(columns, names=["delivery", "part", "row_group", "rows"])


def _write(located: DataFrame, documents: str, output: str, name: str) -> int:
    schema = arrow_schema_of(documents)
    gathered = located.groupBy("part", "row_group").agg(F.sort_array(F.flatten(F.collect_list("rows"))).alias("rows"))
    work = spread(gathered, documents)

    def read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for piece in pieces(documents, batches, schema.names):
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
        work, read, schema, output, name, _ROW_GROUP_BYTES, compression="zstd", use_dictionary=repeating
    )
