"""The files that compete to be kept, as records, from their fingerprints, which the workers read where they lie.

Through Spark come only the rows that are wanted, and of earlier deliveries how they ranked: as rows of their own, what
a FILE consists of took the JVM ten times as long to hand over as the workers take to read it.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs.content import rows_of, text_buffers
from spark_jobs.near_duplicates.copies import content_bucket
from spark_jobs.near_duplicates.exchange import BLOBS, flushed, scattered
from spark_jobs.near_duplicates.fingerprints import exact_hashes, matrix
from spark_jobs.near_duplicates.keep_order import Keys, keys_of
from spark_jobs.near_duplicates.keep_order import settled as settled_keys
from spark_jobs.near_duplicates.records import FILE, KIND_FILE, Records, picked
from spark_jobs.rules.licenses import licence_classes
from spark_jobs.session import shuffle_tasks
from spark_jobs.workers import begin_task

# Where the fingerprint of a file lies: a Parquet file of its delivery's, and the row in it.
SPOT = ("fingerprint_file", "fingerprint_row")
# What earlier runs knew of a file: its rank, and whether it was kept.
RANKED = ("rank", "settled")
# Rows of one file that are asked for at once.
_ROWS_AT_ONCE = 1 << 16
_READ = ("file_id", "repo", "licenses", "stars", "size", "part", "row_group", "row", "content_hash", "shingles")

# Names of the Parquet files of folders, by delivery.
Parts = Sequence[Sequence[str]]


def all_rows(spark: SparkSession, delivery: int, names: Sequence[str]) -> DataFrame:
    """All rows of a delivery's files of fingerprints, as `competing` takes them."""
    files = pa.table({"fingerprint_file": pa.array(names, pa.string())})
    spread = spark.createDataFrame(files).repartition(max(1, min(len(names), shuffle_tasks(spark))))
    return spread.select(F.lit(delivery).alias("delivery"), "fingerprint_file")


def some_rows(files: DataFrame) -> DataFrame:
    """The same of some rows (`delivery` and SPOT), with their RANKED columns where they have them."""
    beside = [name for name in RANKED if name in files.columns]
    block = F.floor(F.col("fingerprint_row") / _ROWS_AT_ONCE)
    found = F.sort_array(F.collect_list(F.struct("fingerprint_row", *beside))).alias("found")
    gathered = files.groupBy("delivery", "fingerprint_file", block).agg(found)
    lists = [F.col(f"found.{name}").alias(name) for name in ("fingerprint_row", *beside)]
    return gathered.select("delivery", "fingerprint_file", *lists)


def competing(
    wanted: DataFrame, folders: Sequence[str], fingerprints: Parts, documents: Parts, buckets: int
) -> DataFrame:
    """Blobs of FILEs in the buckets of their contents. Rows without content do not compete.

    Args:
        wanted: rows of fingerprints, as `all_rows` or `some_rows` tells them.
        folders: where the fingerprints lie, by delivery.
        fingerprints, documents: the names of the files that hold fingerprints and content.
        buckets: number of buckets.
    """
    first = np.cumsum([0, *map(len, fingerprints)])

    def pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        begin_task()
        for found in flushed(files for batch in batches for row in range(len(batch)) for files in read(batch, row)):
            yield scattered(found, KIND_FILE, content_bucket(found, buckets))

    def read(batch: pa.RecordBatch, row: int) -> Iterator[Records]:
        delivery, part = (batch.column(name)[row].as_py() for name in ("delivery", "fingerprint_file"))
        told = [name for name in ("fingerprint_row", *RANKED) if name in batch.schema.names]
        lists = {name: batch.column(name)[row].values for name in told}
        rows = np.asarray(lists["fingerprint_row"]) if lists else None
        file, begin = first[delivery] + fingerprints[delivery].index(part), 0
        for found in rows_of(folders[delivery], part, rows, _READ):
            end = begin + len(found)
            at = np.arange(begin, end) if rows is None else rows[begin:end]
            spots = np.uint64(file << 32) | at.astype(np.uint64)
            known = {name: lists[name][begin:end] for name in RANKED if name in lists}
            files = _files(found, delivery, documents[delivery])
            files["key"] = _known_keys(spots, **known) if known else _keys(found, files, spots)
            yield picked(files, np.asarray(found.column("content_hash").is_valid()))
            begin = end

    return wanted.mapInArrow(pack, BLOBS)


def _files(found: pa.RecordBatch, delivery: int, documents: Sequence[str]) -> Records:
    """FILEs of rows of fingerprints, but for their keys."""
    files = np.empty(len(found), FILE)
    files["content"] = matrix(pc.fill_null(found.column("content_hash"), bytes(16)), "<u8")
    files["id"] = matrix(found.column("file_id"), "<u8")
    repos = pc.fill_null(found.column("repo"), "")
    files["repo"] = np.where(np.asarray(pc.equal(repos, "")), 0, exact_hashes(*text_buffers(repos))[:, 0])
    parts = found.column("part")
    place = files["place"]
    place["delivery"] = delivery
    place["part"] = np.asarray(pc.fill_null(pc.index_in(parts, pa.array(documents, parts.type)), 0))
    for name in ("row_group", "row"):
        place[name] = np.asarray(found.column(name))
    shingles = np.asarray(pc.fill_null(found.column("shingles"), 0))
    files["shingles"] = place["shingles"] = np.minimum(shingles, 0xFFFFFFFF)
    return files


def _keys(found: pa.RecordBatch, files: Records, spots: NDArray[np.uint64]) -> Keys:
    """Keys of fresh files."""
    stars, sizes = (np.asarray(pc.fill_null(found.column(name), 0)) for name in ("stars", "size"))
    licences, ids = licence_classes(found.column("licenses")), files["id"].copy().view(np.uint8)
    return keys_of(licences, stars, files["repo"], sizes, ids.reshape(-1, 16), spots)


def _known_keys(spots: NDArray[np.uint64], rank: pa.Array, settled: pa.Array) -> Keys:
    """Keys of files that earlier runs ranked."""
    keys = np.hstack([matrix(rank, "u1"), spots.astype(">u8")[:, None].view(np.uint8)])
    return np.where(np.asarray(settled)[:, None], settled_keys(keys), keys)
