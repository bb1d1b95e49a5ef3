"""One run of de-duplication, step by step, and what it tells."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.near_duplicates import duplicates as steps
from spark_jobs.near_duplicates.collection import (
    FILES,
    FINGERPRINTS,
    WITHDRAWN,
    Collection,
    Delivery,
    fingerprinted,
    no_ids,
    numbered,
    sources_of,
)
from spark_jobs.near_duplicates.hot_bands import hot_bands
from spark_jobs.near_duplicates.keep_order import losses_of_repositories, ranked
from spark_jobs.near_duplicates.settings import Settings
from spark_jobs.near_duplicates.survivors import write_survivors
from spark_jobs.rules.measurement import write_fingerprints
from spark_jobs.session import shuffled_bytes, step
from spark_jobs.storage import Storage


class Deduplication:
    """Fresh files against each other, and against what earlier deliveries kept.

    Args:
        spark: the session.
        stage: the output.
        settings: what decides.
        inputs: paths by kind: documents, verdicts, contaminated, index; as far as there are any.
        signals: path of the documents' signals, if they were measured.
        deliveries: those of the index, in their order.
        withdrawn: ids of the files that are withdrawn now.
    """

    def __init__(
        self,
        spark: SparkSession,
        stage: tables.Stage,
        settings: Settings,
        inputs: Mapping[str, str],
        signals: str | None,
        deliveries: Sequence[Delivery],
        withdrawn: Sequence[str],
    ) -> None:
        self._spark, self._stage, self._settings = spark, stage, settings
        self._inputs, self._signals = inputs, signals
        self._deliveries = list(deliveries)
        self._earlier = Collection(spark, inputs["index"], deliveries, withdrawn) if "index" in inputs else None

    def compare(self) -> None:
        """Find who goes for whom."""
        spark, stage = self._spark, self._stage
        if "documents" in self._inputs:
            index = f"{Storage(stage.output).uri}/{FILES}"
            self._deliveries.append(Delivery.of(index, self._fingerprints(), self._inputs["documents"]))
        with step(spark, "dedup: exact copies"):
            files = self._slim()
            self._compared = stage.staged(steps.best_copies(files), "best")
        documents = [delivery.documents for delivery in self._deliveries]
        near = steps.similar_files(self._compared, documents, sources_of(self._deliveries), self._settings, stage)
        with step(spark, "dedup: naming the removed and the kept"):
            copies = steps.exact_copies(files, self._compared)
            found = steps.named(steps.resolved(copies, near), files)
            if self._earlier:
                found = found.unionAll(self._earlier.standing_removals().select(*found.columns))
            kinds = {kind: F.count_if(F.col("kind") == kind) for kind in ("exact", "near")}
            self._duplicates, self._counts = stage.append(found, kinds)
        self._files = files

    def _fingerprints(self) -> str:
        """Where the fingerprints of the documents lie: in their signals, or measured now."""
        if self._signals:
            return self._signals
        folder = f"{Storage(self._stage.output).uri}/{FINGERPRINTS}"
        with step(self._spark, "dedup: measuring the documents"):
            write_fingerprints(self._spark, self._inputs["documents"], self._settings.fingerprint, folder)
        return folder

    def _slim(self) -> DataFrame:
        """All files that compete, without their fingerprints; those of this delivery become its index."""
        parts = []
        if "documents" in self._inputs:
            parts.append(self._stage.kept(self._fresh(), FILES).select(*steps.SLIM))
        if self._earlier is None:
            self._stage.beside(no_ids(self._spark), WITHDRAWN)
            return parts[0]
        self._stage.beside(self._earlier.withdrawn, WITHDRAWN)
        return self._stage.staged(_union([*parts, self._earlier.settled(), self._earlier.released()]), "slim")

    def _fresh(self) -> DataFrame:
        """The files of this delivery that compete, ranked, with all that an index keeps of them."""
        judged = {
            kind: tables.read(self._spark, self._inputs[kind], kind)
            for kind in ("verdicts", "contaminated")
            if kind in self._inputs
        }
        competing = steps.competitors(fingerprinted(self._spark, self._deliveries[-1].fingerprints), **judged)
        if self._earlier:
            competing = self._earlier.unknown(competing)
        own = {"delivery": F.lit(len(self._deliveries) - 1), "settled": F.lit(False)}
        competing = competing.withColumns(own)
        shared = steps.shared_contents(competing)
        copies = self._stage.staged(competing.join(shared, "content_hash", "left_semi"), "copies")
        fresh = steps.without_repeats(competing, copies)
        return numbered(self._spark, ranked(fresh, losses_of_repositories(competing, copies)), self._deliveries)

    def write_survivors(self, stage: tables.Stage) -> None:
        """Write the rows of the documents that are kept now and were not before."""
        with step(self._spark, "dedup: writing the survivors"):
            kept = self._files.where("NOT settled").join(self._duplicates.select("file_id"), "file_id", "left_anti")
            documents = [delivery.documents for delivery in self._deliveries]
            rows = write_survivors(kept, documents, stage.output)
            stage.finish(rows=rows)
        print(f"dedup: {rows:,} survivors in {stage.output}")

    def finish(self) -> None:
        """Write the clusters, tell what was found, and finish the table of duplicates."""
        stage, entered = self._stage, self._files.where("NOT settled").count()
        with step(self._spark, "dedup: clusters"):
            stage.beside(steps.clusters_of(self._duplicates, self._sizes()), "_clusters")
        self._tell_hot_bands()
        stage.finish(**self._counts, deliveries=[delivery._asdict() for delivery in self._deliveries])
        self._tell(entered, self._counts)

    def _sizes(self) -> DataFrame:
        """Rows (file_id, size) of all files that may have been removed."""
        own = self._files.select("file_id", "size")
        return own if self._earlier is None else own.unionAll(self._earlier.files.select(*own.columns)).distinct()

    def _tell_hot_bands(self) -> None:
        documents = [delivery.documents for delivery in self._deliveries]
        for line in hot_bands(self._spark, self._stage.scratch("pairs"), self._compared, documents, self._settings):
            print(line)

    def _tell(self, entered: int, counts: Mapping[str, Any]) -> None:
        shuffled = shuffled_bytes(self._spark)
        print(f"dedup: {entered:,} documents that have content and break no rule were compared")
        print(f"dedup: {counts['exact']:,} files are exact copies and {counts['near']:,} near-duplicates of kept ones")
        print(f"dedup: {shuffled / 1e6:,.1f} MB were shuffled, {shuffled / max(entered, 1):,.0f} bytes a file")
        print(
            f"dedup: {self._stage.output} names their twins, {self._stage.output}/_clusters the kept with their sizes"
        )


def _union(parts: Sequence[DataFrame]) -> DataFrame:
    whole, *rest = parts
    for part in rest:
        whole = whole.unionByName(part)
    return whole
