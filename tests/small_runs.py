"""Training runs of tiny models as real processes: starting them, waiting for them, reading what they wrote."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "training" / "train.py"
TINY = {
    "model.hidden_size": 32,
    "model.layers": 2,
    "model.heads": 2,
    "batch.sequence_length": 32,
    "batch.sequences": 8,
    "batch.sequences_per_device": 2,
    "optimizer.learning_rate": 0.01,
    "schedule.warmup_steps": 4,
    "evaluation_tokens": 2000,
}
LONG = TINY | {"max_steps": 80, "checkpoint_every": 20, "evaluate_every": 40, "model.dropout": 0.05}
SHORT = TINY | {"max_steps": 8, "checkpoint_every": 100, "evaluate_every": 100}
LIMIT_SECONDS = 240


PORTS = itertools.cycle(random.SystemRandom().sample(range(10_000, 32_000), 1000))


def free_port():
    """A port that no other program is given meanwhile: Linux gives those from 32,768 on to whoever asks for any."""
    for port in PORTS:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)


def words(shards, output, options, script=TRAIN):
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    folders = [str(folder) for folder in (shards if isinstance(shards, list) else [shards])]
    return [str(script), "--shards", *folders, "--output", str(output), *flags]


@contextlib.contextmanager
def started(shards, output, options, world_size, script=TRAIN, limits=None, machines=1):
    """The processes of one job, each a group of its own; what is left of them is killed at the end.

    `shards` is one folder, a list of several, or a function of the rank that gives either. `limits` gives by rank the
    bytes that a file of that process may have. On several `machines` processes are numbered from 0 on each.
    """
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    jobs = []
    for rank in range(world_size):
        local = world_size // machines
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank % local), "LOCAL_SIZE": str(local), "OMP_NUM_THREADS": "1"}
        folders = shards(rank) if callable(shards) else shards
        jobs.append(
            subprocess.Popen(
                [*limited(limits, rank), sys.executable, *words(folders, output, options, script)],
                env=os.environ | shared | places,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    try:
        yield jobs
    finally:
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            job.stdout.close()


def limited(limits, rank):
    return ["prlimit", f"--fsize={limits[rank]}"] if limits and rank in limits else []


def finish(jobs):
    """Exit codes and outputs of a job that ends by itself."""
    outputs = [job.communicate(timeout=LIMIT_SECONDS)[0] for job in jobs]
    return [job.returncode for job in jobs], outputs


def train(shards, output, options, world_size=2, script=TRAIN, machines=1):
    with started(shards, output, options, world_size, script, machines=machines) as jobs:
        codes, outputs = finish(jobs)
    assert codes == [0] * world_size, outputs
    return outputs


def wait_for_kill(jobs):
    """Return when one process of a job has killed itself; the others may wait for it for ever."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not any(job.poll() == -signal.SIGKILL for job in jobs):
        ended = [job.returncode for job in jobs if job.returncode is not None]
        assert len(ended) < len(jobs), (ended, [job.stdout.read() for job in jobs])
        assert time.monotonic() < deadline, f"no process killed itself within {LIMIT_SECONDS} s; ended: {ended}"
        time.sleep(0.05)


def wait_for_file(path):
    """Return when a job has made a file."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name} within {LIMIT_SECONDS} s"
        time.sleep(0.05)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [row["loss"] for row in metrics(run)]


def interrupted(run, copy, step):
    """A copy of a run as it was when its process died between the checkpoint of `step` and the next."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "export")
    (copy / "summary.json").unlink()
    for path in (copy / "checkpoints").glob("step_*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    return copy


def wait_for_step(run, step, jobs):
    """Return when a run has recorded `step`, while its processes live."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        assert all(job.poll() is None for job in jobs), [job.stdout.read() for job in jobs]
        path = run / "metrics.jsonl"
        if path.is_file() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} did not come within {LIMIT_SECONDS} s")
