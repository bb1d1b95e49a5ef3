"""signals (or documents) -> duplicates: removed file, kept file, similarity."""

from tokenizer.command_line import run


def main(
    *,
    output: str,
    documents: str | None = None,
    signals: str | None = None,
    verdicts: str | None = None,
    contaminated: str | None = None,
    threshold: float = 0.7,
    survivors: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> None:
    """Find exact and near-duplicates; every removal names a kept file at least as similar as the threshold.

    Args:
        output: folder of the duplicates.
        documents: table of documents, or any Parquet data with a `content` column (and `repo`, `path` if it has them).
        signals: table of signals, so that the documents need not be measured again.
        verdicts: table of verdicts; files that break a rule do not compete, and are in no duplicate.
        contaminated: table of documents that contain benchmark tasks; they do not compete either.
        threshold: least Jaccard similarity of the sets of five-word shingles, in (0, 1].
        survivors: also write the surviving rows of the documents here, with all their columns.
        dry_run: print the plan and stop.
        overwrite: replace what lies there.
    """
    from pyspark.sql import functions as F

    from spark_jobs import tables
    from spark_jobs.near_duplicates import duplicates as steps
    from spark_jobs.rules.measurement import signals_of
    from spark_jobs.session import start_session, step

    documents = steps.documents_path(documents, signals, verdicts, contaminated)
    removing = {kind: path for kind, path in {"verdicts": verdicts, "contaminated": contaminated}.items() if path}
    inputs = {"documents": documents, **removing}
    configuration = steps.configuration(threshold)
    stage = tables.Stage("duplicates", output, configuration=configuration, inputs=inputs, overwrite=overwrite)
    written = (
        tables.Stage("survivors", survivors, configuration=configuration, inputs=inputs, overwrite=overwrite)
        if survivors
        else None
    )
    print(steps.plan(documents, threshold))
    if dry_run:
        return
    standing = [each.done() for each in (stage, written) if each]  # asked of both: each refuses what is not ours
    if all(standing):
        return
    with stage, start_session("dedup") as spark:
        if signals:
            measured = tables.read(spark, signals, "signals")
        else:
            with step(spark, "dedup: measuring the documents"):
                measured = stage.staged(signals_of(spark, documents), "signals")
        judged = {kind: tables.read(spark, path, kind) for kind, path in removing.items()}
        competing = stage.staged(steps.competitors(measured, **judged), "competing")
        duplicates = stage.staged(steps.duplicates_of(competing, documents, threshold, stage), "duplicates")
        if written:
            with written, step(spark, "dedup: writing the survivors"):
                kept = written.write(steps.survivors_of(competing, duplicates, documents))
                print(f"dedup: {kept['rows']:,} survivors in {survivors}")
        entered = competing.count()
        counts = stage.write(duplicates, counts={"exact": F.count_if(F.col("kind") == "exact")})
    near = counts["rows"] - counts["exact"]
    print(f"dedup: of {entered:,} documents that have content and break no rule, {counts['exact']:,} are exact copies")
    print(f"dedup: and {near:,} near-duplicates of kept ones; {output} names their twins")


if __name__ == "__main__":
    run(main)
