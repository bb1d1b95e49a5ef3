"""All verdicts -> the ledger: one row a file, with its one state and the evidence."""

from tokenizer.command_line import run


def main(
    *,
    documents: str,
    signals: str,
    verdicts: str,
    duplicates: str,
    output: str,
    contaminated: str | None = None,
    overwrite: bool = False,
) -> None:
    """Give every document its one state and write why. Fails if the counts of the tables do not reconcile.

    Args:
        documents: table of documents.
        signals: table of signals.
        verdicts: table of verdicts.
        duplicates: table of duplicates.
        output: folder of the ledger.
        contaminated: table of contaminated documents, if there is one.
        overwrite: replace what lies there.
    """
    from spark_jobs import tables
    from spark_jobs.rules import states
    from spark_jobs.session import start_session, step

    tables.require_made_from(signals, documents=documents)
    tables.require_made_from(verdicts, signals=signals)
    tables.require_made_from(duplicates, documents=documents, verdicts=verdicts)
    inputs = {"documents": documents, "signals": signals, "verdicts": verdicts, "duplicates": duplicates}
    if contaminated:
        tables.require_made_from(contaminated, documents=documents)
        tables.require_made_from(duplicates, contaminated=contaminated)
        inputs["contaminated"] = contaminated
    stage = tables.Stage("ledger", output, configuration={}, inputs=inputs, overwrite=overwrite)
    if stage.done():
        return
    with stage, start_session("ledger") as spark, step(spark, "ledger: one state a file"):
        found = {kind: tables.read(spark, path, kind) for kind, path in inputs.items() if kind != "documents"}
        manifests = {kind: tables.manifest(path) for kind, path in inputs.items()}
        earlier = manifests["duplicates"]["deliveries"][:-1]
        kept_before = None
        if earlier:  # its removals are those of the whole collection
            found["duplicates"] = found["duplicates"].join(found["signals"].select("file_id"), "file_id", "left_semi")
            kept_before = spark.read.parquet(*(delivery["fingerprints"] for delivery in earlier)).select("file_id")
        ledger = stage.staged(states.ledger_of(**found), "ledger")
        counts = states.counts_by_state(ledger)
        states.reconcile(ledger, counts, found["duplicates"], manifests, kept_before)
        stage.write(ledger, facts={"states": counts})
    for state, count in counts.items():
        print(f"  {state:<30}{count['files']:>12,} files {count['bytes'] / 1e6:>14,.1f} MB")
    print(f"ledger: {sum(count['files'] for count in counts.values()):,} files, each once, in {output}")


if __name__ == "__main__":
    run(main)
