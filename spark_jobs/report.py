"""A workspace -> one self-contained HTML page: the funnel from files in to tokens out, duplicates, loss, samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizer.command_line import run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_jobs.reporting.workspace import Workspace


def main(*, workspace: str, output: str, overwrite: bool = False) -> None:
    """Write the report of a workspace. Fails, and writes no page, if the counts of its tables do not reconcile.

    Args:
        workspace: folder of the tables documents, signals, verdicts, duplicates and ledger; shards and a training
            run are told of as far as they are there.
        output: the page, one HTML file that needs no network.
        overwrite: replace a page that was made from something else.
    """
    import xxhash

    from spark_jobs.reporting import page
    from spark_jobs.reporting.workspace import Workspace
    from spark_jobs.session import start_session, step

    found = Workspace(workspace)
    fingerprint = xxhash.xxh3_128_hexdigest((found.fingerprint() + page.templates()).encode())
    if not overwrite and page.stands(output, fingerprint):
        print(f"report: already done, in {output}")
        return
    with start_session("report") as spark, step(spark, "report: adding up the tables"):
        figures = figures_of(spark, found)
    page.write(output, page.render(figures, fingerprint))
    print(f"report: {figures['total']['files']:,} files, {len(figures['checks'])} checks hold; {output}")


def figures_of(spark: SparkSession, workspace: Workspace) -> dict[str, Any]:
    """All that the template tells; RuntimeError if the tables do not reconcile."""
    from spark_jobs.reporting import figures as steps
    from spark_jobs.reporting import reconciliation
    from spark_jobs.reporting.shard_rows import shard_rows

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
        **steps.summed_up(by_kind),
        "sources": manifests["documents"]["configuration"].get("sources", []),
        **_run(workspace),
    }


def _run(workspace: Workspace) -> dict[str, Any]:
    from spark_jobs.reporting.training_run import completions_of, run_of

    files = workspace.run_files
    return {
        "run": run_of(files.get("metrics.jsonl", b"")),
        "completions": completions_of(files.get("completions.jsonl", b"")),
    }


if __name__ == "__main__":
    run(main)
