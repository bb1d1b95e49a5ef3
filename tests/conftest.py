"""What the tests share: one small Spark session, and the tables of one small corpus."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
# Small plans die young: the quick compiler alone halves the time that they take. For the jobs that tests start.
_ARCHIVE = Path(__file__).parents[1] / ".venv" / "spark.jsa"
_QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xlog:cds=off -Xlog:cds+dynamic=off"
os.environ.setdefault("JDK_JAVA_OPTIONS", f"{_QUICK} -XX:SharedArchiveFile={_ARCHIVE}")


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    """Spark on two cores, with batches of a few rows, so that their borders are met."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").appName("tests")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "7",
        "spark.sql.execution.arrow.useLargeVarTypes": "true",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="session")
def workspace(spark, tmp_path_factory):
    """A small corpus and all tables made of it, job by job, to be read and not changed."""
    import small_corpus

    from spark_jobs import dedup, filter, ingest, ledger, measure, sample
    from tokenizer import train

    folder = tmp_path_factory.mktemp("workspace")
    copies, near = small_corpus.write_files(folder / "corpus")
    tables = {kind: str(folder / kind) for kind in ("documents", "signals", "verdicts", "duplicates", "ledger")}
    ingest.main(sources=[str(folder / "corpus")], output=tables["documents"])
    measure.main(documents=tables["documents"], output=tables["signals"])
    filter.main(signals=tables["signals"], output=tables["verdicts"])
    dedup.main(signals=tables["signals"], verdicts=tables["verdicts"], output=tables["duplicates"])
    ledger.main(output=tables["ledger"], **{kind: path for kind, path in tables.items() if kind != "ledger"})
    tables |= {"sample": str(folder / "sample"), "tokenizer": str(folder / "tokenizer")}
    sample.main(documents=tables["documents"], ledger=tables["ledger"], output=tables["sample"])
    train.main(sample=tables["sample"], output=tables["tokenizer"], vocab_size=500)
    return SimpleNamespace(corpus=folder / "corpus", copies=copies, near=near, **tables)


# They start Spark or training many times, in one file each: first, so that no process waits for another at the end.
_LONGEST = ("test_readme.py", "test_end_to_end.py", "test_training.py", "test_cluster.py", "test_deliveries.py")


def pytest_collection_modifyitems(items):
    """The longest files first."""
    items.sort(key=lambda item: _LONGEST.index(item.path.name) if item.path.name in _LONGEST else len(_LONGEST))
