"""Files that the workers write themselves: every row once, under its name when it is whole, and nothing else."""

import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_jobs.parts import _write, write_none, write_parts, write_sorted_parts
from spark_jobs.storage import Storage

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])


def batch_of(numbers):
    return pa.record_batch([pa.array(numbers, pa.int64()), pa.array([str(one) for one in numbers])], schema=SCHEMA)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, batches, row_group_bytes=1 << 20, **options):
    named = (("part-00000.parquet", batch) for batch in batches)
    _write(named, SCHEMA, Storage(str(folder)), row_group_bytes, options)
    files = list(folder.glob("part-*.parquet"))
    return sum(pq.ParquetFile(path).metadata.num_rows for path in files)


@pytest.mark.parametrize("row_group_bytes", [1, 200, 1 << 20])
def test_every_row_is_written_once_and_nothing_else(spark, tmp_path, row_group_bytes):
    """Tasks of many batches, of one, of batches without rows, and without work; a lost attempt has left its file."""
    schema = SCHEMA

    def make(batches):
        for batch in batches:
            for number in batch.column("id").to_pylist():
                rows = list(range(1000 * number, 1000 * number + number % 9))
                columns = [pa.array(rows, pa.int64()), pa.array([str(row) for row in rows], pa.string())]
                yield pa.record_batch(columns, schema=schema)

    (tmp_path / "_part-00002.parquet.0123.partial").write_bytes(b"half")
    (tmp_path / "_UNFINISHED").write_bytes(b"")
    work = spark.range(0, 40, 1, 8).where("id < 10 OR id IN (17, 27, 36)")
    numbers = [number for number in range(40) if number < 10 or number in (17, 27, 36)]
    expected = [row for number in numbers for row in range(1000 * number, 1000 * number + number % 9)]
    written = write_parts(work, make, SCHEMA, str(tmp_path), "part", row_group_bytes, compression="zstd")
    assert written == len(expected)
    tasks = sorted({number // 5 for number in numbers})
    assert names(tmp_path) == ["_UNFINISHED", *(f"part-{task:05d}.parquet" for task in tasks)]
    files = [pq.ParquetFile(tmp_path / f"part-{task:05d}.parquet") for task in tasks]
    rows = [row for file in files for row in file.read().to_pylist()]
    assert Counter(row["number"] for row in rows) == Counter(expected)
    assert all(row["text"] == str(row["number"]) for row in rows)
    assert {file.schema_arrow for file in files} == {SCHEMA}
    assert files[0].metadata.row_group(0).column(0).compression == "ZSTD"
    assert (files[0].num_row_groups > 1) == (row_group_bytes == 1)


def test_a_file_bears_the_name_of_its_attempt_until_it_is_whole(tmp_path):
    seen = []

    def batches():
        for number in range(3):
            seen.append(names(tmp_path))
            yield batch_of([number])
        seen.append(names(tmp_path))

    assert write(tmp_path, batches(), row_group_bytes=1) == 3
    assert seen[0] == []
    (partial,) = seen[1]
    assert re.fullmatch(r"_part-00000\.parquet\.[0-9a-f]{32}\.partial", partial)
    assert seen[2:] == [[partial], [partial]]
    assert names(tmp_path) == ["part-00000.parquet"]


def test_attempts_at_a_task_do_not_meet(tmp_path):
    """The first dies half way, the second and a third one write at the same time."""

    def dying():
        yield batch_of([1])
        raise OSError("lost")

    def slow():
        yield batch_of([1])
        yield batch_of([2])
        assert write(tmp_path, iter([batch_of([1]), batch_of([2])])) == 2
        assert pq.read_table(tmp_path / "part-00000.parquet").column("number").to_pylist() == [1, 2]

    with pytest.raises(OSError, match="lost"):
        write(tmp_path, dying())
    (left,) = names(tmp_path)
    assert left.endswith(".partial")
    assert write(tmp_path, slow()) == 2
    assert pq.read_table(tmp_path / "part-00000.parquet").column("number").to_pylist() == [1, 2]
    assert names(tmp_path) == sorted([left, "part-00000.parquet"])


def test_batches_are_sorted_into_files_by_name_and_counted(spark, tmp_path):
    def make(batches):
        for batch in batches:
            for number in batch.column("id").to_pylist():
                text = pa.array([str(number % 3)] * number, pa.string())
                yield pa.record_batch([pa.array(range(number), pa.int64()), text], names=["number", "text"])

    def name_of(batch):
        return f"rest{batch.column('text')[0]}" if batch.num_rows else "none"

    work = spark.range(0, 20, 1, 4)
    found = write_sorted_parts(work, make, SCHEMA, str(tmp_path), name_of, lambda batch: 10 * batch.num_rows, 100)
    rows = {f"rest{rest}": [number for number in range(20) if number and number % 3 == rest] for rest in range(3)}
    assert found == {"none": 0} | {name: 10 * sum(numbers) for name, numbers in rows.items()}
    for name, numbers in rows.items():
        tasks = {number // 5: [] for number in numbers}
        for number in numbers:
            tasks[number // 5] += range(number)
        for task, expected in tasks.items():
            table = pq.read_table(tmp_path / f"{name}-{task:05d}.parquet")
            assert table.column("number").to_pylist() == expected
            assert set(table.column("text").to_pylist()) == {name[-1]}
    assert len(list(tmp_path.iterdir())) == 3 * 4 + 1


def test_where_there_are_no_rows_a_file_can_have_the_columns(spark, tmp_path):
    def make(batches):
        return (batch.select([]) for batch in batches if batch.num_rows > 100)

    for work in (spark.range(0), spark.range(0, 8, 1, 4)):
        assert write_parts(work, make, SCHEMA, str(tmp_path), "part", 1 << 20) == 0
        assert list(tmp_path.iterdir()) == []
    write_none(SCHEMA, str(tmp_path))
    (file,) = tmp_path.iterdir()
    assert pq.read_table(file).equals(SCHEMA.empty_table())


def test_a_task_without_work_writes_no_file(tmp_path):
    assert write(tmp_path / "none", iter([])) == 0
    assert not (tmp_path / "none").exists()


def test_row_groups_have_the_bytes_that_were_asked_for(tmp_path):
    batches = [batch_of(range(first, first + 10)) for first in range(0, 1000, 10)]
    size = batches[50].nbytes
    assert write(tmp_path, iter(batches), row_group_bytes=5 * size) == 1000
    file = pq.ParquetFile(tmp_path / "part-00000.parquet")
    assert file.read().column("number").to_pylist() == list(range(1000))
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert set(groups[:-1]) <= {50, 60}
