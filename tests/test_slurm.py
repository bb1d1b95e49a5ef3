"""infra/slurm/train.sbatch by its logic: with an srun that starts the tasks here, and a scontrol that writes down."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from small_runs import LIMIT_SECONDS, ROOT, SHORT, metrics, wait_for_step, words
from small_shards import make_shards

from training.stopping import STOPPED

BATCH = ROOT / "infra" / "slurm" / "train.sbatch"
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & tasks="$tasks $!"; done
trap 'kill -USR1 $tasks' USR1
highest=0
for task in $tasks; do
    wait $task; code=$?
    while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
    [ $code -gt $highest ] && highest=$code
done
exit $highest
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && { echo 127.0.0.1; exit; }
echo "$@" >> "$CALLS"
"""
TASK = """#!/bin/bash
env | grep -E '^(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_SIZE|MASTER_ADDR|MASTER_PORT)=' | sort > "$CALLS.$RANK"
printf '%s\\n' "$@" >> "$CALLS.$RANK"
trap 'exit 75' USR1
[ -n "$CODE" ] && exit $CODE
while true; do sleep 0.05; done
"""


@pytest.fixture
def batch(tmp_path):
    """Start the script as Slurm would, as a job of two tasks."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("task", TASK)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "21234", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2(x1)", "SLURM_JOB_NODELIST": "n"}
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "OMP_NUM_THREADS": "1"}

    def started(options, **environment):
        return subprocess.Popen(
            [str(BATCH), *options],
            cwd=ROOT,
            env=os.environ | job | own | environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    return started


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text() if path.exists() else ""


def test_script_is_sound():
    subprocess.run(["bash", "-n", str(BATCH)], check=True)


@pytest.mark.parametrize(
    ("code", "restarts", "worth", "requeued"),
    [
        *(("75", "0", "1800", True), ("138", "0", "1800", True), ("75", "1000", "1800", False)),
        *(("0", "0", "0", False), ("1", "0", "0", False), ("134", "0", "1800", False), ("134", "0", "0", True)),
    ],
)
def test_job_queues_again_where_its_run_goes_on(batch, tmp_path, code, restarts, worth, requeued):
    """After 75, and where a process was killed that had trained for long."""
    job = batch(["--output", "a run"], CODE=code, PYTHON="task", SLURM_RESTART_COUNT=restarts, WORTH_SECONDS=worth)
    assert job.wait(20) == int(code)
    assert calls(tmp_path) == ("requeue 21234\n" if requeued else "")
    shared = ["LOCAL_SIZE=2", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=21234"]
    for rank in (0, 1):
        expected = sorted([f"LOCAL_RANK={rank}", f"RANK={rank}", "WORLD_SIZE=2", *shared])
        assert (tmp_path / f"calls.{rank}").read_text().splitlines() == [
            *expected,
            "training/train.py",
            "--output",
            "a run",
        ]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signal_to_the_batch_shell_reaches_the_tasks(batch, tmp_path, number):
    job = batch([], CODE="", PYTHON="task")
    deadline = time.monotonic() + 20
    while not all((tmp_path / f"calls.{rank}").exists() for rank in (0, 1)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(number)
    assert job.wait(20) == STOPPED
    assert calls(tmp_path) == "requeue 21234\n"


@pytest.mark.slow
def test_real_run_is_stopped_queued_again_and_finished(batch, tmp_path):
    run, shards = tmp_path / "run", make_shards(tmp_path / "shards")
    options = words(shards, run, SHORT | {"max_steps": 60, "checkpoint_every": 50})[1:]
    job = batch(options, PYTHON=sys.executable)
    wait_for_step(run, 4, [job])
    job.send_signal(signal.SIGUSR1)
    assert job.wait(LIMIT_SECONDS) == STOPPED
    reached = len(metrics(run))
    assert reached < 60
    assert calls(tmp_path) == "requeue 21234\n"
    job = batch(options, PYTHON=sys.executable, SLURM_RESTART_COUNT="1", MASTER_PORT="0")
    assert job.wait(LIMIT_SECONDS) == 0
    assert [row["step"] for row in metrics(run)] == list(range(1, 61))
    assert json.loads((run / "summary.json").read_text())["steps"] == 60
