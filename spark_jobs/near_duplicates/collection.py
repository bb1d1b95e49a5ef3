"""What earlier runs left: the files that were kept, those that went for them, and those that were withdrawn.

A run's output is the state of the whole collection after it. Its table of duplicates has the removals of all
deliveries; `_index` below it has this run's own delivery and all ids withdrawn so far, and its manifest names the
deliveries, in order, with where their fingerprints and their documents lie. So a new delivery is compared with all
that was kept without reading it, and a withdrawal finds what had gone for the withdrawn.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.content import part_names
from spark_jobs.near_duplicates.competitors import SPOT
from spark_jobs.near_duplicates.exchange import BLOBS
from spark_jobs.near_duplicates.fingerprints import binary
from spark_jobs.near_duplicates.keep_order import RANK_BYTES
from spark_jobs.near_duplicates.lookup import Source
from spark_jobs.near_duplicates.records import DTYPES, KIND_COPY, KIND_SLIM, spots_of
from spark_jobs.near_duplicates.settings import Settings
from spark_jobs.storage import Storage

FILES, FINGERPRINTS, WITHDRAWN = "_index/files", "_index/fingerprints", "_index/withdrawn"
WITHDRAWN_SCHEMA = pa.schema([("file_id", pa.binary())])
_RANKED = "rank binary, fingerprint_file string, fingerprint_row long"
Batches = Iterator[pa.RecordBatch]
_ID = re.compile(r"[0-9a-f]{32}")


class Delivery(NamedTuple):
    """One run's own files: the folders of what competed, of their fingerprints and of their documents, and how the
    latter two were cut into files."""

    files: str
    fingerprints: str
    documents: str
    fingerprints_cut: str
    documents_cut: str

    @classmethod
    def of(cls, files: str, fingerprints: str, documents: str) -> "Delivery":
        """A delivery as it lies there now."""
        files, fingerprints, documents = (Storage(path).uri for path in (files, fingerprints, documents))
        return cls(files, fingerprints, documents, tables.cut(fingerprints), tables.cut(documents))


def fingerprinted(spark: SparkSession, path: str) -> DataFrame:
    """The ids of the files of a delivery, with SPOT."""
    places = (F.col("_metadata.file_name"), F.col("_metadata.row_index"))
    spots = [place.alias(name) for place, name in zip(places, SPOT, strict=True)]
    return spark.read.parquet(path).select("file_id", *spots)


def sources_of(deliveries: Sequence[Delivery]) -> list[Source]:
    """The files of fingerprints, in the order of their numbers."""
    return [
        Source(delivery.fingerprints, name, delivery.documents)
        for delivery in deliveries
        for name in part_names(delivery.fingerprints)
    ]


def ids_of(words: Sequence[str], index: str | None) -> list[str]:
    """File ids (32 hexadecimal digits), from ids and files that hold one a line; ValueError for anything else, and
    if there is no index to withdraw them from."""
    if words and index is None:
        raise ValueError("--forget withdraws files from an earlier run's collection: name its output with --index")
    ids: list[str] = []
    for word in words:
        if _ID.fullmatch(word.lower()):
            ids.append(word.lower())
            continue
        if not Path(word).is_file():
            raise ValueError(f"--forget {word}: neither a file id (32 hexadecimal digits) nor a file of such ids")
        lines = [line.strip().lower() for line in Path(word).read_text().splitlines() if line.strip()]
        if odd := next((line for line in lines if not _ID.fullmatch(line)), None):
            raise ValueError(f"--forget {word}: {odd!r} is no file id (32 hexadecimal digits)")
        ids += lines
    return sorted(set(ids))


def deliveries_of(index: str, settings: Settings) -> list[Delivery]:
    """The deliveries of an earlier output; ValueError if it was made otherwise, or what it needs is gone."""
    if settings.resolve != "leaders":
        raise ValueError("--index needs --resolve leaders: a component may grow into two that were kept")
    record, configuration = tables.require(index, "duplicates"), settings.configuration()
    for name in ("threshold", "scheme", "bands", "rows", "resolve"):
        if record["configuration"][name] != configuration[name]:
            there, here = record["configuration"][name], configuration[name]
            raise ValueError(f"{index} was made with {name} {there}, this run has {here}: they do not belong together")
    found = [Delivery(**delivery) for delivery in record["deliveries"]]
    for delivery in found:
        for path in (delivery.files, delivery.fingerprints):
            if not Storage(path).exists():
                raise ValueError(f"{index} needs the fingerprints in {path}, which are gone")
        if tables.cut(delivery.fingerprints) != delivery.fingerprints_cut:
            raise ValueError(f"{index} needs the fingerprints in {delivery.fingerprints}, which have changed since")
        if settings.verify == "exact" and not (
            Storage(delivery.documents).exists() and tables.cut(delivery.documents) == delivery.documents_cut
        ):
            raise ValueError(
                f"{delivery.documents} is gone or has changed since {index} was made; pairs with its files cannot be "
                "verified: bring it back, or use --verify sketch"
            )
    return found


class Collection:
    """The state after earlier runs, and what is withdrawn from it now."""

    def __init__(self, spark: SparkSession, index: str, deliveries: Sequence[Delivery], forget: Sequence[str]) -> None:
        self._spark, self._index, self.deliveries = spark, index, deliveries
        self._forget = forget

    @cached_property
    def files(self) -> DataFrame:
        """Rows (`file_id`, SPOT, `rank`, `delivery`) of all files of earlier deliveries."""
        first, parts = 0, []
        for number, delivery in enumerate(self.deliveries):
            names = part_names(delivery.fingerprints)
            blobs = self._spark.read.schema(BLOBS).parquet(delivery.files)
            ranks = blobs.where(F.col("kind").isin(KIND_SLIM, KIND_COPY)).mapInArrow(
                _ranks(number, first, names), _RANKED
            )
            parts.append(fingerprinted(self._spark, delivery.fingerprints).join(ranks, list(SPOT)))
            parts[-1] = parts[-1].withColumn("delivery", F.lit(number))
            first += len(names)
        return reduce(DataFrame.unionAll, parts)

    @cached_property
    def newly_withdrawn(self) -> DataFrame:
        """Rows (file_id) of this run's withdrawals, known or not."""
        rows = self._spark.createDataFrame(pa.table({"hex": pa.array(self._forget, pa.string())}))
        return rows.select(F.unhex("hex").alias("file_id"))

    @cached_property
    def withdrawn(self) -> DataFrame:
        """Rows (file_id) of all withdrawals, of earlier runs too."""
        earlier = f"{Storage(self._index).uri}/{WITHDRAWN}"
        before = self._spark.read.schema("file_id binary").parquet(earlier)
        return before.unionAll(self.newly_withdrawn).distinct()

    @cached_property
    def _removals(self) -> DataFrame:
        return tables.read(self._spark, self._index, "duplicates")

    def standing_removals(self) -> DataFrame:
        """The earlier duplicates that stay: neither they nor the files that they went for are withdrawn now."""
        gone = self.newly_withdrawn
        kept_gone = gone.withColumnRenamed("file_id", "kept_file_id")
        return self._removals.join(gone, "file_id", "left_anti").join(kept_gone, "kept_file_id", "left_anti")

    def settled(self) -> DataFrame:
        """The files that were kept and are not withdrawn; they come before all fresh ones."""
        kept = self.files.join(self._removals.select("file_id"), "file_id", "left_anti")
        return kept.join(self.withdrawn, "file_id", "left_anti").withColumn("settled", F.lit(True))

    def released(self) -> DataFrame:
        """The files that had gone for files withdrawn now: they compete again."""
        gone = self.newly_withdrawn.withColumnRenamed("file_id", "kept_file_id")
        ids = self._removals.join(gone, "kept_file_id", "left_semi").select("file_id")
        free = self.files.join(ids, "file_id", "left_semi").join(self.withdrawn, "file_id", "left_anti")
        return free.withColumn("settled", F.lit(False))

    def unknown(self, fresh: DataFrame) -> DataFrame:
        """The fresh files that are not in the collection, nor withdrawn from it: a file that comes again is one."""
        return fresh.join(self.files.select("file_id"), "file_id", "left_anti").join(
            self.withdrawn, "file_id", "left_anti"
        )


def _ranks(delivery: int, first: int, names: Sequence[str]) -> Callable[[Iterable[pa.RecordBatch]], Batches]:
    """Makes rows of _RANKED of blobs of SLIM and COPY records, of the files of one delivery, whose files of
    fingerprints are numbered from `first` on."""

    def unpack(batches: Iterable[pa.RecordBatch]) -> Batches:
        for batch in batches:
            for kind, blob in zip(batch.column("kind").to_pylist(), batch.column("records"), strict=True):
                found = np.frombuffer(blob.as_buffer(), DTYPES[kind])
                keys = found["key"][found["place"]["delivery"] == delivery]
                spots = spots_of(keys)
                files = (spots >> np.uint64(32)).astype(np.int64) - first
                columns = [binary(keys[:, :RANK_BYTES]), pa.array(names, pa.large_string()).take(pa.array(files))]
                rows = pa.array((spots & np.uint64(0xFFFFFFFF)).astype(np.int64))
                yield pa.record_batch([*columns, rows], names=["rank", *SPOT])

    return unpack
