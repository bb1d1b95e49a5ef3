"""The job of ingest in Spark: its table is what the kernels read, once each, wherever and however it runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql.pandas.types import to_arrow_schema

from spark_jobs import ingest
from spark_jobs.sources import units
from spark_jobs.sources.identity import file_id
from spark_jobs.sources.records import Choice
from spark_jobs.tables import DOCUMENTS, Stage, manifest

FOLDER_FILES = {f"repo{number % 3}/{number}.py": f"x = {number}\n" * (number + 1) for number in range(40)}
SCRIPT = Path(ingest.__file__)


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    for path, text in FOLDER_FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "repo0/nul.py").write_bytes(b"\0")
    (root / "repo0/empty.py").write_bytes(b"")
    (root / "repo0/latin.py").write_text("# François a créé cet exemple à l'été\n", encoding="latin-1")
    (root / "repo0/large.py").write_bytes(b"x" * 100_000)
    (root / "repo0/picture.png").write_bytes(b"\x89PNG")
    (root / "repo0/page.html").write_text("<html>")
    return root


def documents(spark, sources, output, range_bytes=units.RANGE_BYTES):
    """Ingest within the session of the tests; the rows by id, and the manifest's counts."""
    choice = Choice(50_000, frozenset(["Python"]))
    found = units.survey([str(source) for source in sources], choice, range_bytes=range_bytes)
    configuration = {"inventory": found.inventory}
    stage = Stage("documents", str(output), configuration=configuration, inputs={}, overwrite=True)
    assert not stage.done()
    counts = ingest.write_documents(spark, found.units, choice, stage)
    rows = pq.read_table(output).to_pylist()
    by_id = {row["file_id"]: row for row in rows}
    assert len(by_id) == len(rows) == counts["rows"]
    record = manifest(str(output))
    assert {name: record[name] for name in counts} == counts
    return by_id, counts


def test_table_holds_every_file_once(spark, corpus, tmp_path):
    rows, counts = documents(spark, [corpus], tmp_path / "out")
    assert pq.read_schema(next((tmp_path / "out").glob("*.parquet"))).names == DOCUMENTS.names
    contents = {row["path"]: row["content"] for row in rows.values() if row["state"] == "decoded"}
    assert contents == FOLDER_FILES | {"repo0/latin.py": "# François a créé cet exemple à l'été\n"}
    for row in rows.values():
        if row["state"] == "decoded":
            text = row["content"].encode()
            assert row["file_id"] == file_id(row["repo"], row["revision"], row["path"], text)
    expected = {"decoded": 41, "empty": 1, "binary": 1, "oversized": 1, "rows": 44, "repeated": 0}
    expected |= {"skipped_by_name": 1, "skipped_by_language": 1, "undecodable": 0, "unreadable": 0}
    assert {name: counts[name] for name in expected} == expected
    assert counts["input_bytes"] == sum(row["size"] for row in rows.values())
    assert counts["content_bytes"] == sum(len(text.encode()) for text in contents.values())


def test_other_place_and_other_partitions_give_the_same_rows(spark, corpus, tmp_path):
    first, counts = documents(spark, [corpus], tmp_path / "out")
    moved = tmp_path / "far" / "away" / "corpus"
    shutil.copytree(corpus, moved)
    again, counts_again = documents(spark, [moved], tmp_path / "again", range_bytes=500)
    for rows in (first, again):
        for row in rows.values():
            del row["source"]
    assert first == again
    assert counts == counts_again


def test_sources_that_overlap_give_each_file_once(spark, corpus, tmp_path):
    first, counts = documents(spark, [corpus], tmp_path / "out")
    lines = tmp_path / "more.jsonl"
    row = {"repo": "corpus/repo1", "path": "repo1/1.py", "content": FOLDER_FILES["repo1/1.py"]}
    other = row | {"content": "another"}
    lines.write_text("".join(json.dumps(each) + "\n" for each in (row, other, other)))
    rows, counts_again = documents(spark, [corpus, lines, corpus], tmp_path / "again")
    assert set(first) < set(rows)
    assert len(rows) == len(first) + 1
    assert counts_again["repeated"] == len(first) + 2
    assert counts_again["decoded"] == counts["decoded"] + 1
    assert counts_again["skipped_by_name"] == 2 * counts["skipped_by_name"]
    kept = rows[file_id("corpus/repo1", "", "repo1/1.py", FOLDER_FILES["repo1/1.py"].encode())]
    assert kept["source"] == str(corpus)  # it comes before the other in the alphabet
    assert not [path for path in (tmp_path / "again").iterdir() if path.is_dir()]


def test_folder_without_files_gives_an_empty_table(spark, tmp_path):
    (tmp_path / "none").mkdir()
    rows, counts = documents(spark, [tmp_path / "none"], tmp_path / "out")
    assert rows == {}
    assert set(counts.values()) == {0}


def test_columns_travel_in_the_order_of_the_schema(spark, corpus):
    rows = ingest.read(spark, units.survey([str(corpus)], Choice(100)).units, Choice(100))
    assert rows.columns[: len(DOCUMENTS.names)] == DOCUMENTS.names
    schema = to_arrow_schema(DOCUMENTS, prefers_large_types=True)
    assert schema.field("content").type == pa.large_string()


# The command line


def run(*arguments, launcher=(sys.executable,)):
    home = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{home}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [*launcher, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120
    )


def test_missing_source_is_one_line_and_no_output(tmp_path):
    done = run("--sources", tmp_path / "nowhere", "--output", tmp_path / "out", launcher=["spark-submit"])
    assert done.returncode == 1
    told = done.stdout.splitlines()  # spark-submit passes on both streams of a script as one
    assert told == [f"error: the source {tmp_path / 'nowhere'} does not exist"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "sources"),
        (["--sources", ".", "--output", "out", "--max_file_bytes", "much"], 2, "max_file_bytes"),
        (["--sources", ".", "--output", "out", "--max_file_bytes", "0"], 1, "must be at least 1"),
        (["--sources", ".", "--output", "out", "--languages", "Python", "Rubi"], 1, "near are Ruby"),
        (["--sources", "gs://bucket", "--output", "out"], 1, "not addresses"),
    ],
)
def test_wrong_arguments(arguments, code, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run_and_a_finished_table_need_no_spark(spark, corpus, tmp_path):
    arguments = ["--sources", corpus, "--languages", "Python", "--max_file_bytes", "50000"]
    plan = run(*arguments, "--output", tmp_path / "out", "--dry_run")
    assert plan.returncode == 0
    assert "all: 44 files, 0.1 MB, in 3 units" in plan.stdout
    assert not (tmp_path / "out").exists()
    choice = Choice(50_000, frozenset(["Python"]))
    found = units.survey([str(corpus)], choice)
    stage = Stage(
        "documents",
        str(tmp_path / "out"),
        configuration=ingest.configuration_of([str(corpus)], choice, found),
        inputs={},
        overwrite=False,
    )
    ingest.write_documents(spark, found.units, choice, stage)
    again = run(*arguments, "--output", tmp_path / "out")
    assert again.returncode == 0
    assert "already done, 44 rows" in again.stderr
    (corpus / "new.py").write_text("x")
    changed = run(*arguments, "--output", tmp_path / "out")
    assert changed.returncode == 1
    assert "--overwrite replaces it" in changed.stderr
