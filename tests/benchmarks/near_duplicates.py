"""Corella's own job as a user runs it: spark-submit on two cores, with the settings of infra/spark/local.conf."""

import json
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import corpus
import numpy as np
import pyarrow.parquet as pq
from corpus import BENCH, ROOT
from processes import SELDOM_SECONDS, Measured, measure

CORES = 2


class Job(NamedTuple):
    """A finished run: where its tables are, what it took, and what Spark shuffled."""

    name: str
    measured: Measured
    shuffle_bytes: int

    @property
    def duplicates(self) -> Path:
        return BENCH / "out" / self.name

    @property
    def survivors(self) -> Path:
        return BENCH / "out" / f"{self.name}-survivors"


def run_job(
    documents: Path, threshold: float = 0.7, options: tuple[str, ...] = (), every_seconds: float = SELDOM_SECONDS
) -> Job:
    """Run dedup.py on a folder of Parquet files, with options of spark-submit, and look at its memory every so often;
    the result replaces that of an earlier run."""
    name = f"{documents.name}-{threshold}"
    job = Job(name, Measured(0, 0, 0, 0, 0), 0)
    events = BENCH / "out" / f"{name}-events"
    shutil.rmtree(events, ignore_errors=True)
    events.mkdir(parents=True)
    logged = ["--conf", "spark.eventLog.enabled=true", "--conf", f"spark.eventLog.dir={events.as_uri()}"]
    command = [*logged, *options, "--conf", "spark.eventLog.compress=false", "spark_jobs/dedup.py"]
    command += ["--documents", str(documents), "--threshold", str(threshold)]
    command += ["--output", str(job.duplicates), "--survivors", str(job.survivors), "--overwrite"]
    return job._replace(measured=submit(command, name, every_seconds), shuffle_bytes=_shuffle_bytes(events))


def submit(command: list[str], name: str, every_seconds: float = SELDOM_SECONDS) -> Measured:
    """Run spark-submit as the README does, on two cores."""
    binaries = Path(sys.executable).parent
    submit = [str(binaries / "spark-submit"), "--properties-file", "infra/spark/local.conf"]
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYSPARK_PYTHON": sys.executable}
    print(f"{name} ...", file=sys.stderr, flush=True)
    log = BENCH / "out" / f"{name}.log"
    command = [*submit, "--master", f"local[{CORES}]", *command]
    return measure(command, log, every_seconds, cwd=ROOT, env=environment)


def small_heap(size: str) -> tuple[str, ...]:
    """Options of spark-submit for a heap of this size, of which the JVM decides by itself how much is young."""
    lines = (ROOT / "infra/spark/local.conf").read_text().splitlines()
    (java,) = (line.split(None, 1)[1] for line in lines if line.startswith("spark.driver.extraJavaOptions"))
    java = " ".join(option for option in java.split() if not option.startswith("-Xmn"))
    return ("--driver-memory", size, "--driver-java-options", java)


_run_once = cache(run_job)


def job_on(documents: Path, threshold: float = 0.7) -> Job:
    """The same, but run once only in the life of this process, however many parts of the benchmark ask for it."""
    return _run_once(documents, threshold)


@cache
def start_up_seconds() -> float:
    """What Spark takes to start with these settings and to end, and a Python worker to pass on ten rows. The worker is
    Spark's plain one: what our jobs have loaded before is work of theirs."""
    command = ["--conf", "spark.python.daemon.module=pyspark.daemon", "tests/benchmarks/start_up.py"]
    return min(submit(command, "start-up").seconds for _ in range(2))


def working_seconds(job: Job) -> float:
    """Wall time without the start-up."""
    return job.measured.seconds - start_up_seconds()


def decisions(job: Job, documents: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of the kept files, of the removed ones, and of the kept file that each removed one names."""
    rows = corpus.read(documents).select(["repo_name", "path"]).to_pylist()
    number = {(row["repo_name"], row["path"]): at for at, row in enumerate(rows)}
    kept = pq.ParquetDataset(job.survivors).read(["repo_name", "path"]).to_pylist()
    duplicates = pq.ParquetDataset(job.duplicates).read(["repo", "path", "kept_repo", "kept_path"]).to_pylist()
    return (
        np.array([number[row["repo_name"], row["path"]] for row in kept], np.int64),
        np.array([number[row["repo"], row["path"]] for row in duplicates], np.int64),
        np.array([number[row["kept_repo"], row["kept_path"]] for row in duplicates], np.int64),
    )


def _shuffle_bytes(events: Path) -> int:
    """Bytes that all tasks wrote for a shuffle, by Spark's event log."""
    total = 0
    for file in filter(Path.is_file, events.rglob("*")):
        for line in file.open():
            if line.startswith('{"Event":"SparkListenerTaskEnd"'):
                metrics = json.loads(line).get("Task Metrics") or {}
                total += metrics.get("Shuffle Write Metrics", {}).get("Shuffle Bytes Written", 0)
    return total
