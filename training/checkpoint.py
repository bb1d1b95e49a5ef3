"""Checkpoints that are complete or absent: DeepSpeed's files, made durable, then a marker that says what they are.

A checkpoint is `checkpoints/step_00001000/`: DeepSpeed's files go into `step_00001000.partial` while training goes on,
each process flushes what it wrote to the disk and takes its checksum, `complete.json`, which holds the checksums, is
written last, and the folder gets its name. What has another name does not count and is removed by the next run. One
with a file that is not as it was written is found before it is used; the checkpoint before it is used instead, and it
is kept under another name, since it may be the machine that reads it wrongly.
"""

import json
import logging
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer.shard_index import flush
from training import restoring
from training.durable import PARTIAL, FileRecord, write_durably
from training.marker import MARKER, Checkpoint, read_marker
from training.processes import Processes
from training.retention import Retention
from training.saved_parameters import SavedParameters
from training.saving import Saving
from training.soundness import newest_sound, unseen

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

REMOVED = ".removed"
log = logging.getLogger("train")


class Checkpoints:
    """The checkpoints of one run, in a folder that all processes see.

    Args:
        folder: RUN/checkpoints.
        retention: which ones stay.
        in_background: whether training goes on while one is written.
    """

    def __init__(self, folder: Path, retention: Retention | None = None, in_background: bool = True) -> None:
        self.folder, self.retention, self.in_background = folder, retention or Retention(), in_background
        self._pending: tuple[Checkpoint, Saving] | None = None

    def path(self, checkpoint: Checkpoint) -> Path:
        return self.folder / checkpoint.name

    def complete(self) -> list[Checkpoint]:
        """All complete checkpoints, oldest first."""
        found = (read_marker(self.folder / name / MARKER) for name in self._names())
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def _names(self) -> list[str]:
        """Of all folders that were whole once, oldest first."""
        names = (path.name for path in self.folder.glob("step_*") if path.is_dir())
        return sorted((name for name in names if re.fullmatch(r"step_\d+", name)), key=_step)

    def latest_complete(self) -> Checkpoint | None:
        """The newest checkpoint that was written whole, or None."""
        return max(self.complete(), key=lambda checkpoint: checkpoint.step, default=None)

    def newest_sound(self, processes: Processes) -> Checkpoint | None:
        """See `soundness.newest_sound`."""
        return newest_sound(self.folder, self._names(), processes)

    def drop(self, checkpoint: Checkpoint, processes: Processes) -> None:
        """Remove a checkpoint that is not to be gone on with; every process must call."""
        if processes.is_first:
            _remove(self.path(checkpoint))
        processes.wait()

    def remove_incomplete(self) -> None:
        """Delete what a killed run left half-written, or half-removed, and nothing that somebody put there."""
        for path in self.folder.glob("step_*"):
            if re.fullmatch(rf"step_\d+({re.escape(PARTIAL)}|{re.escape(REMOVED)})", path.name):
                _delete(path)

    def save(self, engine: "DeepSpeedEngine", checkpoint: Checkpoint, processes: Processes) -> None:
        """Begin to write a checkpoint; every process must call. It counts when `finish` has returned.

        Raises:
            OSError: on all processes, if the one before could not be written.
        """
        self.finish(processes)
        tag, state = checkpoint.name + PARTIAL, asdict(checkpoint) | restoring.names_of_parameters(engine)
        self._pending = checkpoint, Saving(engine, self.folder, tag, state, self.in_background)

    @property
    def written(self) -> bool:
        """Whether this process has written its part of a checkpoint that is not complete yet."""
        return self._pending is not None and self._pending[1].written

    def finish(self, processes: Processes) -> None:
        """Complete the checkpoint that is being written, and drop those that need not stay; every process must call.

        Where it cannot be written by one process, all raise OSError and what stood before stands.
        """
        if self._pending is None:
            return
        (checkpoint, saving), self._pending = self._pending, None
        saving.wait()
        files: dict[str, FileRecord] = {}
        faults: list[str] = []
        for written, fault in processes.gathered((saving.files, saving.fault)):
            files |= written
            faults += [fault] if fault else []
        if processes.is_first and not faults:
            faults = self._complete(checkpoint, files)
        faults = processes.from_first(faults)
        if faults:
            if processes.is_first:
                shutil.rmtree(self.folder / (checkpoint.name + PARTIAL), ignore_errors=True)
            last = self.latest_complete()
            standing = f"{last.name} stands" if last else "there is none before it"
            raise OSError(f"{checkpoint.name} cannot be written: {faults[0]}; {standing}; the same command goes on")

    def _complete(self, checkpoint: Checkpoint, files: dict[str, FileRecord]) -> list[str]:
        """Give a whole checkpoint its marker and its name; why that failed, if it did."""
        partial, final = self.folder / (checkpoint.name + PARTIAL), self.path(checkpoint)
        if name := unseen(partial, files):
            return [f"the first process does not see {name} of another; --output is to be one folder for all machines"]
        try:
            for path in (partial, *partial.rglob("*")):
                if path.name not in files:
                    flush(path)
            write_durably(partial / MARKER, asdict(checkpoint) | {"files": files})
            _remove(final)
            partial.rename(final)
            flush(self.folder)
        except OSError as error:
            return [str(error)]
        for old in self.retention.dropped(self.complete()):
            try:
                _remove(self.path(old))
            except OSError as error:  # the new one is whole: not worth ending the run
                log.warning("%s cannot be removed: %s", self.path(old), error)
        return []

    def record_loss(self, checkpoint: Checkpoint, validation_loss: float, processes: Processes) -> None:
        """Note the held-out loss of a checkpoint that was evaluated after it was saved, if it is finite; every process
        must call.
        """
        if processes.is_first and math.isfinite(validation_loss):
            marker = self.path(checkpoint) / MARKER
            write_durably(marker, json.loads(marker.read_text()) | {"validation_loss": validation_loss})
        processes.wait()

    def load(self, engine: "DeepSpeedEngine", checkpoint: Checkpoint, processes: Processes) -> None:
        """Restore weights and optimizer, whichever layout wrote them; every process must call.

        Raises:
            ValueError: on all processes, if the files are not what this engine needs.
        """
        saved = checkpoint.world_size, checkpoint.zero_stage
        here = processes.world_size, engine.zero_optimization_stage()
        if processes.is_first and saved != here:
            words = "%s was saved by %d processes at ZeRO stage %d, and is gone on with by %d at stage %d"
            log.info(words, checkpoint.name, *saved, *here)
        folder, fault = self.path(checkpoint), None
        try:
            restoring.restore(engine, self.parameters(checkpoint))
        except Exception as error:  # whatever it is: the other processes wait to hear of it
            fault = " ".join(str(error).split()) or repr(error)
        found = [fault for fault in processes.gathered(fault) if fault]
        if found:
            raise ValueError(f"{folder} cannot be gone on from: {found[0]}; remove it to go on from the one before")
        restoring.complete(engine)

    def parameters(self, checkpoint: Checkpoint) -> SavedParameters:
        """The weights and optimizer states of a checkpoint, by parameter."""
        return SavedParameters(self.path(checkpoint), checkpoint.zero_stage, checkpoint.world_size)


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))


def _remove(folder: Path) -> None:
    """Delete a checkpoint, which does not count from the first moment on."""
    removed = folder.with_name(folder.name + REMOVED)
    if folder.exists():
        _delete(removed)
        folder.rename(removed)
        _delete(removed)


def _delete(folder: Path) -> None:
    """Delete a folder that does not count; what cannot be deleted now is tried again by the next run."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        log.warning("%s cannot be removed: %s", folder, error)
