"""Checkpoints on file systems that fail, are shared, or are tidied by others: none that is sound is lost."""

import errno
import json
import shutil
from dataclasses import asdict, replace

import pytest
from test_checks import Alone

from training import durable, soundness
from training.checkpoint import Checkpoints
from training.durable import PARTIAL, describe, write_durably
from training.marker import MARKER, Checkpoint
from training.retention import Retention

MADE = Checkpoint(0, 0, "data", 32, 0, 2, 2, "fp32")
STEPS = (2, 4, 6)
PART = "part_of_rank_1.pt"
ALONE = Alone(0, 1, None, "fp32")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three complete checkpoints of two files each."""
    monkeypatch.setattr(soundness, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(durable, "SEEN_SECONDS", 0.3)
    for step in STEPS:
        write(tmp_path, step)
    return tmp_path


def write(folder, step, name="step_{:08d}"):
    path = folder / name.format(step)
    path.mkdir()
    for part in ("model.pt", PART):
        (path / part).write_bytes(f"{part} of {step}".encode())
    files = {part.name: describe(part) for part in path.iterdir()}
    write_durably(path / MARKER, asdict(replace(MADE, step=step)) | {"files": files})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def failing(monkeypatch, times, fault):
    """Reading a part of rank 1 fails so many times."""
    left, usual = [times], durable.describe

    def describe(path, progress=None):
        if path.name == PART and left[0]:
            left[0] -= 1
            raise fault
        return usual(path, progress)

    monkeypatch.setattr(durable, "describe", describe)


def test_what_cannot_be_read_for_a_moment_is_not_damaged(folder, monkeypatch, caplog):
    failing(monkeypatch, 1, OSError(errno.EIO, "Input/output error"))
    before = names(folder)
    found = Checkpoints(folder).newest_sound(ALONE)
    assert found.step == 6
    assert names(folder) == before
    assert f"step_00000006: {PART} cannot be read: Input/output error at first, and is whole now" in caplog.text


def test_damaged_checkpoints_are_set_aside_and_not_deleted(folder, caplog):
    (folder / "step_00000006" / PART).write_bytes(b"cut")
    (folder / "step_00000004" / MARKER).write_text('{"step": ')
    assert Checkpoints(folder).newest_sound(ALONE).step == 2
    assert names(folder) == ["step_00000002", "step_00000004.damaged-1", "step_00000006.damaged-1"]
    assert (folder / "step_00000006.damaged-1" / "model.pt").read_bytes() == b"model.pt of 6"
    line = f"step_00000006 is damaged: {PART} has 3 of 22 bytes; going on from step_00000002, and keeping it as"
    assert f"{line} step_00000006.damaged-1" in caplog.text
    Checkpoints(folder).remove_incomplete()
    write(folder, 6)
    (folder / "step_00000006" / MARKER).unlink()
    assert Checkpoints(folder).newest_sound(ALONE).step == 2
    assert names(folder)[-2:] == ["step_00000006.damaged-1", "step_00000006.damaged-2"]


def test_where_none_can_be_read_all_stay_as_they_are(folder, monkeypatch):
    failing(monkeypatch, 1000, OSError(errno.EIO, "Input/output error"))
    before = names(folder)
    with pytest.raises(
        ValueError, match=r"step_00000006: .* cannot be read: Input/output error, and there is no other"
    ):
        Checkpoints(folder).newest_sound(ALONE)
    assert names(folder) == before


def test_another_process_looks_again(folder):
    """Of two processes, the one on a machine that reads nothing well does not decide."""

    class OfTwo(Alone):
        """Both processes in turn; process 1 reads files with errors."""

        def gathered(self, value):
            return [value, {PART: "cannot be read"}] if self.first_look.pop() else [value, {}]

    two = OfTwo(0, 2, None, "fp32")
    object.__setattr__(two, "first_look", [False, True])
    assert Checkpoints(folder).newest_sound(two).step == 6
    object.__setattr__(two, "first_look", [False, False])
    (folder / "step_00000006" / PART).write_bytes(b"cut")  # the second of the files, by name: of process 1 at first
    assert soundness._faults(folder / "step_00000006", two) == {}
    assert soundness._faults(folder / "step_00000006", two, again={PART: "cannot be read"}) == {
        PART: "has 3 of 22 bytes"
    }


def test_only_what_a_kill_leaves_is_deleted(folder):
    for name in ("step_00000008.partial", "step_00000002.removed", "step_00000004.keep", "step_00000009"):
        (folder / name).mkdir()
    (folder / "step_00000004.tar").write_text("kept by somebody")
    Checkpoints(folder).remove_incomplete()
    left = [f"step_{step:08d}" for step in STEPS]
    assert names(folder) == sorted([*left, "step_00000004.keep", "step_00000004.tar", "step_00000009"])


def completed(folder, step, files=None):
    """Complete a checkpoint that was written by DeepSpeed's files so far."""
    write(folder, step, "step_{:08d}" + PARTIAL)
    partial = folder / f"step_{step:08d}{PARTIAL}"
    found = json.loads((partial / MARKER).read_text())["files"]
    (partial / MARKER).unlink()
    return Checkpoints(folder, Retention(last=2))._complete(replace(MADE, step=step), found | (files or {}))


def test_new_checkpoint_takes_the_place_of_the_oldest(folder):
    assert completed(folder, 8) == []
    assert names(folder) == ["step_00000006", "step_00000008"]
    assert Checkpoints(folder).newest_sound(ALONE).step == 8


def test_one_whose_parts_the_first_process_does_not_see_is_not_complete(folder):
    """As where --output is another folder on each machine."""
    (fault,) = completed(folder, 8, {"part_of_rank_9.pt": {"bytes": 3, "xxh3_128": "0"}})
    assert "does not see part_of_rank_9.pt of another; --output is to be one folder for all machines" in fault
    assert Checkpoints(folder).latest_complete().step == 6
    assert f"step_00000008{PARTIAL}" in names(folder)


def test_an_old_one_that_cannot_be_removed_is_no_hindrance(folder, monkeypatch, caplog):
    def busy(path, **options):
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", busy)
        assert completed(folder, 8) == []
    assert "step_00000002.removed cannot be removed" in caplog.text
    checkpoints = Checkpoints(folder)
    assert [one.step for one in checkpoints.complete()] == [6, 8]
    checkpoints.remove_incomplete()
    assert names(folder) == ["step_00000006", "step_00000008"]
