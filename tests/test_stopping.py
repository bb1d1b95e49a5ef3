"""Requests to stop, wherever they arrive under the real `deepspeed` launcher: all processes save one step and go."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import LIMIT_SECONDS, TINY, finish, free_port, losses, metrics, started, train, wait_for_file, words
from small_shards import make_shards

from training.samples import read_samples
from training.stopping import STOPPED, _is_launcher, _parent

OPTIONS = TINY | {"max_steps": 4000, "checkpoint_every": 4000, "evaluate_every": 4000}
RUNNER, LAUNCHER, WORKER = 0, 1, 2
EVALUATED = TINY | {"max_steps": 8, "checkpoint_every": 100, "evaluate_every": 4, "watch.sample_tokens": 4}
SLOW = Path(__file__).parent / "slow_evaluation_train.py"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def children(process):
    """Processes that `process` started and that live, in the order of their ids."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return sorted(number for number in numbers if _parent(number) == process)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def launched(shards, run):
    """A run under the launcher: its processes, the runner first, and the reader of what it prints, who may go."""
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", free_port()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    job = subprocess.Popen(
        [*command, *words(shards, run, OPTIONS)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not ((run / "metrics.jsonl").is_file() and len(metrics(run)) >= 5):
            assert time.monotonic() < deadline
            assert job.poll() is None, job.stdout.read()
            time.sleep(0.05)
        (launcher,) = children(job.pid)
        yield job, [job.pid, launcher, *children(launcher)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.stdout.close()
        job.wait()


def stopped(shards, run, place, number):
    """Exit code of the runner after the signal; all others have gone, and the last step recorded is saved."""
    with launched(shards, run) as (job, processes):
        assert [_is_launcher(process) for process in processes] == [True, True, False, False]
        os.kill(processes[place], number)
        if place == RUNNER:
            job.stdout.close()  # as `deepspeed … | tee log` when the pipe's other end goes
            code = job.wait(30)
        else:
            code = (job.communicate(timeout=60), job.returncode)[1]
        deadline = time.monotonic() + 30
        while any(alive(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [process for process in processes if alive(process)]
    steps = [row["step"] for row in metrics(run)]
    assert steps == list(range(1, len(steps) + 1))
    saved = [path.parent.name for path in (run / "checkpoints").glob("step_*/complete.json")]
    assert saved == [f"step_{steps[-1]:08d}"]
    return code


def test_end_of_the_runner_makes_all_processes_save_and_go(shards, tmp_path):
    assert stopped(shards, tmp_path / "run", RUNNER, signal.SIGTERM) == -signal.SIGTERM
    reached, before = len(metrics(tmp_path / "run")), losses(tmp_path / "run")
    train(shards, tmp_path / "run", OPTIONS | {"max_steps": reached + 2})
    assert losses(tmp_path / "run")[:reached] == before
    assert len(metrics(tmp_path / "run")) == reached + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "code"),
    [
        (RUNNER, signal.SIGUSR1, -signal.SIGUSR1),
        (RUNNER, signal.SIGKILL, -signal.SIGKILL),
        (LAUNCHER, signal.SIGTERM, 1),
        (LAUNCHER, signal.SIGUSR1, 0),
        (WORKER, signal.SIGTERM, 75),
        (WORKER, signal.SIGUSR1, 75),
        (WORKER + 1, signal.SIGUSR1, 75),
    ],
)
def test_signal_makes_all_processes_save_and_go(shards, tmp_path, place, number, code):
    assert stopped(shards, tmp_path / "run", place, number) == code


def test_signal_while_steps_are_timed_is_heard(shards, tmp_path):
    """It may last longer than Slurm waits."""
    options = TINY | {"train_minutes": 600, "evaluation_tokens": 0}
    with started(shards, tmp_path / "run", options, 2) as jobs:
        for line in jobs[0].stdout:
            if "timing steps for 60 s" in line:
                break
        time.sleep(6)
        os.kill(jobs[1].pid, signal.SIGUSR1)
        codes, printed = finish(jobs)
    assert codes == [75, 75]
    assert "stopped before the first step, nothing is written; the same command goes on" in printed[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_keyboard_interrupt_of_the_whole_group_saves(shards, tmp_path):
    with launched(shards, tmp_path / "run") as (job, processes):
        os.killpg(job.pid, signal.SIGINT)
        job.communicate(timeout=60)
        deadline = time.monotonic() + 30
        while any(alive(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [process for process in processes if alive(process)]
    assert list((tmp_path / "run" / "checkpoints").glob("step_*/complete.json"))


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    train(shards, run, EVALUATED)
    return run


@pytest.mark.parametrize("step", [4, 8])
def test_an_evaluation_is_left_off_and_made_when_the_run_goes_on(step, unbroken, shards, tmp_path, monkeypatch):
    """Launchers wait 30 s after a request to stop; an evaluation may take longer."""
    monkeypatch.setenv("SLOW", str(step))
    monkeypatch.setenv("EVALUATING", str(tmp_path / "evaluating"))
    run = tmp_path / "run"
    with started(shards, run, EVALUATED, 2, script=SLOW) as jobs:
        wait_for_file(tmp_path / "evaluating")
        jobs[1].send_signal(signal.SIGTERM)
        codes, _ = finish(jobs)
    assert codes == [STOPPED] * 2
    rows = metrics(run)
    assert [row["step"] for row in rows if "validation_loss" in row] == list(range(4, step, 4))
    assert rows[-1]["step"] == step
    assert not (run / "summary.json").exists()
    train(shards, run, EVALUATED)
    assert [figures(row) for row in metrics(run)] == [figures(row) for row in metrics(unbroken)]
    assert read_samples(run / "samples.jsonl") == read_samples(unbroken / "samples.jsonl")
    assert json.loads((run / "summary.json").read_text())["steps"] == 8
    marker = json.loads((run / "checkpoints" / "step_00000008" / "complete.json").read_text())
    assert marker["validation_loss"] == metrics(run)[-1]["validation_loss"]
    longer = EVALUATED | {"max_steps": 12}
    train(shards, run, longer)
    assert [row["step"] for row in read_samples(run / "samples.jsonl")] == [4] * 3 + [8] * 3 + [12] * 3


def figures(row):
    """What a row says of the model, whenever it was computed."""
    return {name: row[name] for name in ("step", "loss", "validation_loss", "bits_per_byte") if name in row}
