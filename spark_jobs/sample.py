"""documents + ledger -> a bounded, stratified sample of the kept files, redacted: what a tokenizer is trained on."""

from tokenizer.command_line import run


def main(
    *,
    documents: str,
    ledger: str,
    output: str,
    sample_bytes: int = 256 << 20,
    file_bytes: int = 64 << 10,
    language_power: float = 0.7,
    language_floor: float = 0.01,
    held_out_share: float = 0.05,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Draw kept files by file id, language by language, and replace personal data and secrets in them.

    A language's share of the sample is its share of the kept bytes to a power, and at least a floor, as far as it has
    so much. The same ledger, options and seed give the same rows from any partitioning.

    Args:
        documents: table of documents.
        ledger: table of states; the kept files are sampled, so that no text is in it twice.
        output: folder of the sample.
        sample_bytes: text that the sample holds at most.
        file_bytes: text of a file that it holds at most; of longer files the first lines.
        language_power: 1 samples languages as they are, 0 all alike, in [0, 1].
        language_floor: share of the sample that each language gets if it has so much, in [0, 1].
        held_out_share: share of each language to hold out from training, for tokenizer/evaluate.py, in [0, 0.5].
        seed: of the choice of files.
        overwrite: replace what lies there.
    """
    from dataclasses import asdict

    from spark_jobs import sampling, tables
    from spark_jobs.session import start_session, step

    plan = sampling.Plan(sample_bytes, file_bytes, language_power, language_floor, held_out_share, seed)
    tables.require_made_from(ledger, documents=documents)
    inputs = {"documents": documents, "ledger": ledger}
    stage = tables.Stage("sample", output, configuration=asdict(plan), inputs=inputs, overwrite=overwrite)
    if stage.done():
        return
    with stage, start_session("sample") as spark:
        with step(spark, "sample: choosing files"):
            kept = tables.read(spark, ledger, "ledger").where("state = 'kept' and size > 0")
            strata = sampling.strata_of(kept, plan)
            chosen = stage.staged(sampling.chosen_of(kept, strata, plan), "chosen")
        with step(spark, "sample: reading and redacting them"):
            rows = sampling.write(chosen, documents, stage.storage.uri)
        taken = sampling.taken_of(spark.read.parquet(stage.storage.uri), strata)
        stage.finish(rows=rows, languages=taken)
    print(sampling.summary(taken, output))


if __name__ == "__main__":
    run(main)
