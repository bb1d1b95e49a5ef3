"""The states of the ledger: each document has exactly one, and the counts reconcile with every table."""

from collections.abc import Mapping
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.tables import LEDGER

KEPT = "kept"


def ledger_of(
    signals: DataFrame, verdicts: DataFrame, duplicates: DataFrame, contaminated: DataFrame | None = None
) -> DataFrame:
    """Rows of LEDGER: a document that was not decoded is in the state that says so; else filtered, contaminated,
    an exact copy, a near-duplicate, or kept."""
    twins = duplicates.select(
        "file_id", "kind", "similarity", "kept_file_id", F.concat_ws("/", "kept_repo", "kept_path").alias("twin")
    )
    judged = signals.join(verdicts, "file_id").join(twins, "file_id", "left")
    if contaminated is None:
        judged = judged.withColumn("task", F.lit(None).cast("string")).withColumn(
            "matched", F.lit(None).cast("string")
        )
    else:
        judged = judged.join(contaminated.select("file_id", "task", "matched"), "file_id", "left")
    states = [
        (F.col("content_hash").isNull(), F.col("state"), F.lit("no content was read")),
        (F.size("reasons") > 0, F.concat(F.lit("filtered: "), F.col("reasons")[0]["rule"]), _reasons()),
        (F.col("task").isNotNull(), F.lit("contaminated"), F.concat_ws(": ", "task", "matched")),
        (F.col("kind") == "exact", F.lit("exact copy"), F.concat(F.lit("of "), _twin())),
        (
            F.col("kind") == "near",
            F.lit("near-duplicate"),
            F.concat(F.coalesce(_number("similarity"), F.lit("by way of others")), F.lit(" similar to "), _twin()),
        ),
    ]
    state, evidence = F.lit(KEPT), F.lit("")
    for condition, name, reason in reversed(states):
        state = F.when(condition, name).otherwise(state)
        evidence = F.when(condition, reason).otherwise(evidence)
    columns = {"state": state, "evidence": evidence}
    return judged.select(*(columns.get(field.name, F.col(field.name)).alias(field.name) for field in LEDGER))


def _reasons() -> Column:
    """Every broken rule with its value and threshold, as a sentence."""

    def told(reason: Column) -> Column:
        return F.concat(
            reason["rule"], F.lit(" "), _rounded(reason["value"]), F.lit(" against "), _rounded(reason["threshold"])
        )

    return F.concat_ws("; ", F.transform("reasons", told))


def _twin() -> Column:
    return F.concat(F.col("twin"), F.lit(" ("), F.lower(F.hex("kept_file_id")), F.lit(")"))


def _number(name: str) -> Column:
    return _rounded(F.col(name))


def _rounded(value: Column) -> Column:
    return F.round(value, 4).cast("string")


def counts_by_state(ledger: DataFrame) -> dict[str, dict[str, int]]:
    """Files and bytes of each state, the kept ones first, then by number; there are few states."""
    sums = ledger.groupBy("state").agg(F.count(F.lit(1)).alias("files"), F.sum("size").alias("bytes")).collect()
    ordered = sorted(sums, key=lambda row: (row.state != KEPT, -row.files, row.state))
    return {row.state: {"files": row.files, "bytes": row.bytes} for row in ordered}


def reconcile(
    ledger: DataFrame,
    counts: Mapping[str, Mapping[str, int]],
    duplicates: DataFrame,
    manifests: Mapping[str, Mapping[str, Any]],
    kept_before: DataFrame | None = None,
) -> None:
    """RuntimeError if a file is missing or double, or a removal names a file that is not kept.

    Args:
        ledger: rows of LEDGER.
        counts: what `counts_by_state` returns.
        duplicates: rows of DUPLICATES of the ledger's files.
        manifests: of the inputs, by kind.
        kept_before: rows (file_id) of files of earlier deliveries, which may have been kept there.
    """
    total = sum(count["files"] for count in counts.values())
    rows = {kind: manifests[kind]["rows"] for kind in manifests}
    faults = [
        f"{kind} has {rows[kind]:,} rows" for kind in ("documents", "signals", "verdicts") if rows[kind] != total
    ]
    if (different := ledger.select("file_id").distinct().count()) != total:
        faults.append(f"only {different:,} ids differ")
    removed = sum(counts.get(state, {"files": 0})["files"] for state in ("exact copy", "near-duplicate"))
    named = rows["duplicates"] if kept_before is None else duplicates.count()
    if removed != named:
        faults.append(f"duplicates has {named:,} rows for {removed:,} removed files")
    kept = ledger.where(F.col("state") == KEPT).select(F.col("file_id").alias("kept_file_id"))
    if kept_before is not None:
        kept = kept.unionAll(kept_before).distinct()
    if orphans := duplicates.join(kept, "kept_file_id", "left_anti").count():
        faults.append(f"{orphans:,} removed files name a file that is not kept")
    if faults:
        raise RuntimeError(f"the ledger of {total:,} files does not reconcile: {'; '.join(faults)}")
