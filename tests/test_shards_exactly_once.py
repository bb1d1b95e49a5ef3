"""Whatever is killed, damaged or done twice, the shards are in the end those of an undisturbed run, byte by byte."""

import contextlib
import dataclasses
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from small_corpus import code, document, write_documents, write_ledger

from spark_jobs import write_shards
from spark_jobs.sharding import encoding, work, writing
from spark_jobs.sharding.layout import Layout, Splits
from tokenizer.encode import Encoder
from tokenizer.shards import INDEX_NAME, ShardIndex
from tokenizer.train import trained

ROOT = Path(__file__).parents[1]
SETTINGS = {"shard_tokens": 1 << 13, "validation_share": 0.1, "test_share": 0.05}
LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Some 500 documents, of which four fifths are kept, and a tokenizer: the arguments of the job."""
    folder, draw = tmp_path_factory.mktemp("inputs"), random.Random(11)
    rows = [
        document(code(draw, draw.randrange(2, 60)), repo=f"repo{draw.randrange(40)}", path=f"{number}.py")
        for number in range(500)
    ]
    documents = write_documents(folder / "documents", rows, parts=7, rows_a_group=5)
    kept = {row["file_id"] for number, row in enumerate(rows) if number % 5}
    (folder / "tokenizer").mkdir()
    trained([row["content"] for row in rows[:60]], 400).save(str(folder / "tokenizer" / "tokenizer.json"))
    ledger = write_ledger(folder / "ledger", documents, kept)
    return {"documents": documents, "ledger": ledger, "tokenizer": str(folder / "tokenizer")}


@pytest.fixture(scope="module")
def undisturbed(spark, inputs, tmp_path_factory):
    """Shards of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("shards") / "out"
    write_shards.main(**inputs, output=str(folder), **SETTINGS)
    assert len(ShardIndex.load(folder).shards) > 15
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def started(inputs, output, *options):
    """The job as a process with children of its own, all of which are killed at the end."""
    settings = {**inputs, "output": str(output), **SETTINGS}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    submit = [str(Path(sys.executable).parent / "spark-submit"), *(options or ("--master", "local[2]"))]
    with (output.parent / f"{output.name}.log").open("a") as log:
        job = subprocess.Popen(
            [*submit, str(ROOT / "spark_jobs" / "write_shards.py"), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield job
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def wait_for(job, condition):
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert job.poll() is None, "the job has ended"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(spark, inputs, undisturbed, tmp_path):
    output = tmp_path / "out"
    there = output / "_work"
    for condition in (lambda: any(there.glob("part-*")), lambda: len([*there.glob("train-*.json")]) > 2):
        with started(inputs, output) as job:
            wait_for(job, condition)
        assert not (output / INDEX_NAME).exists()
    finished = {path.stem for path in there.glob("train-*.json")}
    stamps = {name: (output / name).stat().st_mtime_ns for name in finished}
    (output / max(finished)).write_bytes(b"damaged")  # of one that is damaged meanwhile the entry is not believed
    (output / "train-00000-of-00099.arrow").write_bytes(b"of another layout")
    write_shards.main(**inputs, output=str(output), **SETTINGS)
    assert files(output) == files(undisturbed)
    untouched = finished - {max(finished)}
    assert all((output / name).stat().st_mtime_ns == stamps[name] for name in untouched)


def test_an_unfinished_run_of_other_settings_is_replaced(spark, inputs, undisturbed, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    (output / "_work").mkdir()
    (output / "_work" / "part-00000.json").write_text('{"bytes": 0, "rows": 7}')
    (output / "_unfinished").write_text("{}")
    write_shards.main(**inputs, output=str(output), **SETTINGS)
    assert files(output) == files(undisturbed)


@pytest.mark.parametrize("tasks", [1, 7, 64])
def test_the_bytes_are_the_same_from_any_number_of_tasks(spark, inputs, undisturbed, tmp_path, monkeypatch, tasks):
    monkeypatch.setattr(work, "task_count", lambda spark, documents: tasks)
    monkeypatch.setattr(work, "FEW_ROWS", 0 if tasks == 7 else 1000)  # a large ledger is left to the workers
    write_shards.main(**inputs, output=str(tmp_path / "out"), **SETTINGS)
    assert files(tmp_path / "out") == files(undisturbed)


@pytest.mark.parametrize("few_rows", [0, 1000])
def test_repair_writes_what_is_broken_and_nothing_else(
    spark, inputs, undisturbed, tmp_path, capsys, monkeypatch, few_rows
):
    monkeypatch.setattr(work, "FEW_ROWS", few_rows)
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    index = ShardIndex.load(output)
    damaged, missing, cut, unlisted = (index.shards[number].name for number in (0, 3, 7, len(index.shards) - 1))
    data = bytearray((output / damaged).read_bytes())
    data[len(data) // 2] ^= 1
    (output / damaged).write_bytes(data)
    (output / missing).unlink()
    os.truncate(output / cut, 100)
    shards = tuple(shard for shard in index.shards if shard.name != unlisted)
    dataclasses.replace(index, shards=shards).save(output)
    stamps = {path.name: path.stat().st_mtime_ns for path in output.glob("*.arrow")}
    given = {**inputs, "tokenizer": str(output / "tokenizer"), "output": str(output), "repair": True}
    write_shards.main(**given)  # the settings are in the index
    assert files(output) == files(undisturbed)
    touched = {path.name for path in output.glob("*.arrow") if stamps.get(path.name) != path.stat().st_mtime_ns}
    assert touched == {damaged, missing, cut, unlisted}
    assert "4 shard(s) written again" in capsys.readouterr().out
    write_shards.main(**given)
    assert "0 shard(s) written again" in capsys.readouterr().out


def test_repair_refuses_what_would_not_be_the_same(spark, inputs, undisturbed, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    other = write_documents(tmp_path / "other", [document("x")])
    ledger = write_ledger(tmp_path / "other_ledger", other, {})
    with pytest.raises(ValueError, match="were made from other documents"):
        write_shards.main(**{**inputs, "documents": other, "ledger": ledger}, output=str(output), repair=True)
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        write_shards.main(**inputs, output=str(tmp_path / "nothing"), repair=True)
    index = ShardIndex.load(output)
    wrong = dataclasses.replace(index.shards[0], xxh3_128="0" * 32)
    dataclasses.replace(index, shards=(wrong, *index.shards[1:])).save(output)
    before = files(output)
    with pytest.raises(Exception, match="would be other bytes than the index says"):
        write_shards.main(**inputs, output=str(output), repair=True)
    assert files(output) == before


def test_a_second_run_keeps_out(spark, inputs, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "_unfinished").touch()
    descriptor = os.open(output, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ValueError, match="is being changed by another run"):
            write_shards.main(**inputs, output=str(output), **SETTINGS)
    finally:
        os.close(descriptor)


def test_a_shard_is_written_twice_at_once_to_the_same_bytes(inputs, undisturbed, tmp_path):
    """Two attempts at the same part and shards, as speculative execution makes them: neither disturbs the other."""
    encoder = Encoder(inputs["tokenizer"])
    known = (inputs["documents"], inputs["tokenizer"], encoder.fingerprint, encoder.vocab_size)
    sources = encoding.Sources(*known, Splits({}, 0, 0, False), True)
    place = tmp_path / "_work"
    place.mkdir()
    reading = [{"part": f"part-{part}.parquet", "row_group": 0, "rows": [0, 1, 2]} for part in range(7)]
    for _ in range(2):
        batches = iter([pa.RecordBatch.from_pylist(reading)])
        entry = encoding._encoded_part(batches, sources, place, "part-00000")
        assert entry["rows"] == 21
    target = writing.Target(tmp_path, place, ("part-00000",), Layout((2, 0, 0)), sources)
    first = [writing.write_shard(number, target) for number in range(2)]
    before = files(tmp_path)
    assert [writing.write_shard(number, target) for number in range(2)] == first
    assert files(tmp_path) == before
    assert sum(shard.rows for shard in first) == 21
    assert not [name for name in before if "partial" in name]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_runs_killed_at_any_time_go_on(spark, inputs, undisturbed, tmp_path, seed):
    output, draw = tmp_path / "out", random.Random(seed)
    for _ in range(3):
        with started(inputs, output) as job:
            wait_for(job, lambda: (output / "_unfinished").exists() or (output / INDEX_NAME).exists())
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(timeout=draw.uniform(0, 9))
    write_shards.main(**inputs, output=str(output), **SETTINGS)
    assert files(output) == files(undisturbed)


@pytest.mark.slow
def test_speculation_and_a_killed_executor_leave_the_same_bytes(inputs, undisturbed, tmp_path):
    output = tmp_path / "out"
    settings = {
        "spark.speculation": "true",
        "spark.speculation.interval": "10ms",
        "spark.speculation.multiplier": "1.01",
        "spark.speculation.quantile": "0.1",
        "spark.speculation.minTaskRuntime": "0",
        "spark.task.maxFailures": "8",
        "spark.executor.memory": "512m",
    }
    options = [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
    with started(inputs, output, "--master", "local-cluster[2,2,512]", *options) as job:
        wait_for(job, lambda: len([*(output / "_work").glob("train-*.json")]) > 1)
        for process in executors_of(job.pid)[:1]:
            os.kill(process, signal.SIGKILL)
        assert job.wait(timeout=LIMIT_SECONDS) == 0, (tmp_path / "out.log").read_text()[-3000:]
    assert files(output) == files(undisturbed)


def executors_of(session):
    """Processes of a session that are executors."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (entry / "cmdline").read_bytes()
            if b"CoarseGrainedExecutorBackend" in command and os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
    return found
