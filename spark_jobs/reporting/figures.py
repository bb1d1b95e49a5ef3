"""Tables -> the figures of the report. Every result is bounded: by states, languages, rules, or a top-k."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pyspark.sql import DataFrame, Row, Window
from pyspark.sql import functions as F

from spark_jobs.reporting.funnel import steps_of
from spark_jobs.rules.states import KEPT
from tokenizer.shards import SPLITS

CLUSTERS = 20
MEMBERS = 10
REPOSITORIES = 20
BINS = 15


class Cluster(NamedTuple):
    """A kept file, what was removed for it (files, bytes), and some of that: the least similar first."""

    repo: str
    path: str
    size_bytes: int
    removed: int
    removed_bytes: int
    members: list[Row]


class Histogram(NamedTuple):
    """Near-duplicates by similarity: (from, to, files) of each bin, and how many of all are 1."""

    bins: list[tuple[float, float, int]]
    identical: int


def files_by_kind(ledger: DataFrame, places: DataFrame) -> list[Row]:
    """Files, bytes and tokens of each (state, language, split): the table that most of the page adds up.

    Its rows are bounded by the number of states times that of languages.
    """
    placed = ledger.join(places, "file_id", "left")
    return (
        placed.groupBy("state", "language", "split")
        .agg(
            F.count(F.lit(1)).alias("files"),
            F.coalesce(F.sum("size"), F.lit(0)).alias("bytes"),
            F.coalesce(F.sum("tokens"), F.lit(0)).alias("tokens"),
        )
        .collect()
    )


def rules_broken(verdicts: DataFrame) -> list[Row]:
    """Of each rule: the files that break it, those that break no other, and the median of their values."""
    reasons = verdicts.select(F.size("reasons").alias("broken"), F.explode("reasons").alias("reason"))
    return (
        reasons.groupBy("reason.rule", "reason.threshold")
        .agg(
            F.count(F.lit(1)).alias("files"),
            F.count_if(F.col("broken") == 1).alias("alone"),
            F.percentile_approx("reason.value", 0.5).alias("median"),
        )
        .orderBy(F.desc("files"), "rule")
        .collect()
    )


def largest_clusters(duplicates: DataFrame, ledger: DataFrame) -> list[Cluster]:
    """The CLUSTERS kept files for which most files were removed, with up to MEMBERS of these each."""
    largest = (
        duplicates.groupBy("kept_file_id")
        .agg(F.count(F.lit(1)).alias("removed"))
        .orderBy(F.desc("removed"), "kept_file_id")
        .limit(CLUSTERS)
    )
    members = duplicates.join(F.broadcast(largest), "kept_file_id")
    order = Window.partitionBy("kept_file_id").orderBy("similarity", "repo", "path", "file_id")
    shown = (
        members.withColumn("removed_bytes", F.sum("size").over(Window.partitionBy("kept_file_id")))
        .withColumn("number", F.row_number().over(order))
        .where(F.col("number") <= MEMBERS)
    )
    kept_sizes = ledger.select(F.col("file_id").alias("kept_file_id"), F.col("size").alias("kept_size"))
    rows = shown.join(kept_sizes, "kept_file_id").orderBy(F.desc("removed"), "kept_file_id", "number").collect()
    clusters: dict[bytes, Cluster] = {}
    for row in rows:
        kept = Cluster(row.kept_repo, row.kept_path, row.kept_size, row.removed, row.removed_bytes, [])
        clusters.setdefault(bytes(row.kept_file_id), kept).members.append(row)
    return list(clusters.values())


def similarities(duplicates: DataFrame, threshold: float) -> Histogram:
    """How similar near-duplicates are to the files that they were removed for, from the threshold to 1."""
    width = (1 - threshold) / BINS
    if width <= 0:
        return Histogram([], duplicates.where("kind = 'near'").count())
    number = F.floor((F.col("similarity") - threshold) / width)
    bin_number = F.least(F.lit(BINS - 1), F.greatest(F.lit(0), number)).cast("int")
    identical = F.col("similarity") == 1
    counted = (
        duplicates.where("kind = 'near'")
        .groupBy(bin_number.alias("bin"))
        .agg(F.count(F.lit(1)).alias("files"), F.count_if(identical).alias("identical"))
        .collect()
    )
    files = {row.bin: row.files for row in counted}
    bins = [(threshold + width * n, threshold + width * (n + 1), files.get(n, 0)) for n in range(BINS)]
    return Histogram(bins, sum(row.identical for row in counted))


def held_out_repositories(ledger: DataFrame, places: DataFrame) -> tuple[int, list[Row]]:
    """How many repositories have files in a split that is not trained on, and the REPOSITORIES largest, by tokens."""
    held_out = places.where("split <> 'train'").join(ledger, "file_id").groupBy("repo")
    repositories = held_out.agg(
        F.count(F.lit(1)).alias("files"), F.sum("size").alias("bytes"), F.sum("tokens").alias("tokens")
    )
    largest = repositories.orderBy(F.desc("tokens"), "repo").limit(REPOSITORIES).collect()
    return repositories.count() if len(largest) == REPOSITORIES else len(largest), largest


def added_up(rows: list[Row], *keys: str) -> Mapping[tuple[str | None, ...], Mapping[str, int]]:
    """Sums of files, bytes and tokens of `files_by_kind` over all columns but `keys`."""
    sums: dict[tuple[str | None, ...], dict[str, int]] = {}
    for row in rows:
        sum_ = sums.setdefault(tuple(row[key] for key in keys), {"files": 0, "bytes": 0, "tokens": 0})
        for name in sum_:
            sum_[name] += row[name]
    return sums


def summed_up(by_kind: list[Row]) -> dict[str, Any]:
    """What the counts of `files_by_kind` add up to: the total, the funnel, the splits and the languages."""
    nothing = {"files": 0, "bytes": 0, "tokens": 0}
    states = {str(state): sums for (state,), sums in added_up(by_kind, "state").items()}
    by_split = added_up([row for row in by_kind if row.split is not None], "split")
    kept = added_up([row for row in by_kind if row.state == KEPT], "language")
    languages = [
        {"language": language, **sums, "kept": kept.get((language,), nothing)}
        for (language,), sums in added_up(by_kind, "language").items()
    ]
    return {
        "total": added_up(by_kind).get((), nothing),
        "states": states,
        "kept": states.get(KEPT, nothing),
        "steps": steps_of(states),
        "splits": {split: sums for split in SPLITS if (sums := by_split.get((split,)))},
        "languages": sorted(languages, key=lambda row: (-row["files"], row["language"] or "")),
    }
