"""Fingerprints -> duplicates: exact copies by hash, then near ones by bands, sketches, proof and leaders."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import storage, tables
from spark_jobs.content import LOCATION, part_names
from spark_jobs.near_duplicates.candidates import candidate_pairs
from spark_jobs.near_duplicates.comparison import edges_of
from spark_jobs.near_duplicates.components import components_of
from spark_jobs.near_duplicates.edges import PROOFS, count_of
from spark_jobs.near_duplicates.keep_order import id_of, ranked
from spark_jobs.near_duplicates.leaders import removals_of
from spark_jobs.near_duplicates.settings import Settings
from spark_jobs.near_duplicates.verification import verified
from spark_jobs.session import shuffle_tasks, step

# What is known of a competing file without its bands and sketch.
SLIM = ("file_id", "repo", "path", "size", "content_hash", "shingles", "key", "delivery", "settled", *LOCATION)
# Files that are worth a task of their own, and files whose sketches a worker holds at once.
_TASK_FILES = 2048
_BUCKET_FILES = 8_192


def competitors(
    measured: DataFrame, verdicts: DataFrame | None = None, contaminated: DataFrame | None = None
) -> DataFrame:
    """The files that compete to be kept: those with content that nothing else removes.

    Rows of one file id, which ingest would have made one, are represented by the first of them.
    """
    decoded = measured.where(F.col("content_hash").isNotNull()).drop("bands", "sketch")
    if verdicts is not None:
        filtered = verdicts.where(F.size("reasons") > 0).select("file_id")
        decoded = decoded.join(filtered, "file_id", "left_anti")
    if contaminated is not None:
        decoded = decoded.join(contaminated.select("file_id"), "file_id", "left_anti")
    place = F.struct(*LOCATION)
    first = decoded.groupBy("file_id").agg(F.min(place).alias("first"), F.count(F.lit(1)).alias("rows"))
    repeated = first.where("rows > 1").select("file_id", "first")
    unique = decoded.join(repeated, "file_id", "left").where(F.col("first").isNull() | (F.col("first") == place))
    return unique.drop("first")


def slim_files(competing: DataFrame, delivery: int) -> DataFrame:
    """Rows of SLIM, with their keys, of the fresh files of a delivery."""
    fresh = competing.withColumn("delivery", F.lit(delivery)).withColumn("settled", F.lit(False))
    return ranked(fresh).select(*SLIM)


def with_best_copy(slim: DataFrame) -> DataFrame:
    """The files with the key of the best file of the same bytes: `kept`, which is their own if they are that."""
    best = slim.groupBy("content_hash").agg(F.min("key").alias("kept"))
    return slim.join(best, "content_hash")


def with_fingerprints(slim: DataFrame, fingerprints: DataFrame) -> DataFrame:
    """The files with bands and sketches, which only the best of exact copies get."""
    columns = fingerprints.select("file_id", *LOCATION, "bands", "sketch")
    best = {name: F.when(F.col("key") == F.col("kept"), F.col(name)) for name in ("bands", "sketch")}
    return slim.join(columns, ["file_id", *LOCATION]).withColumns(best)


def similar_files(files: DataFrame, documents: list[str], settings: Settings, stage: tables.Stage) -> DataFrame:
    """EDGE_ROWS from each file that goes as a near-duplicate to the kept file that it goes for.

    Args:
        files: `key`, `shingles`, `bands`, `sketch`, `size` and where the content lies; one row a distinct content.
        documents: paths of the content that verification fetches, by delivery.
        settings: threshold and method.
        stage: where intermediate rows are staged.
    """
    spark, threshold = files.sparkSession, settings.threshold
    worded = files.where("shingles > 0")
    workers, count = spark.sparkContext.defaultParallelism, worded.count()
    tasks = min(shuffle_tasks(spark), max(workers, count // _TASK_FILES))
    buckets = max(tasks, count // _BUCKET_FILES)
    parts = [part_names(path) if storage.Storage(path).exists() else [] for path in documents]
    exact = settings.verify == "exact"

    def verify(edges: DataFrame) -> DataFrame:
        with step(spark, f"dedup: verifying {count_of(edges):,} pairs that the sketches leave open, by content"):
            return stage.staged(
                verified(edges, documents, parts, threshold, settings.fingerprint, workers), "verified"
            )

    with step(spark, "dedup: candidate pairs by banding"):
        pairs = stage.staged(candidate_pairs(worded, threshold, buckets, tasks), "pairs")
    with step(spark, "dedup: comparing the sketches of the pairs"):
        edges = stage.staged(edges_of(worded, pairs, parts, threshold, buckets, tasks, exact), "edges")
    with step(spark, f"dedup: resolving {count_of(edges):,} pairs by {settings.resolve}"):
        resolve = removals_of if settings.resolve == "leaders" else components_of
        return stage.staged(resolve(edges, verify, stage.staged), "near")


def resolved(copies: DataFrame, near: DataFrame) -> DataFrame:
    """Rows (key, kept, similarity, kind, band, proof). Copies of a file that went as a near-duplicate follow it to
    its leader."""
    proof = F.get(F.array(*map(F.lit, PROOFS)), F.col("proof"))
    removed = near.select(F.col("worse").alias("key"), F.col("better").alias("kept"), "similarity", "band", proof)
    removed = removed.toDF("key", "kept", "similarity", "band", "proof")
    leaders = removed.toDF("copied", "leader", "similarity", "band", "proof")
    followed = copies.join(leaders, copies.kept == leaders.copied, "left")
    followed_on = F.col("leader").isNotNull()
    exact = followed.select(
        "key",
        F.coalesce("leader", "kept").alias("kept"),
        F.when(followed_on, F.col("similarity")).otherwise(1.0).alias("similarity"),
        F.when(followed_on, "near").otherwise("exact").alias("kind"),
        "band",
        F.when(followed_on, F.col("proof")).otherwise("bytes").alias("proof"),
    )
    return exact.unionByName(removed.withColumn("kind", F.lit("near")))


def named(resolved: DataFrame, slim: DataFrame) -> DataFrame:
    """Rows of DUPLICATES."""
    names = slim.select("key", "repo", "path")
    kept_names = names.toDF("kept", "kept_repo", "kept_path")
    columns = [field.name for field in tables.DUPLICATES]
    rows = resolved.join(names, "key").join(kept_names, "kept")
    return rows.select("*", id_of(F.col("key")).alias("file_id"), id_of(F.col("kept")).alias("kept_file_id")).select(
        *columns
    )


def clusters_of(duplicates: DataFrame, slim: DataFrame) -> DataFrame:
    """Rows of CLUSTERS: what each kept file stands for."""
    sizes = slim.select("file_id", "size")
    members = duplicates.join(sizes, "file_id")
    elsewhere = 1 - F.max((F.col("repo") == F.col("kept_repo")).cast("long"))
    counted = members.groupBy("kept_file_id").agg(
        F.first("kept_repo").alias("kept_repo"),
        F.first("kept_path").alias("kept_path"),
        (F.count(F.lit(1)) + 1).alias("files"),
        F.count_if(F.col("kind") == "exact").alias("exact"),
        F.count_if(F.col("kind") == "near").alias("near"),
        (F.count_distinct("repo") + elsewhere).alias("repositories"),
        F.sum("size").alias("removed_bytes"),
    )
    return counted.select(*(field.name for field in tables.CLUSTERS))
