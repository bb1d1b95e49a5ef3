"""One run of de-duplication, step by step, and what it tells."""

from collections.abc import Mapping, Sequence
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.content import part_names
from spark_jobs.near_duplicates import duplicates as steps
from spark_jobs.near_duplicates.collection import (
    FILES,
    FINGERPRINTS,
    WITHDRAWN,
    WITHDRAWN_SCHEMA,
    Collection,
    Delivery,
    fingerprinted,
    sources_of,
)
from spark_jobs.near_duplicates.competitors import all_rows, competing, some_rows
from spark_jobs.near_duplicates.copies import folded, ranked
from spark_jobs.near_duplicates.hot_bands import hot_bands
from spark_jobs.near_duplicates.records import KIND_COPY, KIND_EDGE, KIND_SLIM
from spark_jobs.near_duplicates.removals import named, removals_of_all
from spark_jobs.near_duplicates.settings import Settings
from spark_jobs.near_duplicates.stored import Stored
from spark_jobs.near_duplicates.survivors import write_survivors
from spark_jobs.parts import write_none
from spark_jobs.rules.measurement import write_fingerprints
from spark_jobs.session import Aside, shuffled_bytes, step
from spark_jobs.storage import Storage, parquet_rows


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
        aside: what nothing waits for is done there.
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
        aside: Aside,
    ) -> None:
        self._spark, self._stage, self._settings, self._aside = spark, stage, settings, aside
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
            self._ranked = self._folded()
            slim = self._ranked.blobs(spark, KIND_SLIM)
        documents, sources = [delivery.documents for delivery in self._deliveries], sources_of(self._deliveries)
        files = self._ranked.count(KIND_SLIM)
        pairs, edges = steps.compared(slim, files, sources, self._buckets, self._settings, stage)
        self._hot_bands = self._aside.begin(hot_bands, spark, pairs, sources, self._settings)
        self._near = steps.resolved(spark, edges, documents, self._settings, stage).blobs(spark, KIND_EDGE)
        with step(spark, "dedup: naming the removed and the kept"):
            copies = self._ranked.blobs(spark, KIND_COPY)
            gone = removals_of_all(self._near, copies, self._tasks, self._buckets, stage.scratch("removals"))
            found = named(spark, gone, sources, self._tasks)
            if self._earlier:
                found = found.unionAll(self._earlier.standing_removals().select(*found.columns))
            kinds = {kind: F.count_if(F.col("kind") == kind) for kind in ("exact", "near")}
            duplicates, self._counts = stage.append(found, kinds)
        clusters = steps.clusters_of(duplicates)
        self._clusters = self._aside.begin(stage.beside, clusters, "_clusters", compression="zstd")
        self._entered = self._aside.begin(self._count_entered)

    def _fingerprints(self) -> str:
        """Where the fingerprints of the documents lie: in their signals, or measured now."""
        if self._signals:
            return self._signals
        folder = f"{Storage(self._stage.output).uri}/{FINGERPRINTS}"
        with step(self._spark, "dedup: measuring the documents"):
            write_fingerprints(self._spark, self._inputs["documents"], self._settings.fingerprint, folder)
        return folder

    def _folded(self) -> Stored:
        """Blobs of all files that compete: the best of each content, and its copies. They become this run's index."""
        fingerprints = [part_names(delivery.fingerprints) for delivery in self._deliveries]
        documents = steps.parts_of([delivery.documents for delivery in self._deliveries])
        files = sum(parquet_rows(delivery.fingerprints) for delivery in self._deliveries)
        self._tasks = steps.tasks_for(self._spark, files)
        self._buckets = steps.buckets_of(files, self._spark.sparkContext.defaultParallelism)
        folders = [delivery.fingerprints for delivery in self._deliveries]

        def files_of(wanted: DataFrame) -> DataFrame:
            return competing(wanted, folders, fingerprints, documents, self._tasks)

        parts = []
        if "documents" in self._inputs:
            parts.append(ranked(files_of(self._fresh(fingerprints[-1])), self._tasks))
        if self._earlier:
            known = self._earlier.settled().unionByName(self._earlier.released())
            parts.append(files_of(some_rows(known)))
        if self._earlier:
            self._stage.beside(self._earlier.withdrawn, WITHDRAWN)
        else:
            write_none(WITHDRAWN_SCHEMA, f"{Storage(self._stage.output).uri}/{WITHDRAWN}")
        folder = f"{self._stage.storage.uri}/{FILES}" if "documents" in self._inputs else self._stage.scratch(FILES)
        return folded(reduce(DataFrame.unionAll, parts), self._tasks, self._buckets, folder)

    def _fresh(self, names: Sequence[str]) -> DataFrame:
        """Which files of this delivery compete, whose fingerprints lie in files of these names."""
        delivery = len(self._deliveries) - 1
        judged = {
            kind: tables.read(self._spark, self._inputs[kind], kind)
            for kind in ("verdicts", "contaminated")
            if kind in self._inputs
        }
        if not judged and not self._earlier:
            return all_rows(self._spark, delivery, names)
        files = steps.not_removed(fingerprinted(self._spark, self._deliveries[-1].fingerprints), **judged)
        if self._earlier:
            files = self._earlier.unknown(files)
        return some_rows(files.withColumn("delivery", F.lit(delivery)))

    def write_survivors(self, stage: tables.Stage) -> None:
        """Write the rows of the documents that are kept now and were not before."""
        with step(self._spark, "dedup: writing the survivors"):
            slim, files = self._ranked.blobs(self._spark, KIND_SLIM), self._ranked.count(KIND_SLIM)
            documents = [delivery.documents for delivery in self._deliveries]
            rows = write_survivors(slim, self._near, files, documents, stage.output)
            stage.finish(rows=rows)
        print(f"dedup: {rows:,} survivors in {stage.output}")

    def finish(self) -> None:
        """Write the clusters, tell what was found, and finish the table of duplicates."""
        stage = self._stage
        with step(self._spark, "dedup: clusters"):
            self._clusters.result()
        hot, entered = self._hot_bands.result(), self._entered.result()
        stage.finish(**self._counts, deliveries=[delivery._asdict() for delivery in self._deliveries])
        self._tell(hot, entered)

    def _count_entered(self) -> int:
        """How many files competed that had not been kept before."""
        return self._ranked.count() - (self._earlier.settled().count() if self._earlier else 0)

    def _tell(self, hot: Sequence[str], entered: int) -> None:
        shuffled, counts = shuffled_bytes(self._spark), self._counts
        for line in hot:
            print(line)
        print(f"dedup: {entered:,} documents that have content and break no rule were compared")
        print(f"dedup: {counts['exact']:,} files are exact copies and {counts['near']:,} near-duplicates of kept ones")
        print(f"dedup: {shuffled / 1e6:,.1f} MB were shuffled, {shuffled / max(entered, 1):,.0f} bytes a file")
        print(
            f"dedup: {self._stage.output} names their twins, {self._stage.output}/_clusters the kept with their sizes"
        )
