"""Benchmark tasks in a corpus: found by runs of words, against plain Python; nothing else is."""

import gzip
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_corpus import document, write_documents

from spark_jobs import decontaminate, dedup, filter, ledger, measure
from spark_jobs.rules.contamination import runs_of, tasks_of

SHARED = Path(__file__).parents[2] / "shared" / "data" / "HumanEval.jsonl.gz"
SHARED_LINE = "from typing import List\n"
TASKS = {
    "T/1": f"{SHARED_LINE}def running_sum(values: List[int]):\n    '''Sums of all beginnings of the list.'''\n",
    "T/2": f"{SHARED_LINE}def longest_run(values: List[int]):\n    '''Length of the longest equal stretch.'''\n",
}
TASK_TEXT = TASKS["T/1"].removeprefix(SHARED_LINE)


def words_runs(text, size):
    words = re.findall(r"\w+", text)
    return {" ".join(words[first : first + size]) for first in range(max(1, len(words) - size + 1))}


@pytest.fixture
def benchmark_file(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"task_id": name, "prompt": text}) + "\n" for name, text in TASKS.items()))
    return str(path)


def test_runs_are_those_of_one_task_alone():
    runs = runs_of(TASKS, 6)
    expected = words_runs(TASKS["T/1"], 6) ^ words_runs(TASKS["T/2"], 6)
    assert set(runs.words) == expected
    assert all(run in words_runs(TASKS[task], 6) for task, run in zip(runs.tasks, runs.words, strict=True))
    assert list(runs.hashes) == sorted(runs.hashes)


def test_runs_of_numbers_prove_nothing():
    assert runs_of({"T/1": "0 1 2 3 4 5 6 7 8 9 10"}, 10).words == []


def test_documents_with_a_task_are_found_and_leave_the_data(spark, benchmark_file, tmp_path):
    body = "\n".join(f"value_{number} = compute_{number}(left, right)" for number in range(20))
    rows = [
        document(f"{body}\nclass A:\n  {TASK_TEXT}", path="whole.py"),
        document(f"{body}\nclass A:\n  {TASK_TEXT}\nmore = 1\n", path="near.py"),
        document(f"{body}\nclass A: pass\n", path="clean.py"),
        document("from typing import List\ndef other(values: List[int]): return 1\n", path="shares_an_import.py"),
        document(None, path="binary.py"),
    ]
    documents = write_documents(tmp_path / "documents", rows, parts=2)
    tables = {kind: str(tmp_path / kind) for kind in ("signals", "verdicts", "contaminated", "duplicates", "ledger")}
    decontaminate.main(documents=documents, benchmarks=[benchmark_file], output=tables["contaminated"], run_words=6)
    found = {row["path"]: row for row in pq.read_table(tables["contaminated"]).to_pylist()}
    assert set(found) == {"whole.py", "near.py"}
    for row in found.values():
        assert row["task"] == "T/1"
        assert row["matched"] in words_runs(TASK_TEXT, 6)
    measure.main(documents=documents, output=tables["signals"])
    filter.main(signals=tables["signals"], output=tables["verdicts"], profile="none")
    made = {kind: tables[kind] for kind in ("signals", "verdicts", "contaminated")}
    dedup.main(output=tables["duplicates"], **made)
    ledger.main(documents=documents, duplicates=tables["duplicates"], output=tables["ledger"], **made)
    states = {row["path"]: (row["state"], row["evidence"]) for row in pq.read_table(tables["ledger"]).to_pylist()}
    assert {path for path, (state, _) in states.items() if state == "contaminated"} == set(found)
    assert states["whole.py"][1].startswith("T/1: ")
    assert states["clean.py"][0] == states["shares_an_import.py"][0] == "kept"


def test_bad_benchmarks_are_named(tmp_path):
    bad = tmp_path / "bad.jsonl"
    for text, message in (("[1]\n", "not a JSON object"), ('{"a": 1}\n', "has none of the fields"), ("", "no tasks")):
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            tasks_of(str(bad))


@pytest.mark.skipif(not SHARED.is_file(), reason="HumanEval is not at hand")
def test_humaneval_is_read_whole():
    with gzip.open(SHARED, "rt") as lines:
        count = sum(1 for _ in lines)
    tasks = tasks_of(str(SHARED))
    assert len(tasks) == count == 164
    runs = runs_of(tasks, 10)
    assert len(set(runs.tasks)) > 160
