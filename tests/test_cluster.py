"""A real standalone cluster: a master and two workers as processes on loopback, the code as an archive."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from small_runs import free_port

ROOT = Path(__file__).parent.parent
SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
WORKERS = 2


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The code as `make package` builds it: a wheel under the name of a zip."""
    folder = tmp_path_factory.mktemp("dist")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel.rename(folder / "corella.zip")


class Cluster:
    """A master and its workers, of one core each.

    Attributes:
        address: of the master.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._processes, self._workers = folder, [], []
        self.address = f"spark://127.0.0.1:{free_port()}"
        # Away from the checkout, so that only the archive can bring the code to the workers.
        environment = {
            **os.environ,
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_WORKER_DIR": str(folder),
        }
        self._common = {"env": environment, "cwd": folder, "stderr": subprocess.STDOUT, "start_new_session": True}
        port = self.address.rsplit(":", 1)[1]
        self._start("master.Master", "--host", "127.0.0.1", "--port", port, "--webui-port", "0")

    def _start(self, name: str, *arguments: str) -> subprocess.Popen:
        command = [str(SPARK_CLASS), f"org.apache.spark.deploy.{name}", *arguments]
        with self.log(len(self._processes)).open("w") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, **self._common))
        return self._processes[-1]

    def log(self, number: int) -> Path:
        """What the processes tell; the first is the master."""
        return self._folder / f"{number}.log"

    def add_workers(self, count: int) -> None:
        """Start workers and wait until the master knows them."""
        known = self.log(0).read_text().count("Registering worker")
        for _ in range(count):
            options = ["--host", "127.0.0.1", "--cores", "1", "--memory", "1g", "--webui-port", "0", self.address]
            self._workers.append(self._start("worker.Worker", *options))
        _wait_until(lambda: self.log(0).read_text().count("Registering worker") >= known + count, 60)

    def kill_worker(self) -> None:
        """End a worker and its executors at once, as a machine ends that loses its power."""
        os.killpg(self._workers.pop().pid, signal.SIGKILL)

    def stop(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of WORKERS workers; all of it ends with the tests."""
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        _wait_until(lambda: "Starting Spark master" in started.log(0).read_text(), 60)
        started.add_workers(WORKERS)
        yield started
    finally:
        started.stop()


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Real files of the standard library, with copies and edited copies, in several Parquet files."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [path.read_text(errors="ignore") for path in sorted(Path(os.__file__).parent.glob("*.py"))[:120]]
    edited = [text.replace("return", "yield", 3) for text in texts[:40]]
    for number, share in enumerate((texts, edited, texts[20:60])):
        names = [f"{place}.py" for place in range(len(share))]
        table = pa.table({"content": share, "repo_name": [f"repo-{number}"] * len(share), "path": names})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=25)
    return folder


def _command(corpus: Path, output: Path, *options: str) -> dict:
    """The job as a user would start it: arguments for a process."""
    command = [Path(sys.executable).with_name("spark-submit"), *options, "spark_jobs/dedup.py"]
    command += ["--documents", str(corpus), "--output", str(output)]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    return {"args": command, "cwd": ROOT, "env": environment}


def _on(cluster: Cluster, archive: Path) -> tuple[str, ...]:
    return (
        *("--master", cluster.address, "--properties-file", "infra/spark/standalone.conf", "--py-files", str(archive)),
        # Two workers of one core and one gigabyte.
        *("--conf", "spark.executor.cores=1", "--conf", "spark.executor.memory=512m"),
        *("--conf", "spark.executor.memoryOverhead=384m", "--conf", "spark.sql.shuffle.partitions=4"),
    )


def _removals(output: Path) -> set[tuple]:
    rows = pq.read_table(output).to_pylist()
    assert len({row["file_id"] for row in rows}) == len(rows)
    return {(row["file_id"], row["kept_file_id"], row["similarity"], row["kind"], row["proof"]) for row in rows}


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """What local mode removes for what."""
    output = tmp_path_factory.mktemp("local") / "out"
    command = _command(corpus, output, "--properties-file", "infra/spark/local.conf")
    done = subprocess.run(**command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    removals = _removals(output)
    assert len(removals) > 60
    return removals


def test_a_cluster_finds_what_local_mode_finds(cluster, archive, corpus, undisturbed, tmp_path):
    command = _command(corpus, tmp_path / "out", *_on(cluster, archive))
    done = subprocess.run(**command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _removals(tmp_path / "out") == undisturbed


@pytest.mark.parametrize(
    "begun", ["dedup: candidate pairs", pytest.param("dedup: comparing the sketches", marks=pytest.mark.slow)]
)
def test_a_worker_that_is_lost_costs_its_tasks_and_not_the_job(cluster, archive, corpus, undisturbed, tmp_path, begun):
    log = tmp_path / "log.txt"
    with log.open("w") as told:
        job = subprocess.Popen(**_command(corpus, tmp_path / "out", *_on(cluster, archive)), stdout=told, stderr=told)
    try:
        _wait_until(lambda: begun in log.read_text() or job.poll() is not None, 200)
        assert job.poll() is None, log.read_text()
        cluster.kill_worker()
        assert job.wait(timeout=300) == 0, log.read_text()
    finally:
        job.kill()
        job.wait()
        cluster.add_workers(1)
    assert "Lost executor" in log.read_text()
    assert _removals(tmp_path / "out") == undisturbed
