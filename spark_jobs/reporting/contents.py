"""All that the report tells of a workspace, gathered and checked."""

from typing import Any

from pyspark.sql import SparkSession

from spark_jobs.reporting import figures as steps
from spark_jobs.reporting import reconciliation
from spark_jobs.reporting.shard_rows import shard_rows
from spark_jobs.reporting.training_run import completions_of, run_of
from spark_jobs.reporting.workspace import Workspace


def figures_of(spark: SparkSession, workspace: Workspace) -> dict[str, Any]:
    """All that the template tells; RuntimeError if the tables do not reconcile."""
    manifests, index = workspace.manifests, workspace.shards
    found = {kind: workspace.table(spark, kind) for kind in manifests}
    ledger, duplicates = found["ledger"], found["duplicates"]
    places = shard_rows(spark, workspace.shards_folder, index)
    by_kind = steps.files_by_kind(ledger, places)
    checks = reconciliation.check_tables(found, by_kind, manifests)
    if index:
        checks += reconciliation.check_shards(by_kind, ledger, places, index)
    reconciliation.require_all(checks)
    threshold = manifests["duplicates"]["configuration"]["threshold"]
    repositories, largest = steps.held_out_repositories(ledger, places)
    return {
        "checks": checks,
        "rules": steps.rules_broken(found["verdicts"]),
        "clusters": steps.largest_clusters(duplicates, ledger),
        "similarities": steps.similarities(duplicates, threshold),
        "threshold": threshold,
        "held_out": {"repositories": repositories, "largest": largest},
        "shards": index.shards if index else (),
        "configurations": workspace.configurations,
        "evaluation": workspace.evaluation,
        **steps.summed_up(by_kind),
        "sources": manifests["documents"]["configuration"].get("sources", []),
        **_run(workspace),
    }


def _run(workspace: Workspace) -> dict[str, Any]:
    files = workspace.run_files
    return {
        "run": run_of(files.get("metrics.jsonl", b"")),
        "completions": completions_of(files.get("completions.jsonl", b"")),
    }
