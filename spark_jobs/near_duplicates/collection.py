"""What earlier runs left: the files that were kept, those that went for them, and those that were withdrawn.

A run's output is the state of the whole collection after it. Its table of duplicates has the removals of all
deliveries; `_index` below it has the fingerprints of this run's own delivery and all ids withdrawn so far, and its
manifest names the deliveries, in order, with where their fingerprints and their documents lie. So a new delivery is
compared with all that was kept without reading it, and a withdrawal finds what had gone for the withdrawn.
"""

import re
from collections.abc import Sequence
from functools import cached_property, reduce
from pathlib import Path
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.content import LOCATION
from spark_jobs.near_duplicates.duplicates import SLIM
from spark_jobs.near_duplicates.keep_order import settled_key
from spark_jobs.near_duplicates.settings import Settings
from spark_jobs.storage import Storage

FILES, WITHDRAWN = "_index/files", "_index/withdrawn"
WITHDRAWN_ROWS = "file_id binary"
# Columns of the fingerprints that an index keeps.
INDEXED = (
    *("file_id", "repo", "path", "size", "content_hash", "shingles", "key"),
    *LOCATION,
    *("bands", "sketch"),
)
_ID = re.compile(r"[0-9a-f]{32}")


class Delivery(NamedTuple):
    """One run's own files: where their fingerprints lie, their documents, and how those were cut into files."""

    fingerprints: str
    documents: str
    cut: str


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
        if not Storage(delivery.fingerprints).exists():
            raise ValueError(f"{index} needs the fingerprints in {delivery.fingerprints}, which are gone")
        if settings.verify == "exact" and not (
            Storage(delivery.documents).exists() and tables.cut(delivery.documents) == delivery.cut
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
        """INDEXED columns and `delivery` of all files of earlier deliveries."""
        parts = [
            self._spark.read.parquet(delivery.fingerprints).select(*INDEXED).withColumn("delivery", F.lit(number))
            for number, delivery in enumerate(self.deliveries)
        ]
        return reduce(DataFrame.unionAll, parts)

    def fingerprints(self, files: DataFrame) -> DataFrame:
        """`file_id`, where it lies, `bands` and `sketch` of files of earlier deliveries.

        An index has them once for all exact copies, so they are found by content.
        """
        known = self.files.where(F.col("bands").isNotNull()).select("content_hash", "bands", "sketch")
        names = ["file_id", *LOCATION, "content_hash"]
        known = known.dropDuplicates(["content_hash"])
        return files.select(*names).join(known, "content_hash", "left").drop("content_hash")

    @cached_property
    def newly_withdrawn(self) -> DataFrame:
        """Rows (file_id) of this run's withdrawals, known or not."""
        rows = self._spark.createDataFrame([(one,) for one in self._forget], "hex string")
        return rows.select(F.unhex("hex").alias("file_id"))

    @cached_property
    def withdrawn(self) -> DataFrame:
        """Rows (file_id) of all withdrawals, of earlier runs too."""
        earlier = f"{Storage(self._index).uri}/{WITHDRAWN}"
        before = self._spark.read.schema(WITHDRAWN_ROWS).parquet(earlier)
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
        """Rows of SLIM of the files that were kept and are not withdrawn; they come before all fresh ones."""
        kept = self.files.join(self._removals.select("file_id"), "file_id", "left_anti")
        kept = kept.join(self.withdrawn, "file_id", "left_anti")
        return kept.withColumn("key", settled_key(F.col("key"))).withColumn("settled", F.lit(True)).select(*SLIM)

    def released(self) -> DataFrame:
        """Rows of SLIM of the files that had gone for files withdrawn now: they compete again."""
        gone = self.newly_withdrawn.withColumnRenamed("file_id", "kept_file_id")
        ids = self._removals.join(gone, "kept_file_id", "left_semi").select("file_id")
        free = self.files.join(ids, "file_id", "left_semi").join(self.withdrawn, "file_id", "left_anti")
        return free.withColumn("settled", F.lit(False)).select(*SLIM)

    def unknown(self, fresh: DataFrame) -> DataFrame:
        """The fresh files that are not in the collection, nor withdrawn from it: a file that comes again is one."""
        return fresh.join(self.files.select("file_id"), "file_id", "left_anti").join(
            self.withdrawn, "file_id", "left_anti"
        )
