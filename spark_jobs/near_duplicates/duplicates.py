"""Near-duplicates: by bands, sketches, proof and leaders; and what stands for what in the end."""

from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark_jobs import storage, tables
from spark_jobs.content import part_names
from spark_jobs.near_duplicates.candidates import candidate_pairs
from spark_jobs.near_duplicates.comparison import edges_of
from spark_jobs.near_duplicates.components import components_of
from spark_jobs.near_duplicates.leaders import removals_of
from spark_jobs.near_duplicates.lookup import Source
from spark_jobs.near_duplicates.records import KIND_EDGE
from spark_jobs.near_duplicates.settings import Settings
from spark_jobs.near_duplicates.stored import Stored
from spark_jobs.near_duplicates.verification import verified
from spark_jobs.session import shuffle_tasks, step

# Files that are worth a task of their own, and files whose sketches a worker may hold at once.
_TASK_FILES = 2048
_BUCKET_FILES = 32_768


def parts_of(paths: Sequence[str]) -> list[list[str]]:
    """The names of the Parquet files of folders; none of those that are gone."""
    return [part_names(path) if storage.Storage(path).exists() else [] for path in paths]


def tasks_for(spark: SparkSession, files: int) -> int:
    """Tasks that share the records of so many files."""
    return min(shuffle_tasks(spark), max(spark.sparkContext.defaultParallelism, files // _TASK_FILES))


def not_removed(
    files: DataFrame, verdicts: DataFrame | None = None, contaminated: DataFrame | None = None
) -> DataFrame:
    """The files that nothing else removes."""
    if verdicts is not None:
        files = files.join(verdicts.where(F.size("reasons") > 0).select("file_id"), "file_id", "left_anti")
    if contaminated is not None:
        files = files.join(contaminated.select("file_id"), "file_id", "left_anti")
    return files


def buckets_of(files: int, workers: int) -> int:
    """Number of buckets of spots, for so many files."""
    return max(workers, -(-files // _BUCKET_FILES))


def compared(
    slim: DataFrame, count: int, sources: Sequence[Source], buckets: int, settings: Settings, stage: tables.Stage
) -> tuple[Stored, Stored]:
    """What banding finds (`candidate_pairs`), and blobs of EDGEs between files that are similar, or may be.

    Args:
        slim: blobs of SLIM records in buckets of spots; one file a distinct content.
        count: their number.
        sources: the files with bands and sketches.
        buckets: number of buckets.
        settings: threshold and method.
        stage: where intermediate blobs are stored.
    """
    spark, threshold = slim.sparkSession, settings.threshold
    tasks = tasks_for(spark, count)
    with step(spark, "dedup: candidate pairs by banding"):
        pairs = candidate_pairs(slim, count, sources, threshold, buckets, tasks, stage.scratch("pairs"))
    with step(spark, "dedup: comparing the sketches of the pairs"):
        exact = settings.verify == "exact"
        return pairs, edges_of(slim, pairs, sources, threshold, tasks, exact, stage.scratch("edges"))


def resolved(
    spark: SparkSession, edges: Stored, documents: Sequence[str], settings: Settings, stage: tables.Stage
) -> Stored:
    """Blobs of EDGEs from each file that goes as a near-duplicate to the kept file that it goes for.

    Args:
        spark: the session.
        edges: those that `compared` returns.
        documents: paths of the content that verification fetches, by delivery.
        settings: threshold and method.
        stage: where intermediate rows are staged.
    """
    parts, workers = parts_of(documents), spark.sparkContext.defaultParallelism

    def verify(waiting: Stored) -> Stored:
        pairs = waiting.count(KIND_EDGE)
        with step(spark, f"dedup: verifying {pairs:,} pairs that the sketches leave open, by content"):
            folders = stage.scratch("sets"), stage.scratch("verified")
            threshold, taken = settings.threshold, settings.fingerprint
            return verified(spark, waiting, documents, parts, threshold, taken, workers, *folders)

    with step(spark, f"dedup: resolving {edges.count():,} pairs by {settings.resolve}"):
        resolve = removals_of if settings.resolve == "leaders" else components_of
        return resolve(spark, edges, verify, stage)


def clusters_of(duplicates: DataFrame) -> DataFrame:
    """Rows of CLUSTERS: what each kept file stands for."""
    elsewhere = 1 - F.max((F.col("repo") == F.col("kept_repo")).cast("long"))
    counted = duplicates.groupBy("kept_file_id").agg(
        F.first("kept_repo").alias("kept_repo"),
        F.first("kept_path").alias("kept_path"),
        (F.count(F.lit(1)) + 1).alias("files"),
        F.count_if(F.col("kind") == "exact").alias("exact"),
        F.count_if(F.col("kind") == "near").alias("near"),
        (F.count_distinct("repo") + elsewhere).alias("repositories"),
        F.sum("size").alias("removed_bytes"),
    )
    return counted.select(*(field.name for field in tables.CLUSTERS))
