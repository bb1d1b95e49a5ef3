"""What every job needs of Spark: a session, and progress that a person can read."""

import logging
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import ParamSpec, TypeVar

from pyspark import SparkConf, SparkContext, StatusTracker
from pyspark.errors import PythonException
from pyspark.sql import SparkSession

log = logging.getLogger("corella")

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Correctness, not tuning: a string column of a batch may pass 2 GiB, and times mean the same everywhere.
# Whatever an operator would tune stands in infra/spark/*.conf.
REQUIRED = {
    "spark.sql.execution.arrow.useLargeVarTypes": "true",
    "spark.sql.session.timeZone": "UTC",
}


@contextmanager
def start_session(name: str) -> Iterator[SparkSession]:
    """The session of one job, stopped at its end unless it was there before. Settings come from spark-submit."""
    ours = SparkSession.getActiveSession() is None
    context = SparkContext.getOrCreate(SparkConf().setAppName(f"corella-{name}"))
    if ours and str(context.master).startswith("local"):
        threading.Thread(target=_start_worker, args=(context,), daemon=True).start()
    spark = SparkSession.builder.getOrCreate()
    for key, value in REQUIRED.items():
        spark.conf.set(key, value)
    try:
        yield spark
    except PythonException as failure:
        if fault := re.search(r"^ValueError: (.+)$", str(failure), re.MULTILINE):  # one of a user's data, in a worker
            raise ValueError(fault.group(1)) from None
        raise
    finally:
        if ours:
            spark.stop()


def _start_worker(context: SparkContext) -> None:
    """Have Spark start a Python worker, and the daemon that forks them, while the driver makes its first plan."""
    with suppress(Exception):  # what fails here fails again where it is needed
        context.parallelize([None], 1).count()


class Aside:
    """What nothing waits for, one after the other in a thread of its own, where the other steps leave cores idle.

    What is still under way when its block ends is cancelled, so that it writes nothing after that.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._context, self._tag = spark.sparkContext, f"aside-{uuid.uuid4().hex}"
        self._thread = ThreadPoolExecutor(1, initializer=lambda: self._context.addJobTag(self._tag))

    def __enter__(self) -> "Aside":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._context.cancelJobsWithTag(self._tag)
        self._thread.shutdown()

    def begin(self, work: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> "Future[_R]":
        """Let `work` be done; its result, or what it raises, is there when it is asked for."""
        return self._thread.submit(work, *arguments, **named)


@contextmanager
def step(spark: SparkSession, title: str, every_seconds: float = 5.0) -> Iterator[None]:
    """Say what runs, how far it is and how long still, until the block ends; then how long it took.

    On a terminal one line is rewritten, elsewhere a line is printed every `every_seconds`.
    """
    stop = threading.Event()
    reporter = threading.Thread(target=_report, args=(spark, title, every_seconds, stop), daemon=True)
    begin = time.monotonic()
    log.info("%s ...", title)
    reporter.start()
    try:
        yield
    finally:
        stop.set()
        reporter.join()
    log.info("%s: done in %.1f s", title, time.monotonic() - begin)


def _report(spark: SparkSession, title: str, every_seconds: float, stop: threading.Event) -> None:
    terminal = sys.stderr.isatty()
    tracker = spark.sparkContext.statusTracker()
    begins: dict[int, float] = {}
    while not stop.wait(1.0 if terminal else every_seconds):
        line = _progress_line(tracker, title, begins)
        if line:
            print(
                f"\r\x1b[K{line}" if terminal else line,
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _progress_line(tracker: StatusTracker, title: str, begins: dict[int, float]) -> str:
    """One line over the active stages; the time left assumes that tasks go on as they went."""
    stages = [info for number in tracker.getActiveStageIds() if (info := tracker.getStageInfo(number))]
    if not stages:
        return ""
    now = time.monotonic()
    done, total = sum(stage.numCompletedTasks for stage in stages), sum(stage.numTasks for stage in stages)
    elapsed = now - min(begins.setdefault(stage.stageId, now) for stage in stages)
    left = f", about {elapsed * (total - done) / done:.0f} s left in this stage" if done and elapsed else ""
    return f"         {title}: {done} of {total} tasks, {elapsed:.0f} s{left}"


def shuffle_tasks(spark: SparkSession) -> int:
    """Tasks of a shuffle, as the settings say."""
    return int(spark.conf.get("spark.sql.shuffle.partitions") or 200)


def shuffled_bytes(spark: SparkSession) -> int:
    """Bytes that the session's tasks have written for shuffles so far, by Spark's own count."""
    executors = spark.sparkContext._jsc.sc().statusStore().executorList(False)  # no Python API tells it
    return sum(executors.apply(number).totalShuffleWrite() for number in range(executors.size()))
