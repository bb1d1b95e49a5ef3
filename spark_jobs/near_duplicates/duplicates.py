"""signals -> duplicates: exact copies by hash, then near ones by candidates, verification and leaders."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import storage, tables
from spark_jobs.content import LOCATION, arrow_schema, grouped_by_row_group, pieces
from spark_jobs.near_duplicates.candidates import BANDS, ROWS, candidate_pairs, recall
from spark_jobs.near_duplicates.keep_order import id_of, keep_key
from spark_jobs.near_duplicates.leaders import removals_of
from spark_jobs.near_duplicates.shingles import SCHEME
from spark_jobs.near_duplicates.verification import similar_pairs
from spark_jobs.session import step


def documents_path(documents: str | None, signals: str | None, verdicts: str | None, contaminated: str | None) -> str:
    """The path of the documents, which the signals know too; ValueError if the tables do not belong together."""
    if signals is None:
        if documents is None or verdicts is not None or contaminated is not None:
            raise ValueError("name --documents, or --signals, which --verdicts and --contaminated need too")
        return documents
    record = tables.require(signals, "signals")
    if record["configuration"]["scheme"] != SCHEME:
        raise ValueError(f"{signals} has sketches of scheme {record['configuration']['scheme']}; needed is {SCHEME}")
    documents = documents or record["documents"]
    tables.require_made_from(signals, documents=documents)
    if verdicts is not None:
        tables.require_made_from(verdicts, signals=signals)
    if contaminated is not None:
        tables.require_made_from(contaminated, documents=documents)
    return documents


def configuration(threshold: float) -> dict[str, Any]:
    """What decides the duplicates beside the inputs; ValueError if the threshold is out of bounds."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be in (0, 1]")
    return {"threshold": threshold, "scheme": SCHEME, "bands": BANDS, "rows": ROWS}


def plan(documents: str, threshold: float) -> str:
    """What a run would do: input, and the chance of banding to see a pair by its similarity."""
    files = storage.parquet_files(documents, ["content"])
    size = sum(file.size for file in files) / 1e6
    curve = ", ".join(f"{recall(similarity):.4f} at {similarity}" for similarity in sorted({threshold, 0.7, 0.8, 0.9}))
    return (
        f"dedup: {len(files)} file(s), {size:,.1f} MB in {documents}; recall of {BANDS} bands x {ROWS} rows: {curve}"
    )


def competitors(
    signals: DataFrame, verdicts: DataFrame | None = None, contaminated: DataFrame | None = None
) -> DataFrame:
    """The documents that compete to be kept, with their `key`: those with content that nothing else removes.

    Rows of one file id, which ingest would have made one, are represented by the first of them.
    """
    decoded = signals.where(F.col("content_hash").isNotNull())
    if verdicts is not None:
        filtered = verdicts.where(F.size("reasons") > 0).select("file_id")
        decoded = decoded.join(filtered, "file_id", "left_anti")
    if contaminated is not None:
        decoded = decoded.join(contaminated.select("file_id"), "file_id", "left_anti")
    place = F.struct(*LOCATION)
    first = decoded.groupBy("file_id").agg(F.min(place).alias("first"), F.count(F.lit(1)).alias("rows"))
    repeated = first.where("rows > 1").select("file_id", "first")
    unique = decoded.join(repeated, "file_id", "left").where(F.col("first").isNull() | (F.col("first") == place))
    return unique.drop("first").withColumn("key", keep_key())


def exact_copies(competing: DataFrame) -> DataFrame:
    """Rows (key, kept) for every document whose content a better one has, byte by byte."""
    best = competing.groupBy("content_hash").agg(F.min("key").alias("kept"), F.count(F.lit(1)).alias("copies"))
    repeated = best.where("copies > 1").select("content_hash", "kept")
    return competing.join(repeated, "content_hash").where("key != kept").select("key", "kept")


def duplicates_of(competing: DataFrame, documents: str, threshold: float, stage: tables.Stage) -> DataFrame:
    """Rows of DUPLICATES: every removed document with the kept one that proves its removal.

    Args:
        competing: what `competitors` returns, staged.
        documents: path of the content that verification fetches.
        threshold: least Jaccard similarity of near-duplicates.
        stage: where intermediate rows are staged.
    """
    spark = competing.sparkSession
    with step(spark, "dedup: exact copies"):
        copies = stage.staged(exact_copies(competing), "copies")
    distinct = competing.join(copies, "key", "left_anti")
    with step(spark, "dedup: candidate pairs by banding"):
        sketched = distinct.where("shingles > 0").select("key", "sketch", "shingles")
        pairs = stage.staged(candidate_pairs(sketched, threshold), "pairs")
    with step(spark, f"dedup: verifying {pairs.count():,} pairs against their content"):
        located = distinct.select("key", "size", *LOCATION)
        similar = stage.staged(similar_pairs(pairs, located, documents, threshold), "similar")
    with step(spark, f"dedup: choosing leaders over {similar.count():,} similar pairs"):
        near = stage.staged(removals_of(similar, stage.staged), "near")
    return _named(_resolved(copies, near), competing)


def _resolved(copies: DataFrame, near: DataFrame) -> DataFrame:
    """Rows (key, kept, similarity, kind). Copies of a file that went as a near-duplicate follow it to its leader."""
    removed = near.select(F.col("worse").alias("key"), F.col("better").alias("kept"), "similarity")
    leaders = removed.select(F.col("key").alias("copied"), F.col("kept").alias("leader"), "similarity")
    followed = copies.join(leaders, copies.kept == leaders.copied, "left")
    exact = followed.select(
        "key",
        F.coalesce("leader", "kept").alias("kept"),
        F.coalesce("similarity", F.lit(1.0)).alias("similarity"),
        F.when(F.col("leader").isNull(), "exact").otherwise("near").alias("kind"),
    )
    return exact.unionByName(removed.withColumn("kind", F.lit("near")))


def _named(resolved: DataFrame, competing: DataFrame) -> DataFrame:
    names = competing.select("key", "repo", "path")
    kept_names = names.toDF("kept", "kept_repo", "kept_path")
    columns = [field.name for field in tables.DUPLICATES]
    named = resolved.join(names, "key").join(kept_names, "kept")
    return named.select("*", id_of(F.col("key")).alias("file_id"), id_of(F.col("kept")).alias("kept_file_id")).select(
        *columns
    )


def survivors_of(competing: DataFrame, duplicates: DataFrame, documents: str) -> DataFrame:
    """The competing rows of the data at `documents` that were not removed, with all their columns."""
    spark = competing.sparkSession
    schema = spark.read.option("recursiveFileLookup", True).parquet(storage.Storage(documents).uri).schema
    arrow = arrow_schema(schema)

    def fetch(work: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for piece in pieces(documents, work, schema.names):
            yield pa.record_batch([piece.batch.column(field.name).cast(field.type) for field in arrow], schema=arrow)

    kept = competing.join(duplicates.select("file_id"), "file_id", "left_anti")
    return grouped_by_row_group(kept.select(*LOCATION)).mapInArrow(fetch, schema)
