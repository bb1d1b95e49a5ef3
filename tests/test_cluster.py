"""A real standalone cluster: a master and two workers as processes on loopback, the code as an archive."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest

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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a master with WORKERS workers of one core each; all of them end with the tests."""
    folder = tmp_path_factory.mktemp("cluster")
    address = f"spark://127.0.0.1:{_free_port()}"
    port = address.rsplit(":", 1)[1]
    # Away from the checkout, so that only the archive can bring the code to the workers.
    environment = {
        **os.environ,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_WORKER_DIR": str(folder),
    }
    common = {"env": environment, "cwd": folder, "stderr": subprocess.STDOUT, "start_new_session": True}
    master = ["org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", port, "--webui-port", "0"]
    worker = ["org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--cores", "1", "--memory", "1g"]
    worker += ["--webui-port", "0", address]
    processes = []
    try:
        for number, arguments in enumerate([master] + [worker] * WORKERS):
            with (folder / f"{number}.log").open("w") as log:
                processes.append(subprocess.Popen([str(SPARK_CLASS), *arguments], stdout=log, **common))
        deadline = time.monotonic() + 60
        while (folder / "0.log").read_text().count("Registering worker") < WORKERS:
            assert time.monotonic() < deadline, (folder / "0.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def _dedup(corpus: Path, output: Path, *options: str) -> set[tuple]:
    """Run the job as a user would, and return what it removed for what."""
    command = [Path(sys.executable).with_name("spark-submit"), *options, "spark_jobs/dedup.py"]
    command += ["--documents", str(corpus), "--output", str(output)]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(output).to_pylist()
    return {(row["file_id"], row["kept_file_id"], round(row["similarity"], 9), row["kind"]) for row in rows}


def test_a_cluster_finds_what_local_mode_finds(cluster, archive, corpus, tmp_path):
    local = _dedup(corpus, tmp_path / "local", "--properties-file", "infra/spark/local.conf")
    remote = _dedup(
        corpus,
        tmp_path / "remote",
        *("--master", cluster, "--properties-file", "infra/spark/standalone.conf", "--py-files", str(archive)),
        # Two workers of one core and one gigabyte.
        *("--conf", "spark.executor.cores=1", "--conf", "spark.executor.memory=512m"),
        *("--conf", "spark.executor.memoryOverhead=384m", "--conf", "spark.sql.shuffle.partitions=4"),
    )
    assert len(local) > 60
    assert remote == local
