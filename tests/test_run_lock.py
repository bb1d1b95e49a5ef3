"""One run a folder at a time, on one machine and on several."""

import json
import multiprocessing
import os
import time
from types import SimpleNamespace

import pytest

from training import durable, run_lock
from training.run_lock import LOCK, held

ALONE = SimpleNamespace(is_first=True, from_first=lambda value: value, gathered=lambda value: [value])
GOES_ON, STOPPED = SimpleNamespace(came=False), SimpleNamespace(came=True)


def hold(folder, seconds, machine, entered):
    """What another process does: hold the lock for a while, as of a machine of this name."""
    if machine:
        run_lock.socket.gethostname = lambda: machine
    with held(folder, ALONE, GOES_ON):
        (folder / "plan.json").write_text("{}")
        entered.set()
        time.sleep(seconds)


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of RUN."""
    context, started = multiprocessing.get_context("spawn"), []

    def start(seconds, machine=""):
        entered = context.Event()
        process = context.Process(target=hold, args=(tmp_path / "run", seconds, machine, entered))
        process.start()
        started.append(process)
        assert entered.wait(60)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_folder_without_a_run_is_gone_again_and_one_with_a_run_stays(tmp_path):
    with held(tmp_path / "run", ALONE, GOES_ON) as is_held:
        assert is_held
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / "run").exists()
    with held(tmp_path / "run", ALONE, GOES_ON):
        (tmp_path / "run" / "plan.json").write_text("{}")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LOCK, "plan.json"]


def test_run_that_lives_here_is_named_at_once_and_one_that_was_killed_is_no_hindrance(tmp_path, holder):
    process = holder(600)
    with (
        pytest.raises(ValueError, match=rf"run is being written by process {process.pid} on .*; wait for it"),
        held(tmp_path / "run", ALONE, GOES_ON),
    ):
        pass
    process.kill()
    process.join()
    with held(tmp_path / "run", ALONE, GOES_ON) as is_held:
        assert is_held


def test_run_on_another_machine_is_waited_for(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(run_lock, "LOOK_SECONDS", 0.2)
    holder(3, machine="another")
    begun = time.monotonic()
    with held(tmp_path / "run", ALONE, GOES_ON) as is_held:
        assert is_held
    assert time.monotonic() - begun > 1


def test_the_wait_ends_when_it_was_long_or_is_to_stop(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(run_lock, "LOOK_SECONDS", 0.1)
    holder(600, machine="another")
    with held(tmp_path / "run", ALONE, STOPPED) as is_held:
        assert not is_held
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.3)
    with (
        pytest.raises(ValueError, match=r"is being written by process .* on another"),
        held(tmp_path / "run", ALONE, GOES_ON),
    ):
        pass


def test_a_lock_that_was_taken_away_while_it_was_waited_for_is_none(tmp_path, holder, monkeypatch):
    """Its last holder removed the file; who locked what had been removed would not hinder the next."""
    monkeypatch.setattr(run_lock, "LOOK_SECONDS", 0.1)
    folder = tmp_path / "run"
    folder.mkdir()
    usual = run_lock._locked

    def removed_before(file, place):
        if usual(file, place):
            (folder / LOCK).unlink()
            monkeypatch.setattr(run_lock, "_locked", usual)
            return True
        return False

    monkeypatch.setattr(run_lock, "_locked", removed_before)
    with held(folder, ALONE, GOES_ON) as is_held:
        assert is_held
        assert (folder / LOCK).is_file()


def test_folder_that_cannot_be_made_is_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"file/run cannot be written to: .*; choose another --output"),
        held(tmp_path / "file" / "run", ALONE, GOES_ON),
    ):
        pass


def test_folder_that_is_another_one_on_another_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "SEEN_SECONDS", 0.3)
    first = {"machine": "first", "process": 7, "started": "then"}
    second = SimpleNamespace(
        is_first=False, from_first=lambda value: (None, False, first), gathered=lambda own: [True, own]
    )
    (tmp_path / "run").mkdir()
    for written in (None, first | {"machine": "third"}):
        if written:
            (tmp_path / "run" / LOCK).write_text(json.dumps(written))
        with (
            pytest.raises(
                ValueError, match=r"process 1 does not see what process 0 writes to .*/run; choose an --output"
            ),
            held(tmp_path / "run", second, GOES_ON),
        ):
            pass
    (tmp_path / "run" / LOCK).write_text(json.dumps(first))
    with held(tmp_path / "run", second, GOES_ON) as is_held:
        assert is_held
