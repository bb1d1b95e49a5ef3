"""Fingerprints -> duplicates: exact copies by hash, then near ones by bands, sketches, proof and leaders."""

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import storage, tables
from spark_jobs.content import LOCATION, part_names
from spark_jobs.near_duplicates.candidates import candidate_pairs
from spark_jobs.near_duplicates.comparison import edges_of
from spark_jobs.near_duplicates.components import components_of
from spark_jobs.near_duplicates.edges import PROOFS, count_of
from spark_jobs.near_duplicates.leaders import removals_of
from spark_jobs.near_duplicates.lookup import Source, slim_blobs
from spark_jobs.near_duplicates.settings import Settings
from spark_jobs.near_duplicates.verification import verified
from spark_jobs.session import shuffle_tasks, step

# What is known of a competing file without its bands and sketch.
SLIM = ("file_id", "repo", "path", "size", "content_hash", "shingles", "key", "delivery", "settled", *LOCATION)
# Files that are worth a task of their own, and files whose sketches a worker may hold at once.
_TASK_FILES = 2048
_BUCKET_FILES = 32_768


def competitors(
    measured: DataFrame, verdicts: DataFrame | None = None, contaminated: DataFrame | None = None
) -> DataFrame:
    """The files that compete to be kept: those with content that nothing else removes."""
    decoded = measured.where(F.col("content_hash").isNotNull())
    if verdicts is not None:
        filtered = verdicts.where(F.size("reasons") > 0).select("file_id")
        decoded = decoded.join(filtered, "file_id", "left_anti")
    if contaminated is not None:
        decoded = decoded.join(contaminated.select("file_id"), "file_id", "left_anti")
    return decoded


def shared_contents(files: DataFrame) -> DataFrame:
    """Rows (content_hash) of the contents that more than one row of the files has."""
    return files.groupBy("content_hash").agg(F.count(F.lit(1)).alias("rows")).where("rows > 1").select("content_hash")


def without_repeats(files: DataFrame, copies: DataFrame) -> DataFrame:
    """The files, each once: rows of one file id, which ingest would have made one, are represented by the first.

    Args:
        files: what competes.
        copies: those of them that share their content, which are all that may repeat.
    """
    place = F.struct(*LOCATION)
    first = copies.groupBy("file_id").agg(F.min(place).alias("first"), F.count(F.lit(1)).alias("rows"))
    repeated = copies.join(first.where("rows > 1"), "file_id").where(place != F.col("first"))
    return files.join(repeated.select(*LOCATION), list(LOCATION), "left_anti")


def best_copies(files: DataFrame) -> DataFrame:
    """The best file of each content, what is asked of it later, and whether it has `copies`."""
    shared = shared_contents(files).withColumn("copies", F.lit(True))
    columns = ("content_hash", "copies", "key", "shingles", "delivery", *LOCATION)
    known = files.join(shared, "content_hash", "left").select(*columns)
    alone, copies = known.where("copies IS NULL"), known.where("copies")
    best = copies.groupBy("content_hash").agg(F.min(F.struct(*columns[1:])).alias("best"))
    return alone.withColumn("copies", F.lit(False)).unionAll(best.select("content_hash", "best.*"))


def exact_copies(files: DataFrame, best: DataFrame) -> DataFrame:
    """Rows (key, kept) of the files that go for a better one of the same bytes."""
    repeated = best.where("copies").select("content_hash", F.col("key").alias("kept"))
    keys = files.select("content_hash", "key")
    return keys.join(repeated, "content_hash").where("key != kept").select("key", "kept")


def similar_files(
    files: DataFrame, documents: list[str], sources: Sequence[Source], settings: Settings, stage: tables.Stage
) -> DataFrame:
    """EDGE_ROWS from each file that goes as a near-duplicate to the kept file that it goes for.

    Args:
        files: `key`, `shingles`, `delivery` and where the content lies; one row a distinct content.
        documents: paths of the content that verification fetches, by delivery.
        sources: the files with bands and sketches.
        settings: threshold and method.
        stage: where intermediate rows are staged.
    """
    spark, threshold = files.sparkSession, settings.threshold
    worded = files.where("shingles > 0")
    workers, count = spark.sparkContext.defaultParallelism, worded.count()
    tasks = min(shuffle_tasks(spark), max(workers, count // _TASK_FILES))
    buckets = max(workers, -(-count // _BUCKET_FILES))
    parts = [part_names(path) if storage.Storage(path).exists() else [] for path in documents]
    slim = slim_blobs(worded, parts, buckets)

    def verify(edges: DataFrame) -> DataFrame:
        with step(spark, f"dedup: verifying {count_of(edges):,} pairs that the sketches leave open, by content"):
            return stage.staged(
                verified(edges, documents, parts, threshold, settings.fingerprint, workers), "verified"
            )

    with step(spark, "dedup: candidate pairs by banding"):
        pairs = stage.staged(candidate_pairs(slim, count, sources, threshold, buckets, tasks), "pairs")
    with step(spark, "dedup: comparing the sketches of the pairs"):
        compared = edges_of(slim, pairs, sources, threshold, tasks, settings.verify == "exact")
        edges = stage.staged(compared, "edges")
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
    names = slim.select("key", "file_id", "repo", "path")
    kept_names = names.toDF("kept", "kept_file_id", "kept_repo", "kept_path")
    columns = [field.name for field in tables.DUPLICATES]
    return resolved.join(names, "key").join(kept_names, "kept").select(*columns)


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
