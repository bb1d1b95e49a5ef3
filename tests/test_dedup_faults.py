"""Faults that a user can cause: one line that says what is wrong, an exit code, and no folder left behind."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import document, write_documents

from spark_jobs import dedup, measure
from tokenizer.command_line import run

ROOT = Path(__file__).parent.parent


def words(seed, count=40):
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(10**6)}" for _ in range(count))


def texts_table(**columns):
    return pa.table({"content": [words(number) for number in range(6)], **columns})


@pytest.fixture
def source(tmp_path):
    """Sound Parquet data, a copy of the same rows in each of two files."""
    (tmp_path / "data").mkdir()
    for number in range(2):
        pq.write_table(
            texts_table(path=[f"{number}-{row}" for row in range(6)]), tmp_path / "data" / f"{number}.parquet"
        )
    return tmp_path / "data"


def fault_of(capsys, tmp_path, *options, code=1):
    """Run the command line in this process: the one line that it ends with, after it left nothing behind."""
    before = sorted(path.name for path in tmp_path.iterdir())
    capsys.readouterr()
    arguments = ["--output", str(tmp_path / "out"), "--survivors", str(tmp_path / "survivors"), *map(str, options)]
    with pytest.raises(SystemExit) as ended:
        run(dedup.main, arguments)
    told = capsys.readouterr()
    assert ended.value.code == code, told.err
    assert "Traceback" not in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    (line,) = [line for line in told.err.splitlines() if line.startswith("error:")]
    return line


# Before Spark starts


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--documents", "nowhere"], 1, "error: nowhere does not exist"),
        (["--documents", ".", "--threshold", "0"], 1, "error: threshold is 0.0; it must be in (0, 1]"),
        (["--documents", ".", "--threshold", "1.5"], 1, "error: threshold is 1.5; it must be in (0, 1]"),
        (["--documents", ".", "--threshold", ".nan"], 1, "error: threshold is nan; it must be in (0, 1]"),
        (["--documents", ".", "--threshold", "nan"], None, "nan"),
        (["--documents", ".", "--resolve", "clusters"], 2, "clusters"),
        (["--documents", ".", "--verify", "maybe"], 2, "maybe"),
        (["--documents", ".", "--forget", "12"], 1, "name its output with --index"),
        ([], 1, "error: name --documents, or --signals"),
    ],
)
def test_a_wrong_option_is_told_before_spark_starts(tmp_path, options, code, told):
    """In a process of its own, without a Java runtime that could start."""
    command = [sys.executable, str(ROOT / "spark_jobs" / "dedup.py"), "--output", "out", *options]
    environment = {**os.environ, "JAVA_HOME": "/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code or (code is None and done.returncode in (1, 2)), done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_no_parquet_is_told(spark, tmp_path, source, capsys):
    (source / "1.parquet").write_bytes(b"\0garbage" * 500)
    line = fault_of(capsys, tmp_path, "--documents", source)
    assert "Parquet" in line
    assert "1.parquet" in line


def test_an_empty_file_is_told(spark, tmp_path, source, capsys):
    (source / "1.parquet").write_bytes(b"")
    assert "1.parquet" in fault_of(capsys, tmp_path, "--documents", source)


def test_a_folder_without_parquet_is_told(spark, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("no Parquet")
    assert "holds no Parquet files" in fault_of(capsys, tmp_path, "--documents", tmp_path / "data")


@pytest.mark.parametrize("first", [0, 1], ids=["in all files", "in the last file"])
def test_a_missing_content_column_is_told(spark, tmp_path, source, capsys, first):
    for number in range(first, 2):
        pq.write_table(texts_table().rename_columns(["text"]), source / f"{number}.parquet")
    line = fault_of(capsys, tmp_path, "--documents", source)
    assert "lacks the column(s) content; it has text" in line


@pytest.mark.parametrize("first", [0, 1], ids=["in all files", "in the last file"])
@pytest.mark.parametrize("values", [[1, 2, 3], [["a"], ["b"], ["c"]]], ids=["numbers", "lists"])
def test_content_of_another_type_is_told(spark, tmp_path, source, capsys, values, first):
    for number in range(first, 2):
        pq.write_table(pa.table({"content": values}), source / f"{number}.parquet")
    assert "must be a string" in fault_of(capsys, tmp_path, "--documents", source)


@pytest.mark.parametrize("survivors", ["out", "out/survivors", "data/survivors"])
def test_output_and_survivors_are_two_folders(spark, tmp_path, source, capsys, survivors):
    line = fault_of(capsys, tmp_path, "--documents", source, "--survivors", tmp_path / survivors)
    assert "in one another" in line


def test_an_output_that_is_a_file_is_not_replaced(spark, tmp_path, source, capsys):
    (tmp_path / "out").write_text("mine")
    fault_of(capsys, tmp_path, "--documents", source)
    assert (tmp_path / "out").read_text() == "mine"


def test_signals_of_another_scheme_are_refused(spark, tmp_path, capsys):
    documents = write_documents(tmp_path / "documents", [document(words(1))])
    measure.main(documents=documents, output=str(tmp_path / "signals"))
    where = tmp_path / "signals" / "_manifest.json"
    record = json.loads(where.read_text())
    record["configuration"]["scheme"] = "words7-affine32"
    where.write_text(json.dumps(record))
    line = fault_of(capsys, tmp_path, "--signals", tmp_path / "signals")
    assert "scheme words7-affine32" in line
    assert "measure again" in line


def test_signals_with_headers_cannot_be_stripped(spark, tmp_path, capsys):
    documents = write_documents(tmp_path / "documents", [document(words(1))])
    measure.main(documents=documents, output=str(tmp_path / "signals"))
    line = fault_of(capsys, tmp_path, "--signals", tmp_path / "signals", "--fingerprint.strip_header")
    assert "was measured with headers" in line


def test_signals_of_other_documents_are_refused(spark, tmp_path, capsys):
    tables = [write_documents(tmp_path / f"documents{number}", [document(words(number))]) for number in range(2)]
    measure.main(documents=tables[0], output=str(tmp_path / "signals"))
    line = fault_of(capsys, tmp_path, "--signals", tmp_path / "signals", "--documents", tables[1])
    assert "was not made from the documents" in line
    shutil.rmtree(tables[0])
    assert "does not exist" in fault_of(capsys, tmp_path, "--signals", tmp_path / "signals")


def test_signals_that_an_index_needs_are_to_stay_as_they_were(spark, tmp_path, capsys):
    documents = [write_documents(tmp_path / f"documents{number}", [document(words(number))]) for number in range(2)]
    signals, state = str(tmp_path / "signals"), str(tmp_path / "state")
    measure.main(documents=documents[0], output=signals)
    dedup.main(signals=signals, output=state)
    delivery = ("--documents", documents[1], "--index", state)
    measure.main(documents=documents[0], output=signals, overwrite=True)
    line = fault_of(capsys, tmp_path, *delivery)
    assert line == f"error: {state} needs the fingerprints in file://{signals}, which have changed since"
    shutil.rmtree(signals)
    line = fault_of(capsys, tmp_path, *delivery)
    assert line == f"error: {state} needs the fingerprints in file://{signals}, which are gone"


# While Spark works


def test_rows_without_content_are_not_compared(spark, tmp_path):
    (tmp_path / "data").mkdir()
    contents = [None, words(1), None, words(1), words(2), None]
    table = pa.table({"content": pa.array(contents, pa.string()), "path": [str(row) for row in range(6)]})
    pq.write_table(table, tmp_path / "data" / "0.parquet", row_group_size=2)
    nothing = pa.table({"content": pa.array([None] * 3, pa.string()), "path": ["6", "7", "8"]})
    pq.write_table(nothing, tmp_path / "data" / "1.parquet")
    dedup.main(documents=str(tmp_path / "data"), output=str(tmp_path / "out"), survivors=str(tmp_path / "survivors"))
    (removed,) = pq.read_table(tmp_path / "out").to_pylist()
    assert {removed["path"], removed["kept_path"]} == {"1", "3"}
    kept = pq.read_table(tmp_path / "survivors").to_pylist()
    assert sorted(row["path"] for row in kept) == sorted([removed["kept_path"], "4"])


@pytest.mark.parametrize("contents", [[], ["", "\n", None]], ids=["no rows", "no words"])
def test_nothing_to_compare_is_no_fault(spark, tmp_path, contents):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"content": pa.array(contents, pa.string())}), tmp_path / "data" / "0.parquet")
    dedup.main(documents=str(tmp_path / "data"), output=str(tmp_path / "out"), survivors=str(tmp_path / "survivors"))
    assert pq.read_table(tmp_path / "out").num_rows == 0
    shown = [
        row["content"]
        for path in (tmp_path / "survivors").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert sorted(shown) == sorted(text for text in contents if text is not None)


def test_damaged_pages_are_told(spark, tmp_path, source, capsys):
    """The footer is sound, so that the damage shows in the workers alone."""
    where = source / "1.parquet"
    data = bytearray(where.read_bytes())
    data[4:2000] = bytes(random.Random(1).randbytes(1996))
    where.write_bytes(data)
    assert "1.parquet" in fault_of(capsys, tmp_path, "--documents", source)


def test_text_that_is_no_utf8_does_not_end_the_job(spark, tmp_path):
    """Other tools write bytes as strings unseen."""
    (tmp_path / "data").mkdir()
    broken = [b"caf\xe9 one two three four five", b"\xff\xfe" * 20, b"a b c d e f \xf0\x9f", b"\xe2\x82", b"\xc3"]
    content = pa.array(broken * 2, pa.binary()).view(pa.string())
    pq.write_table(
        pa.table({"content": content, "path": [str(row) for row in range(10)]}), tmp_path / "data" / "0.parquet"
    )
    dedup.main(documents=str(tmp_path / "data"), output=str(tmp_path / "out"))
    removed = pq.read_table(tmp_path / "out").to_pylist()
    assert len(removed) == len(broken)
    assert {row["kind"] for row in removed} == {"exact"}
