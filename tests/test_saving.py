"""Checkpoints of real runs: killed while one is written, written while training goes on, and which ones stay."""

import re
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from small_runs import ROOT, TINY, losses, metrics, started, train, wait_for_kill, words
from small_shards import make_shards

OPTIONS = TINY | {"max_steps": 16, "checkpoint_every": 6, "evaluate_every": 16, "keep_checkpoints": 3}
# train.py with something done to how checkpoints are written.
CHANGED = """
import os, signal, sys, time
from pathlib import Path

sys.path.insert(0, {root!r})
from tokenizer.command_line import run
from training import checkpoint, saving, train

write, complete = saving.Saving._write, checkpoint.write_durably
{change}
run(train.main)
"""
KILLED_WRITING = """
def killed(self, state, path):
    if "step_00000012" in str(path) and os.environ["RANK"] == "{rank}":
        path.write_bytes(bytes(1000))  # some of it
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, state, path)

saving.Saving._write = killed
"""
KILLED_BEFORE_THE_MARKER = """
def killed(path, record):
    if path.parent.name == "step_00000012.partial":
        path.write_text("{{")
        os.kill(os.getpid(), signal.SIGKILL)
    complete(path, record)

checkpoint.write_durably = killed
"""
TOLD = """
from tokenizer import progress

progress.EVERY_SECONDS = 0.0
"""
SLOW = """
def slow(self, state, path):
    time.sleep(1.0)
    write(self, state, path)
    rows = (Path(path).parents[2] / "metrics.jsonl").read_text().count("\\n")
    print("written", Path(path).parent.name, "at", rows, flush=True)

saving.Saving._write = slow
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    train(shards, run, OPTIONS)
    return run


def changed(folder, change):
    script = folder / "changed.py"
    script.write_text(CHANGED.format(root=str(ROOT), change=change))
    return script


@pytest.mark.parametrize("kill", [KILLED_WRITING.format(rank=1), KILLED_BEFORE_THE_MARKER.format()])
def test_killed_while_a_checkpoint_is_written_a_run_goes_on_from_the_one_before(shards, unbroken, tmp_path, kill):
    run = tmp_path / "run"
    with started(shards, run, OPTIONS, 2, changed(tmp_path, kill)) as jobs:
        wait_for_kill(jobs)
    left = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    assert left == ["step_00000006", "step_00000012.partial"]
    printed = train(shards, run, OPTIONS, script=changed(tmp_path, TOLD))
    for line in (
        "going on after step 6",
        "checking step_00000006: 0.0 GB in",
        "restoring weights and optimizer: 0.0 GB",
    ):
        assert line in printed[0]
    assert "checking" not in printed[1]
    assert "restoring" not in printed[1]
    assert losses(run) == losses(unbroken)
    old, new = (load_file(one / "export" / "model.safetensors") for one in (unbroken, run))
    assert all(torch.equal(old[name], new[name]) for name in old)
    names = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    assert names == ["step_00000006", "step_00000012", "step_00000016"]


def test_training_goes_on_while_a_checkpoint_is_written_unless_it_is_not_to(shards, tmp_path):
    for background in ("true", "false"):
        options = OPTIONS | {"save_in_background": background}
        (printed,) = train(shards, tmp_path / background, options, 1, changed(tmp_path, SLOW))
        rows = [int(line.split()[-1]) for line in printed.splitlines() if line.startswith("written step_00000006")]
        assert rows
        assert all(row > 6 if background == "true" else row == 6 for row in rows)


def test_the_best_checkpoint_stays_beside_the_last(shards, tmp_path):
    """Of a run whose learning rate is far too high from the fourth step on."""
    options = TINY | {"max_steps": 8, "checkpoint_every": 2, "evaluate_every": 2, "keep_checkpoints": 1}
    options |= {"optimizer.learning_rate": 0.9, "schedule.warmup_steps": 4, "schedule.kind": "constant"}
    train(shards, tmp_path / "run", options, 1)
    held_out = {row["step"]: row["validation_loss"] for row in metrics(tmp_path / "run") if "validation_loss" in row}
    best = min(held_out, key=held_out.get)
    assert best < 8
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    assert kept == [f"step_{best:08d}", "step_00000008"]


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(shards, tmp_path):
    """On a file system of its own, which fills up with checkpoints and is made larger then."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = f"mount -t tmpfs -o size=4m none {place}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounted], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    options = TINY | {"max_steps": 12, "checkpoint_every": 1, "keep_every": 1, "watch.sample_tokens": 0}
    command = shlex.join([sys.executable, *words(shards, place / "run", options)])
    script = (
        f"{mounted} && ! {command} && mount -o remount,size=64m {place} && {command} && cp -r {place}/run {tmp_path}"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    faults = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(faults) == 1
    assert re.search(r"cannot be written: .*; the disk is full; step_\d+ stands; the same command goes on", faults[0])
    assert "Traceback" not in done.stderr
    train(shards, tmp_path / "unbroken", options, world_size=1)
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")
