"""The sample: bounded, by language, drawn by ids alone, redacted, the same from any partitioning."""

import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import code, document, write_documents, write_ledger

from spark_jobs import sample
from spark_jobs.sampling import Plan, quotas, shortened
from spark_jobs.tables import SAMPLE

PLAN = Plan(1 << 20, 64 << 10, 0.7, 0.01, 0.05, 0)
LANGUAGES = {"Python": 120, "C": 40, "Go": 8, "Lua": 1, None: 3}
OPTIONS = {"sample_bytes": 60_000, "file_bytes": 4096, "held_out_share": 0.1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of several languages cut in two ways, two thirds of them kept, and what is kept by its id."""
    folder, draw, rows = tmp_path_factory.mktemp("sampled"), random.Random(3), []
    for language, count in LANGUAGES.items():
        for number in range(count):
            text = f"# {language} {number} by ann{number}@foo.org\n" + code(draw, draw.randrange(5, 60))
            rows.append(document(text, path=f"{language}{number}", language=language, repo=f"repo{number % 5}"))
    rows.append(document("one line without end " * 50_000, path="giant.c", language="C"))
    rows += [document("", path="empty.py"), document(None, path="binary.py")]
    kept = [row["file_id"] for number, row in enumerate(rows[:-2]) if number % 3 or number > 160]
    tables = {}
    for name, order, cut in (("one", rows, (2, 9)), ("other", rows[::-1], (3, 50))):
        documents = write_documents(folder / name / "documents", order, *cut)
        ledger = write_ledger(folder / name / "ledger", documents, [*kept, rows[-2]["file_id"]])
        tables[name] = {"documents": documents, "ledger": ledger}
    return {**tables, "kept": {row["file_id"]: row for row in rows if row["file_id"] in kept}}


@pytest.fixture(scope="module")
def drawn(spark, corpus, tmp_path_factory):
    """The sample of the first cut, as rows."""
    output = tmp_path_factory.mktemp("drawn") / "sample"
    sample.main(**corpus["one"], output=str(output), **OPTIONS)
    return output


def rows_of(folder):
    return sorted(pq.read_table(folder).to_pylist(), key=lambda row: row["file_id"])


sizes = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 10_000_000), max_size=8)


@settings(deadline=None)
@given(sizes, st.integers(1 << 10, 1 << 25), st.floats(0, 1), st.floats(0, 1))
def test_quotas_fill_the_sample_and_no_more(there, sample_bytes, power, floor):
    plan = replace(PLAN, sample_bytes=sample_bytes, language_power=power, language_floor=floor)
    found = quotas(there, plan)
    assert found.keys() == there.keys()
    assert all(0 <= found[language] <= size for language, size in there.items())
    filled = min(sum(there.values()), sample_bytes)
    assert filled - len(there) - 1 <= sum(found.values()) <= filled
    least = min(floor, 1 / max(sum(map(bool, there.values())), 1)) * sample_bytes
    assert all(found[language] >= min(size, int(least * (1 - 1e-9))) for language, size in there.items())


@settings(deadline=None)
@given(sizes, st.integers(1 << 10, 1 << 25), st.floats(0.1, 1))
def test_more_bytes_never_get_less_nor_a_larger_part_of_themselves(there, sample_bytes, power):
    found = quotas(there, replace(PLAN, sample_bytes=sample_bytes, language_power=power))
    ordered = sorted((size, found[language]) for language, size in there.items() if size)
    for (size, quota), (more, larger) in itertools.pairwise(ordered):
        assert quota <= larger
        assert quota / size >= larger / more - 1e-3 or quota + 1 >= size


def test_rows_are_kept_files_redacted_and_cut(corpus, drawn):
    rows = rows_of(drawn)
    assert pq.read_schema(next(drawn.glob("*.parquet"))).names == SAMPLE.names
    assert len({row["file_id"] for row in rows}) == len(rows)
    for row in rows:
        origin = corpus["kept"][row["file_id"]]
        assert [row[name] for name in ("repo", "path", "language")] == [
            origin[name] for name in ("repo", "path", "language")
        ]
        assert row["size"] == len(row["content"].encode()) <= 4096
        assert re.sub(r"ann\d+@foo\.org", "user1@example.com", origin["content"]).startswith(row["content"])
        assert row["redacted"] == ("@foo.org" in origin["content"])
    assert sum(row["size"] for row in rows) <= OPTIONS["sample_bytes"]
    assert sum(row["size"] for row in rows) > 0.9 * OPTIONS["sample_bytes"]


def test_small_languages_are_there_and_a_giant_is_not_the_sample(corpus, drawn):
    rows = rows_of(drawn)
    taken = {language: sum(row["size"] for row in rows if row["language"] == language) for language in LANGUAGES}
    assert all(taken.values())
    there = dict.fromkeys(LANGUAGES, 0)
    for row in corpus["kept"].values():
        there[row["language"]] += min(row["size"], 4096)
    assert taken["Lua"] >= there["Lua"] - 80  # all, but for the line that a longer address leaves no room for
    assert taken["Python"] / there["Python"] < taken["Go"] / there["Go"]
    facts = json.loads((drawn / "_manifest.json").read_text())["languages"]
    assert set(facts) == {language or "others" for language in LANGUAGES}
    for language, of in facts.items():
        mine = [row for row in rows if (row["language"] or "others") == language]
        assert (of["files"], of["bytes"]) == (len(mine), sum(row["size"] for row in mine))
        assert of["held_out_files"] == sum(row["held_out"] for row in mine)
        kept = [row for row in corpus["kept"].values() if (row["language"] or "others") == language]
        assert (of["kept_files"], of["kept_bytes"]) == (len(kept), sum(row["size"] for row in kept))


def test_each_language_holds_out_about_its_share(drawn):
    rows = rows_of(drawn)
    for language in LANGUAGES:
        mine = [row for row in rows if row["language"] == language]
        held_out = [row["size"] for row in mine if row["held_out"]]
        if len(mine) == 1:
            assert not held_out
        else:
            assert 0 < sum(held_out) <= 0.1 * sum(row["size"] for row in mine) + 4096


def test_the_same_rows_from_any_partitioning_and_others_by_another_seed(spark, corpus, drawn, tmp_path):
    wanted = rows_of(drawn)
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        sample.main(**corpus["other"], output=str(tmp_path / "other"), **OPTIONS)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert rows_of(tmp_path / "other") == wanted
    sample.main(**corpus["one"], output=str(tmp_path / "seed"), **OPTIONS, seed=1)
    assert {row["file_id"] for row in rows_of(tmp_path / "seed")} != {row["file_id"] for row in wanted}
    sample.main(**corpus["one"], output=str(tmp_path / "all"), held_out_share=0.0, file_bytes=1 << 21)
    everything = rows_of(tmp_path / "all")
    assert [row["file_id"] for row in everything] == sorted(corpus["kept"])
    assert not any(row["held_out"] for row in everything)


def test_what_stands_is_not_made_again_and_what_cannot_be_is_refused(spark, corpus, drawn, tmp_path):
    stamps = {path: path.stat().st_mtime_ns for path in Path(drawn).iterdir()}
    sample.main(**corpus["one"], output=str(drawn), **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in Path(drawn).iterdir()} == stamps
    with pytest.raises(FileExistsError, match="--overwrite"):
        sample.main(**corpus["one"], output=str(drawn))
    output = str(tmp_path / "out")
    for name, value in (("sample_bytes", 10), ("file_bytes", 0), ("language_power", 1.5), ("held_out_share", 0.6)):
        with pytest.raises(ValueError, match=f"{name} is {value}; it must be"):
            sample.main(**corpus["one"], output=output, **{name: value})
    with pytest.raises(ValueError, match="was not made from the documents"):
        sample.main(documents=corpus["other"]["documents"], ledger=corpus["one"]["ledger"], output=output)
    nothing = write_ledger(tmp_path / "ledger", corpus["one"]["documents"], kept=[])
    with pytest.raises(ValueError, match="keeps no file"):
        sample.main(documents=corpus["one"]["documents"], ledger=nothing, output=output)
    assert not Path(output).exists()


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(alphabet="aé日𝔘\n ", max_size=20), st.integers(0, 30)), max_size=6))
def test_texts_are_cut_after_lines_or_characters(given_texts):
    texts, budgets = [text for text, _ in given_texts], np.array([size for _, size in given_texts], np.int64)
    found = shortened(pa.array(texts, pa.large_string()), budgets).to_pylist()
    for text, budget, cut in zip(texts, budgets, found, strict=True):
        assert text.startswith(cut)
        assert len(cut.encode()) <= budget
        if cut != text:
            lines = text.encode()[:budget].rpartition(b"\n")
            assert cut == (lines[0] + lines[1]).decode() if lines[1] else len(cut.encode()) > budget - 4
