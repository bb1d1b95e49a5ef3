"""Shards that are hashed by one process for all: once each, whoever is killed; --verify, before the first step."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import SHORT, finish, started, train, wait_for_file
from small_shards import make_shards

from tokenizer import progress
from tokenizer.shards import ShardIndex
from training import checks
from training.checks import Checks
from training.processes import Processes
from training.sources import CheckedStream
from training.stopping import STOPPED

HASHING = Path(__file__).parent / "hashing_train.py"


class Alone(Processes):
    """A process that met no others."""

    def gathered(self, value):
        return [value]

    def from_first(self, value):
        return value

    def wait(self):
        pass


ALONE = Alone(0, 1, torch.device("cpu"), "fp32")
GOING_ON, TO_STOP = SimpleNamespace(came=False), SimpleNamespace(came=True)
CHILD = """
import os, sys, time
from training.checks import Checks
checks = Checks(os.open(sys.argv[1], os.O_RDWR), 2, 40)
print("begun", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2]), 40):
    with checks.needed(number, wait=True) as needed:
        if needed:
            print(number, flush=True)
            time.sleep(float(sys.argv[3]))
"""


# Holds one shard in a thread, and then wants another in its main thread.
THREADS = """
import os, sys, threading, time
from training.checks import Checks
checks = Checks(os.open(sys.argv[1], os.O_RDWR), 2, 40)
print("begun", flush=True)
sys.stdin.readline()
def hashes(number, seconds):
    with checks.needed(number, wait=True) as needed:
        if needed:
            print(number, flush=True)
            time.sleep(seconds)
def one():
    hashes({others}, 2)
thread = threading.Thread(target=one)
thread.start()
time.sleep(0.5)
hashes({mine}, 0)
thread.join()
"""


@pytest.fixture
def folder(tmp_path):
    return make_shards(tmp_path / "shards", train=60, per_shard=10)


def opened(folder):
    stream = CheckedStream(folder)
    descriptor = os.memfd_create("checks")
    os.ftruncate(descriptor, len(stream.shards))
    stream.checks = Checks(descriptor, 0, len(stream.shards))
    return stream


@pytest.fixture
def children(tmp_path):
    """Starts a process that hashes shards from one on, each for so long; all are killed at the end."""
    (tmp_path / "checks").write_bytes(bytes(42))
    found = []

    def start(first, seconds, script=CHILD):
        words = [sys.executable, "-c", script, str(tmp_path / "checks"), str(first), str(seconds)]
        found.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert found[-1].stdout.readline() == "begun\n"
        return found[-1]

    yield start
    for child in found:
        child.kill()
        child.communicate()


def test_processes_hash_each_shard_once(children, tmp_path):
    processes = [children(first, 0.01) for first in (0, 13, 26)]
    for child in processes:
        child.stdin.write("\n")
        child.stdin.flush()
    done = [child.communicate(timeout=60)[0].split() for child in processes]
    assert sorted(int(number) for numbers in done for number in numbers) == list(range(40))
    assert (tmp_path / "checks").read_bytes() == b"\0\0" + b"\1" * 40


def test_what_a_killed_process_was_hashing_another_hashes(children):
    killed, other = children(0, 600), children(0, 0)
    killed.stdin.write("\n")
    killed.stdin.flush()
    assert killed.stdout.readline() == "0\n"
    other.stdin.write("\n")
    other.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(timeout=0.5)
    killed.send_signal(signal.SIGKILL)
    assert other.communicate(timeout=60)[0].split() == [str(number) for number in range(40)]


def test_a_shard_that_is_not_sound_is_hashed_by_each(folder):
    stream = opened(folder)
    (folder / "train-2.arrow").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"train-2.arrow is missing"):
            stream.verify(2)
    assert stream.checks.found == 0


def test_threads_that_wait_for_those_of_another_process_hash_what_they_need(children):
    """Linux takes for a deadlock what would be one if a process had one thread."""
    first, second = (
        children(0, 0, script=THREADS.format(others=others, mine=mine)) for others, mine in ((0, 1), (1, 0))
    )
    for child in (first, second):
        child.stdin.write("\n")
        child.stdin.flush()
    done = [sorted(child.communicate(timeout=60)[0].split()) for child in (first, second)]
    assert done[0] + done[1] in (["0", "1", "1"], ["0", "0", "1"], ["0", "1", "0", "1"], ["0", "1"])


def test_where_there_are_no_locks_each_hashes_for_itself(folder, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    stream = opened(folder)
    assert checks.verify([stream], ALONE, GOING_ON)
    assert stream.checks.found == len(stream.shards)


def test_a_fault_without_words_is_one(folder, monkeypatch):
    def late(*_):
        raise TimeoutError

    monkeypatch.setattr(CheckedStream, "_hash", late)
    with pytest.raises(ValueError, match="TimeoutError"):
        checks.verify([opened(folder)], ALONE, GOING_ON)


def test_without_a_folder_for_temporary_files_checks_are_each_process_own(folder, monkeypatch):
    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    stream = CheckedStream(folder)
    checks.share([stream], ALONE)
    assert stream.checks is None
    assert checks.verify([stream], ALONE, GOING_ON)
    assert stream.sound == len(stream.shards)


def test_one_process_that_is_to_stop_stops_all_while_they_verify(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HASHED", str(tmp_path / "hashed"))
    monkeypatch.setenv("HASHING", "5")
    with started(folder, tmp_path / "run", SHORT | {"verify": "true"}, 2, script=HASHING) as jobs:
        wait_for_file(tmp_path / "hashed")
        jobs[1].send_signal(signal.SIGTERM)
        codes, outputs = finish(jobs)
    assert codes == [STOPPED] * 2
    assert "stopped before the first step, nothing is written" in outputs[0]
    assert len((tmp_path / "hashed").read_text().splitlines()) <= 4
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("verify", "remote"), [(False, False), (True, True)])
def test_a_run_hashes_each_shard_once(verify, remote, folder, tmp_path, monkeypatch):
    """Of two processes; by --verify all of them, else those that it reads."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("HASHED", str(tmp_path / "hashed"))
    place = folder.as_uri() if remote else folder
    options = SHORT | {"verify": str(verify).lower(), "max_steps": 2}
    train(place, tmp_path / "run", options, script=HASHING)
    names = [line.split()[1] for line in (tmp_path / "hashed").read_text().splitlines()]
    hashed = Counter(name for name in names if name.endswith(".arrow"))
    everything = {shard.name for shard in ShardIndex.load(folder).shards}
    assert set(hashed.values()) == {1}
    assert set(hashed) == everything if verify else set(hashed) <= everything
    assert not list(temporary.glob("corella-*"))


def test_verify_finds_damage_and_loss_and_tells_how_far_it_is(folder, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    assert checks.verify([opened(folder)], ALONE, GOING_ON)
    assert capsys.readouterr().err.startswith("verify: shards: 6 in ")
    monkeypatch.setattr(checks, "ROUND_SECONDS", 0.0)
    stream, hashed = opened(folder), CheckedStream._hash
    monkeypatch.setattr(CheckedStream, "_hash", lambda *which: time.sleep(0.01) or hashed(*which))
    assert checks.verify([stream], ALONE, GOING_ON)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("verify: shards: 1 of 6, about ")
    assert told[-1].startswith("verify: shards: 6 in ")
    assert not checks.verify([opened(folder)], ALONE, TO_STOP)
    path = folder / "train-3.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-3.arrow is damaged"):
        checks.verify([opened(folder)], ALONE, GOING_ON)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-3.arrow is missing"):
        checks.verify([opened(folder)], ALONE, GOING_ON)
