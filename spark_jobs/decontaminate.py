"""documents -> contaminated: files that contain benchmark tasks, with the words that match."""

from tokenizer.command_line import run


def main(*, documents: str, benchmarks: list[str], output: str, run_words: int = 10, overwrite: bool = False) -> None:
    """Find the documents that share a run of words with a benchmark task, and with that task alone.

    Args:
        documents: table of documents.
        benchmarks: task files, .jsonl or .jsonl.gz, in the form of HumanEval or MBPP.
        output: folder of the contaminated documents; dedup and ledger take it.
        run_words: words in a row that must match (10 is DeepSeek-Coder's choice).
        overwrite: replace what lies there.
    """
    import xxhash

    from spark_jobs import tables
    from spark_jobs.rules.contamination import contaminated_of, runs_of, tasks_of
    from spark_jobs.session import start_session, step

    if run_words < 5:
        raise ValueError(f"run_words is {run_words}; it must be at least 5, or chance finds every task")
    tables.require(documents, "documents")
    tasks = {name: text for path in benchmarks for name, text in tasks_of(path).items()}
    runs = runs_of(tasks, run_words)
    configuration = {"run_words": run_words, "runs": xxhash.xxh3_64_hexdigest(runs.hashes.tobytes())}
    inputs = {"documents": documents}
    stage = tables.Stage("contaminated", output, configuration=configuration, inputs=inputs, overwrite=overwrite)
    if stage.done():
        return
    title = f"decontaminate: looking for {len(tasks):,} tasks ({len(runs.hashes):,} runs of words)"
    with stage, start_session("decontaminate") as spark, step(spark, title):
        counts = stage.write(contaminated_of(spark, documents, runs, run_words))
    print(f"decontaminate: {counts['rows']:,} documents contain a task; {output} names task and words")


if __name__ == "__main__":
    run(main)
