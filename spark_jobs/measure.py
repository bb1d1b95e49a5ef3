"""documents -> signals: one reading of the content measures everything that later decisions need."""

from tokenizer.command_line import run


def main(*, documents: str, output: str, overwrite: bool = False) -> None:
    """Measure every document: the numbers of the rules, its hash, and the sketch of its shingles.

    Args:
        documents: table of documents, as ingest writes it.
        output: folder of the signals.
        overwrite: replace what lies there.
    """
    from pyspark.sql import functions as F

    from spark_jobs import tables
    from spark_jobs.near_duplicates.shingles import SCHEME
    from spark_jobs.rules.measurement import signals_of
    from spark_jobs.session import start_session, step

    tables.require(documents, "documents")
    inputs = {"documents": documents}
    stage = tables.Stage("signals", output, configuration={"scheme": SCHEME}, inputs=inputs, overwrite=overwrite)
    if stage.done():
        return
    with stage, start_session("measure") as spark, step(spark, "measure: reading the content once"):
        bytes_read = {"content_bytes": F.sum("size")}
        stage.write(signals_of(spark, documents), counts=bytes_read, facts={"documents": documents})


if __name__ == "__main__":
    run(main)
