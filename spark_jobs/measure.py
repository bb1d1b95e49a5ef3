"""documents -> signals: one reading of the content measures everything that later decisions need."""

from spark_jobs.near_duplicates.settings import Fingerprint
from tokenizer.command_line import run


def main(
    *,
    documents: str,
    output: str,
    fingerprint: Fingerprint = Fingerprint(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> None:
    """Measure every document: the numbers of the rules, its hash, and the fingerprint of its shingles.

    Args:
        documents: table of documents, as ingest writes it.
        output: folder of the signals.
        fingerprint: what near-duplicates are recognized by.
        overwrite: replace what lies there.
    """
    from pyspark.sql import functions as F

    from spark_jobs import tables
    from spark_jobs.rules.measurement import signals_of
    from spark_jobs.session import start_session, step

    tables.require(documents, "documents")
    configuration, inputs = {"scheme": fingerprint.scheme}, {"documents": documents}
    stage = tables.Stage("signals", output, configuration=configuration, inputs=inputs, overwrite=overwrite)
    if stage.done():
        return
    with stage, start_session("measure") as spark, step(spark, "measure: reading the content once"):
        bytes_read = {"content_bytes": F.sum("size")}
        stage.write(signals_of(spark, documents, fingerprint), counts=bytes_read, facts={"documents": documents})


if __name__ == "__main__":
    run(main)
