"""A table is whole or absent, made of what it says, and nothing that is not ours is ever replaced unasked."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_corpus

from spark_jobs import storage, tables
from spark_jobs.tables import Stage

LABEL = {"label": "first"}


def stage_of(folder, *, kind="numbers", configuration=LABEL, inputs=(), overwrite=False):
    return Stage(kind, str(folder), configuration=configuration, inputs=dict(inputs), overwrite=overwrite)


def make(folder, rows=3, **options):
    """A finished table of some numbers, written without Spark."""
    stage = stage_of(folder, **options)
    assert not stage.done()
    with stage:
        pq.write_table(pa.table({"number": range(rows)}), folder / "part-0.parquet")
        stage.finish(rows=rows)
    return folder


def test_a_finished_table_is_done_and_another_is_refused(tmp_path):
    folder, source = make(tmp_path / "out"), str(make(tmp_path / "source"))
    assert sorted(path.name for path in folder.iterdir()) == ["_manifest.json", "part-0.parquet"]
    assert stage_of(folder).done()
    for other in ({"configuration": {"label": "other"}}, {"kind": "letters"}, {"inputs": {"source": source}}):
        with pytest.raises(FileExistsError, match="--overwrite"):
            stage_of(folder, **other).done()
    assert pq.read_table(folder / "part-0.parquet").num_rows == 3
    make(folder, rows=5, configuration={"label": "other"}, overwrite=True)
    assert tables.manifest(str(folder))["rows"] == 5
    assert not stage_of(folder, overwrite=True).done()


def test_a_table_is_unfinished_until_its_manifest_is_there(tmp_path):
    folder = tmp_path / "out"
    stage = stage_of(folder).__enter__()
    (folder / "left.parquet").write_text("from an attempt that was killed")
    with pytest.raises(ValueError, match="never finished"):
        tables.manifest(str(folder))
    assert not stage_of(folder).done()
    make(folder)
    assert not (folder / "left.parquet").exists()
    stage.storage.delete("_manifest.json")
    with pytest.raises(ValueError, match="is not a table"):
        tables.manifest(str(folder))
    with pytest.raises(ValueError, match="does not exist"):
        tables.manifest(str(tmp_path / "nowhere"))


def test_a_failure_leaves_nothing(tmp_path, spark):
    folder = tmp_path / "out"

    def failing(batches):
        raise KeyError("a fault of ours")

    def job():
        with stage_of(folder) as stage:
            stage.staged(spark.range(10), "first")
            stage.write(spark.range(10).mapInArrow(failing, "id long"))

    with pytest.raises(Exception, match="a fault of ours"):
        job()
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), stage_of(folder):
        raise KeyboardInterrupt
    assert not folder.exists()


def test_foreign_folders_and_files_are_refused(tmp_path):
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "file.txt").write_text("mine")
    for place in (folder, folder / "file.txt"):
        with pytest.raises(FileExistsError, match="no table of ours"):
            stage_of(place).done()
        with pytest.raises(FileExistsError, match="name another, or empty it"):
            stage_of(place, overwrite=True).done()
    assert (folder / "file.txt").read_text() == "mine"
    (folder / "file.txt").unlink()
    make(folder, overwrite=True)


@pytest.mark.parametrize("place", ["source", "source/deep/out", ".", "source/../source", "other/../source/out"])
def test_an_output_never_lies_in_its_input_nor_that_in_it(tmp_path, place):
    source = make(tmp_path / "source")
    with pytest.raises(ValueError, match="lie in one another"):
        stage_of(tmp_path / place, inputs={"source": str(source)}, overwrite=True)
    stage_of(tmp_path / "source2", inputs={"source": str(source)})


def test_what_a_table_was_made_from(tmp_path):
    source, other = make(tmp_path / "source"), make(tmp_path / "other", configuration={"label": "other"})
    made = make(tmp_path / "made", inputs={"source": str(source)})
    tables.require_made_from(str(made), source=str(source))
    moved = shutil.copytree(source, tmp_path / "moved")
    tables.require_made_from(str(made), source=str(moved))
    for wrong in ({"source": str(other)}, {"letters": str(source)}):
        with pytest.raises(ValueError, match="was not made from"):
            tables.require_made_from(str(made), **wrong)
    assert tables.require(str(made), "numbers")["rows"] == 3
    with pytest.raises(ValueError, match="holds numbers"):
        tables.require(str(made), "letters")
    record = json.loads((made / "_manifest.json").read_text())
    (made / "_manifest.json").write_text(json.dumps(record | {"schema_version": 0}))
    with pytest.raises(ValueError, match="schema version 0"):
        tables.require(str(made), "numbers")


def test_plain_parquet_is_known_by_its_files(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    pq.write_table(pa.table({"content": ["a"]}), folder / "deep" / "a.parquet")
    first = tables.fingerprint(str(folder))
    assert first == tables.fingerprint(str(folder) + "/")
    (folder / "_hidden").mkdir()
    (folder / "_hidden" / "x.parquet").write_text("")
    (folder / ".x.parquet").write_text("")
    (folder / "notes.txt").write_text("")
    assert tables.fingerprint(str(folder)) == first
    assert [file.base_name for file in storage.parquet_files(str(folder), ["content"])] == ["a.parquet"]
    assert [file.base_name for file in storage.parquet_files(str(folder / "deep/a.parquet"), [])] == ["a.parquet"]
    pq.write_table(pa.table({"content": ["b", "c"]}), folder / "b.parquet")
    assert tables.fingerprint(str(folder)) != first
    with pytest.raises(ValueError, match=r"lacks the column\(s\) text; it has content"):
        storage.parquet_files(str(folder), ["text"])
    (folder / "_hidden" / "x.parquet").unlink()
    with pytest.raises(ValueError, match="holds no Parquet files"):
        storage.parquet_files(str(folder / "_hidden"), [])
    with pytest.raises(ValueError, match="does not exist"):
        tables.fingerprint(str(tmp_path / "nowhere"))


def test_rows_and_aggregates_are_counted_while_writing(tmp_path, spark):
    from pyspark.sql import functions as F

    stage = stage_of(tmp_path / "out")
    with stage:
        rows = stage.staged(spark.range(100), "numbers")
        assert (tmp_path / "out" / "_scratch" / "numbers").is_dir()
        counts = stage.write(rows, counts={"even": F.count_if(F.col("id") % 2 == 0)}, facts={"note": "seen"})
    assert counts == {"rows": 100, "even": 50}
    assert not (tmp_path / "out" / "_scratch").exists()
    record = tables.manifest(str(tmp_path / "out"))
    assert (record["rows"], record["even"], record["note"]) == (100, 50, "seen")
    assert record["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.parquet"))
    read = tables.read(spark, str(tmp_path / "out"), "numbers")
    assert sorted(row.id for row in read.collect()) == list(range(100))


def test_a_table_that_was_cut_anew_is_not_what_places_were_told_of(tmp_path):
    """Signals and ledgers say where content lies: the same rows in other files make them stale."""
    documents = small_corpus.write_documents(tmp_path / "documents", [small_corpus.document("x = 1")] * 2)
    signals = Stage(
        "signals", str(tmp_path / "signals"), configuration={}, inputs={"documents": documents}, overwrite=False
    )
    with signals:
        signals.finish(rows=2)
    tables.require_made_from(str(tmp_path / "signals"), documents=documents)
    before = tables.fingerprint(documents)
    shutil.rmtree(documents)
    small_corpus.write_documents(tmp_path / "documents", [small_corpus.document("x = 1")] * 2, parts=2)
    assert tables.fingerprint(documents) == before
    with pytest.raises(ValueError, match="was not made from the documents"):
        tables.require_made_from(str(tmp_path / "signals"), documents=documents)
