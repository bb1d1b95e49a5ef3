"""Finding one file in the tables, and gathering all that they know of it. Content is read of at most two files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from spark_jobs.content import LOCATION, pieces
from spark_jobs.reporting.shard_rows import place_of
from spark_jobs.reporting.workspace import Workspace
from tokenizer.receipts import receipt_with

CANDIDATES = 20
REMOVED = 10
DOCUMENT_COLUMNS = ("revision", "licenses", "stars", "encoding", "source", "content")


@dataclass(frozen=True)
class Facts:
    """All that the tables know of one file.

    Args:
        ledger: its row of the ledger.
        document: the columns DOCUMENT_COLUMNS of its row of the documents.
        signals: its row of the signals.
        reasons: the rules that it breaks.
        tasks: benchmark tasks that it contains, as (task, matched words).
        twin: its row of the duplicates, if it was removed as one.
        twin_content: the text of the file that it was removed for.
        removed: how many files were removed for it.
        first_removed: some of these rows of the duplicates.
        shard: shard, row in it and tokens, if it is in one.
        has_shards: whether there are shards.
        receipt: of its withdrawal from the shards, if it was withdrawn.
    """

    ledger: Row
    document: Mapping[str, Any]
    signals: Row
    reasons: Sequence[Row]
    tasks: Sequence[tuple[str, str]]
    twin: Row | None
    twin_content: str | None
    removed: int
    first_removed: Sequence[Row]
    shard: tuple[str, int, int] | None
    has_shards: bool
    receipt: Path | None


def candidates(ledger: DataFrame, path: str | None, file_id: str | None) -> list[Row]:
    """Rows of the ledger that match, at most CANDIDATES + 1, by repository and path.

    Where a file's path, alone or after its repository, is `path` exactly, those that merely contain it do not count.
    """
    found = ledger.withColumn("exact", F.lit(True))
    if path is not None:
        full = F.concat_ws("/", "repo", "path")
        found = ledger.where(full.contains(path)).withColumn("exact", (F.col("path") == path) | (full == path))
    if file_id is not None:
        digits = file_id.lower()
        if not re.fullmatch("[0-9a-f]{1,32}", digits):
            raise ValueError(f"file_id is {file_id!r}; it must be 1 to 32 hexadecimal digits")
        found = found.where(F.lower(F.hex("file_id")).startswith(digits))
    rows = found.orderBy(F.desc_nulls_last("exact"), "repo", "path", "file_id").limit(CANDIDATES + 1).collect()
    return [row for row in rows if row.exact] or rows


def facts_of(spark: SparkSession, workspace: Workspace, ledger: Row) -> Facts:
    """Gather what the tables know of the file that a row of the ledger names."""
    manifests, index = workspace.manifests, workspace.shards
    wanted = F.lit(bytes(ledger.file_id))

    def rows_of(kind: str) -> list[Row]:
        rows = workspace.table(spark, kind).where(F.col("file_id") == wanted)
        return rows.drop("bands", "sketch", "licenses", "stars", *LOCATION).collect()

    documents = workspace.path("documents")
    twins = rows_of("duplicates")
    twin = twins[0] if twins else None
    twin_content = None
    if twin:
        kept = workspace.table(spark, "ledger").where(F.col("file_id") == F.lit(bytes(twin.kept_file_id))).collect()
        if kept:  # a twin of an earlier delivery is not in this ledger
            twin_content = row_at(documents, kept[0], ("content",))["content"]
    removed = workspace.table(spark, "duplicates").where(F.col("kept_file_id") == wanted)
    first_removed = removed.orderBy(F.desc_nulls_last("similarity"), "repo", "path").limit(REMOVED).collect()
    return Facts(
        ledger=ledger,
        document=row_at(documents, ledger, DOCUMENT_COLUMNS),
        signals=rows_of("signals")[0],
        reasons=rows_of("verdicts")[0].reasons,
        tasks=[(row.task, row.matched) for row in rows_of("contaminated")] if "contaminated" in manifests else [],
        twin=twin,
        twin_content=twin_content,
        removed=removed.count() if len(first_removed) == REMOVED else len(first_removed),
        first_removed=first_removed,
        shard=place_of(bytes(ledger.file_id), workspace.shards_folder, index) if index else None,
        has_shards=index is not None,
        receipt=receipt_with(workspace.shards_folder, index.revision, bytes(ledger.file_id)) if index else None,
    )


def row_at(documents: str, place: Row, columns: Sequence[str]) -> dict[str, Any]:
    """The columns of the one row of the documents that lies at `place`, which has LOCATION columns."""
    part, row_group, row = (place[name] for name in LOCATION)
    work = pa.record_batch([pa.array([part]), pa.array([row_group]), pa.array([[row]])], names=[*LOCATION[:2], "rows"])
    (piece,) = pieces(documents, [work], columns)
    return dict.fromkeys(columns) | piece.batch.to_pylist()[0]
