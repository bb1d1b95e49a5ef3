"""signals (or documents) -> duplicates: removed file, kept file, similarity."""

from spark_jobs.near_duplicates.settings import Fingerprint, Resolve, Settings, Verify
from tokenizer.command_line import run


def main(
    *,
    output: str,
    documents: str | None = None,
    signals: str | None = None,
    verdicts: str | None = None,
    contaminated: str | None = None,
    threshold: float = 0.7,
    verify: Verify = "exact",
    resolve: Resolve = "leaders",
    fingerprint: Fingerprint = Fingerprint(),  # noqa: B008 - frozen
    index: str | None = None,
    forget: list[str] | None = None,
    survivors: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> None:
    """Find exact and near-duplicates; every removal names a kept file at least as similar as the threshold.

    Args:
        output: folder of the duplicates; in it also `_clusters` and `_index`, for later deliveries.
        documents: table of documents, or any Parquet data with a `content` column (and `repo`, `path` if it has them).
        signals: table of signals, so that the documents need not be measured again.
        verdicts: table of verdicts; files that break a rule do not compete, and are in no duplicate.
        contaminated: table of documents that contain benchmark tasks; they do not compete either.
        threshold: least Jaccard similarity of the sets of five-word shingles, in (0, 1].
        verify: exact: what the sketches leave open is decided by the content of the two files; sketch: by estimate.
        resolve: leaders: whoever goes is similar to a kept file; components: the best of each connected component
            is kept, the field's habit, which removes files that nothing kept resembles.
        fingerprint: what near-duplicates are recognized by; with --signals, theirs.
        index: output of an earlier run: the documents are a new delivery to what was kept then.
        forget: withdraw these files from the collection of --index: ids, or files with an id a line. The best of
            those that had gone for them are kept again.
        survivors: also write the rows of the documents that are newly kept here, with all their columns.
        dry_run: print the plan and stop.
        overwrite: replace what lies there.
    """
    from spark_jobs import tables
    from spark_jobs.near_duplicates import plan
    from spark_jobs.near_duplicates.collection import deliveries_of, ids_of
    from spark_jobs.near_duplicates.deduplication import Deduplication
    from spark_jobs.session import Aside, start_session

    documents = plan.documents_path(documents, signals, verdicts, contaminated, index)
    settings = Settings(threshold, verify, resolve, plan.fingerprint_of(signals, fingerprint))
    withdrawn = ids_of(forget or [], index)
    configuration = settings.configuration() | {"forget": withdrawn}
    deliveries = deliveries_of(index, settings) if index else []
    named = {"documents": documents, "verdicts": verdicts, "contaminated": contaminated, "index": index}
    inputs = {kind: path for kind, path in named.items() if path}
    tables.require_apart(output, {"survivors": survivors} if survivors else {})
    stages = [
        tables.Stage(kind, path, configuration=configuration, inputs=inputs, overwrite=overwrite)
        for kind, path in (("duplicates", output), ("survivors", survivors))
        if path
    ]
    print(plan.described(documents, settings))
    if dry_run:
        return
    standing = [stage.done() for stage in stages]  # asked of each: each refuses what is not ours
    if all(standing):
        return
    with stages[0], start_session("dedup") as spark, Aside(spark) as aside:
        found = Deduplication(spark, stages[0], settings, inputs, signals, deliveries, withdrawn, aside)
        found.compare()
        if survivors:
            with stages[1]:
                found.write_survivors(stages[1])
        found.finish()


if __name__ == "__main__":
    run(main)
