"""A command run as a user runs it, watched from outside: wall time, and the memory of its tree of processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# To look at the memory of a JVM costs 30 ms of a core: seldom where time is measured, often where memory is.
SELDOM_SECONDS, OFTEN_SECONDS = 4.0, 0.2


class Measured(NamedTuple):
    """Peaks are of resident memory, summed over processes, of which pages that several share have each its part: of
    all together, of Java with Spark's Python workers (in local mode the executor), of Java and of the workers."""

    seconds: float
    peak_bytes: int
    executor_peak_bytes: int
    java_peak_bytes: int
    workers_peak_bytes: int


def measure(command: list[str], log: Path, every_seconds: float = SELDOM_SECONDS, **options: object) -> Measured:
    """Run a command to its end, its output in `log`, and look at its memory every so often.

    Raises:
        RuntimeError: the command failed; the end of its output is in the message.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begin, peak = time.monotonic(), (0, 0, 0, 0)
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, **options) as process:
        try:
            while _runs(process, every_seconds):
                java, workers, other = _resident_bytes(process.pid)
                peak = tuple(map(max, peak, (java + workers + other, java + workers, java, workers)))
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return Measured(time.monotonic() - begin, *peak)


def _runs(process: subprocess.Popen, seconds: float) -> bool:
    """Whether it still runs after so many seconds; at once if it has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def printed_figure(script: str, name: str, folder: Path) -> float:
    """The number that a script prints when it measures `name` on a folder, in a process of its own."""
    what = f"{Path(script).stem}: {name}"
    print(f"{what} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, script, name, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout)


def _resident_bytes(root: int) -> tuple[int, int, int]:
    """Of the tree under a process: resident bytes of Java, of Spark's Python workers, and of all else."""
    java = workers = other = 0
    for command, bytes_ in _tree(root):
        if command.partition("\0")[0].endswith("java"):
            java += bytes_
        elif "pyspark.worker" in command:
            workers += bytes_
        else:
            other += bytes_
    return java, workers, other


def _tree(root: int) -> Iterator[tuple[str, int]]:
    """Command line and resident bytes of a process and all below it. One that ends meanwhile is left out."""
    rows = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", entry, "cmdline").read_text()
            rest = Path("/proc", entry, "stat").read_text().rpartition(")")[2]
        except OSError:
            continue
        rows[int(entry)] = (int(rest.split()[1]), command)
    for process in rows:
        above = process
        while above in rows and above != root:
            above = rows[above][0]
        if above == root:
            yield rows[process][1], _resident(process)


def _resident(process: int) -> int:
    try:
        lines = Path("/proc", str(process), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
