"""Whether the numbers of all tables agree: every file counted once, from the input to the shards.

A report whose numbers do not agree is not written, because each of them would be in doubt.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from spark_jobs.reporting.figures import added_up
from spark_jobs.rules.states import KEPT
from tokenizer.shards import ShardIndex

DECODED = "decoded"


class Check(NamedTuple):
    """A statement and the counts that it says are equal, by where they were counted."""

    statement: str
    counts: Mapping[str, int]

    @property
    def holds(self) -> bool:
        """Whether all counts are the same."""
        return len(set(self.counts.values())) == 1


def check_tables(
    found: Mapping[str, DataFrame], by_kind: list[Row], manifests: Mapping[str, Mapping[str, Any]]
) -> list[Check]:
    """The checks of the tables alone.

    Args:
        found: the tables by kind.
        by_kind: what `files_by_kind` counted.
        manifests: of the tables.
    """
    states = {state: sums for (state,), sums in added_up(by_kind, "state").items()}
    total = {name: sum(sums[name] for sums in states.values()) for name in ("files", "bytes")}
    ingested = found["documents"].groupBy("state").agg(F.count(F.lit(1)).alias("files"), F.sum("size").alias("bytes"))
    ingest = {row.state: row for row in ingested.collect()}
    once = ("documents", "signals", "verdicts", "ledger")
    census = _census({kind: found[kind] for kind in once})
    rows = {f"rows of {kind}": census[kind] for kind in once}
    recorded = {f"manifest of {kind}": manifests[kind]["rows"] for kind in once}
    checks = [
        Check("Every file stands once in every table", {"distinct ids": census["ids"], **rows, **recorded}),
        Check("with the same id in each", {"ids once in each": census["once"], "distinct ids": census["ids"]}),
        Check("and in one state", {"sum of the states": total["files"], "files in": census["documents"]}),
        Check("Bytes agree", {"ledger": total["bytes"], "documents": sum(row.bytes or 0 for row in ingest.values())}),
    ]
    for state in sorted(set(ingest) - {DECODED}):
        told = states.get(state, {"files": 0})["files"]
        checks.append(Check(f"Files that are {state}", {"documents": ingest[state].files, "ledger": told}))
    return checks + _check_removals(found, states, manifests)


def _census(found: Mapping[str, DataFrame]) -> dict[str, int]:
    """Rows of each table, distinct ids of all together (`ids`), and ids that stand once in each (`once`)."""
    union: DataFrame | None = None
    for kind, table in found.items():
        ids = table.select("file_id", *(F.lit(int(other == kind)).alias(other) for other in found))
        union = ids if union is None else union.unionByName(ids)
    assert union is not None
    each = union.groupBy("file_id").agg(*(F.sum(kind).alias(kind) for kind in found))
    in_each = F.lit(True)
    for kind in found:
        in_each = in_each & (F.col(kind) == 1)
    sums = [F.coalesce(F.sum(kind), F.lit(0)).alias(kind) for kind in found]
    counted = each.agg(F.count(F.lit(1)).alias("ids"), F.count_if(in_each).alias("once"), *sums).first()
    return counted.asDict() if counted else {}


def _check_removals(
    found: Mapping[str, DataFrame],
    states: Mapping[str | None, Mapping[str, int]],
    manifests: Mapping[str, Mapping[str, Any]],
) -> list[Check]:
    def files(state: str) -> int:
        return states.get(state, {"files": 0})["files"]

    filtered = sum(sums["files"] for state, sums in states.items() if (state or "").startswith("filtered: "))
    kept = found["ledger"].where(F.col("state") == KEPT).select(F.col("file_id").alias("kept_file_id"), "state")
    twins = found["duplicates"].select("kind", "kept_file_id").join(kept, "kept_file_id", "left")
    by_kind = twins.groupBy("kind").agg(F.count(F.lit(1)).alias("files"), F.count("state").alias("proven")).collect()
    kinds = {"exact": 0, "near": 0} | {row.kind: row.files for row in by_kind}
    proven = sum(row.proven for row in by_kind)
    broken = found["verdicts"].where(F.size("reasons") > 0).count()
    checks = [
        Check("Files that break a rule are filtered", {"verdicts": broken, "ledger": filtered}),
        Check("Exact copies", {"duplicates": kinds["exact"], "ledger": files("exact copy")}),
        Check("Near-duplicates", {"duplicates": kinds["near"], "ledger": files("near-duplicate")}),
        Check(
            "Every removal names a kept file",
            {"names one": proven, "rows of duplicates": sum(kinds.values())}
            | {"manifest of duplicates": manifests["duplicates"]["rows"]},
        ),
    ]
    if "contaminated" in found:
        contaminated = found["ledger"].where("state = 'contaminated'")
        named = contaminated.join(found["contaminated"], "file_id", "left_semi").count()
        checks.append(Check("Contaminated files name a task", {"names one": named, "ledger": files("contaminated")}))
    return checks


def check_shards(by_kind: list[Row], ledger: DataFrame, places: DataFrame, index: ShardIndex) -> list[Check]:
    """The checks of the shards against the ledger: the kept files are there, all of them, and nothing else."""
    sums = added_up(by_kind, "state", "split")
    kept = sum(sum_["files"] for (state, _), sum_ in sums.items() if state == KEPT)
    tokens = sum(sum_["tokens"] for sum_ in sums.values())
    placed = sum(sum_["files"] for (state, split), sum_ in sums.items() if state == KEPT and split)
    repositories = (
        places.join(ledger.select("file_id", "repo"), "file_id", "left")
        .groupBy("repo")
        .agg(
            F.count(F.lit(1)).alias("rows"),
            F.count_distinct("file_id").alias("ids"),
            F.count_distinct("split").alias("splits"),
        )
    )
    on_both = F.count_if(F.col("splits") > 1).alias("on_both")
    counted = repositories.agg(F.sum("rows").alias("rows"), F.sum("ids").alias("ids"), on_both).first()
    assert counted is not None
    return [
        Check(
            "The kept files are the rows of the shards",
            {
                "kept and not withdrawn": kept - index.withdrawn_files,
                "kept and in a shard": placed,
                "rows": counted["rows"] or 0,
                "distinct ids": counted["ids"] or 0,
            }
            | {"index": sum(shard.rows for shard in index.shards)},
        ),
        Check("Tokens", {"rows of the shards": tokens, "index": sum(shard.tokens for shard in index.shards)}),
        Check(
            "No repository is both trained on and held out",
            {"on both": counted["on_both"], "allowed": 0},
        ),
    ]


def require_all(checks: Iterable[Check]) -> None:
    """RuntimeError if a check does not hold, with the counts of all that do not."""
    faults = [
        f"{check.statement}: {', '.join(f'{count:,} {where}' for where, count in check.counts.items())}"
        for check in checks
        if not check.holds
    ]
    if faults:
        raise RuntimeError(f"the tables do not reconcile, no report is written: {'; '.join(faults)}")
