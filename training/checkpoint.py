"""Checkpoints that are complete or absent: DeepSpeed's files, made durable, then a marker that says what they are.

A checkpoint is `checkpoints/step_00001000/`: DeepSpeed's files go into `step_00001000.partial` while training goes on,
each process flushes what it wrote to the disk and takes its checksum, `complete.json`, which holds the checksums, is
written last, and the folder gets its name. What has another name does not count and is removed by the next run. One
with a file that is not as it was written is found before it is used; the checkpoint before it is used instead, and it
is kept under another name, since it may be the machine that reads it wrongly.
The randomness of a step is keyed by the seed and the step (see `steps.seed_step`), so the marker's integers are the
whole state of the random generators and of the data.
"""

import contextlib
import itertools
import json
import logging
import re
import shutil
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.shard_index import flush
from training import restoring
from training.durable import PARTIAL, FileRecord, damaged, write_durably
from training.guard import Record
from training.processes import Processes
from training.retention import Retention
from training.sample_chain import Chain
from training.saved_parameters import SavedParameters
from training.saving import Saving

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MARKER = "complete.json"
REMOVED, DAMAGED = ".removed", ".damaged"
# How long a fault is slept over before another process looks again, and a file that one process wrote is waited for by
# another: file systems that machines share may tell each of them of an older state, NFS by default up to 60 s.
AGAIN_SECONDS, SEEN_SECONDS, LOOK_SECONDS = 3.0, 90.0, 0.5
log = logging.getLogger("train")


@dataclass(frozen=True)
class Checkpoint:
    """What the marker of a checkpoint records.

    Args:
        step: optimizer steps taken.
        samples: training sequences consumed: the whole state of the data order.
        data_fingerprint: of the training split.
        sequence_length: tokens a sequence predicts.
        seed: of the run.
        world_size: processes that wrote it; DeepSpeed's files hold one part for each.
        zero_stage: ZeRO stage of those files.
        precision: fp32, bf16 or fp16, of the weights trained.
        validation_loss: of this step, where it was evaluated.
        guard: what the judge of bad steps remembers.
        chain: running digest of all sample numbers.
    """

    step: int
    samples: int
    data_fingerprint: str
    sequence_length: int
    seed: int
    world_size: int
    zero_stage: int
    precision: str
    validation_loss: float | None = None
    guard: Record = field(default_factory=Record)
    chain: Chain = field(default_factory=Chain)

    @property
    def name(self) -> str:
        return f"step_{self.step:08d}"

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Checkpoint":
        """The inverse of `dataclasses.asdict`; what else a marker holds is left out."""
        known = {entry.name: record[entry.name] for entry in fields(cls) if entry.name in record}
        if "guard" in known:
            known["guard"] = Record(**known["guard"] | {"norms": tuple(known["guard"]["norms"])})
        step = known["step"]
        known["chain"] = Chain.from_record(known.get("chain", {"step": step, "digest": "", "marks": [(step, "")]}))
        return cls(**known)

    def refuse_other(self, other: "Checkpoint") -> None:
        """ValueError if a run like `other` cannot go on from here, and why."""
        if (self.data_fingerprint, self.sequence_length) != (other.data_fingerprint, other.sequence_length):
            raise ValueError(
                f"{self.name} was trained on data {self.data_fingerprint} in sequences of {self.sequence_length}, "
                f"this run has {other.data_fingerprint} in sequences of {other.sequence_length}; give the same "
                "shards and length, or another --output"
            )
        if self.samples != other.samples:
            raise ValueError(
                f"{self.name} has seen {self.samples} sequences, this run would have seen {other.samples}; "
                "plan.json was changed, put back the one that the run wrote"
            )
        if self.precision != other.precision:
            raise ValueError(
                f"{self.name} was saved in {self.precision}, this run has {other.precision}; resume with what saved it"
            )


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
        found = (_read(self.folder / name / MARKER) for name in self._names())
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def _names(self) -> list[str]:
        """Of all folders that were whole once, oldest first."""
        paths = self.folder.glob("step_*")
        return sorted(
            (path.name for path in paths if re.fullmatch(r"step_\d+", path.name) and path.is_dir()), key=_step
        )

    def latest_complete(self) -> Checkpoint | None:
        """The newest checkpoint that was written whole, or None."""
        return max(self.complete(), key=lambda checkpoint: checkpoint.step, default=None)

    def newest_sound(self, processes: Processes) -> Checkpoint | None:
        """The newest checkpoint whose files are as they were written, None if there is none; every process must call.

        Each process reads its share of the files, which are in memory then for loading. Newer checkpoints, which are
        damaged, are told of and set aside under another name.

        Raises:
            ValueError: on all processes, if all are damaged; they stay as they are.
        """
        names, damaged = processes.from_first(self._names()), dict[str, str]()
        while names:
            name = names.pop()
            fault = self._fault(name, processes)
            if fault is None:
                if processes.is_first:
                    self._set_aside(damaged, name)
                return processes.from_first(_read(self.folder / name / MARKER))  # type: ignore[no-any-return]
            damaged[name] = fault
        if damaged:
            name, fault = next(iter(damaged.items()))
            raise ValueError(
                f"{self.folder / name}: {fault}, and there is no other that is sound; put the file back, or begin "
                "anew with --overwrite"
            )
        return None

    def _fault(self, name: str, processes: Processes) -> str | None:
        """What is wrong with a checkpoint, as two processes see it, on machines of their own where there are any."""
        faults = self._faults(name, processes)
        if not faults:
            return None
        time.sleep(AGAIN_SECONDS)
        if again := self._faults(name, processes, again=faults):
            return " ".join(next(iter(again.items())))
        if processes.is_first:
            log.warning("%s: %s at first, and is whole now", name, " ".join(next(iter(faults.items()))))
        return None

    def _faults(self, name: str, processes: Processes, again: dict[str, str] | None = None) -> dict[str, str]:
        """Damaged files and what is wrong with each; those of `again` are read by another process than before."""
        mine, folder = processes.rank, self.folder / name
        if again is not None:
            mine += max(1, processes.world_size // 2)
        try:
            files: dict[str, FileRecord] = json.loads((folder / MARKER).read_text()).get("files", {})
            names = sorted(files)[mine % processes.world_size :: processes.world_size]
            read = {file: files[file] for file in names if again is None or MARKER in again or file in again}
            found = dict(damaged(folder, read, quiet=not processes.is_first))
        except (OSError, ValueError, AttributeError) as error:
            found = {MARKER: f"cannot be read ({error})"}
        if processes.is_first and _read(folder / MARKER) is None:
            found = {MARKER: "cannot be read"}
        return {file: fault for share in processes.gathered(found) for file, fault in share.items()}

    def _set_aside(self, damaged: dict[str, str], sound: str) -> None:
        """Give damaged checkpoints a name under which they do not count, and stay."""
        for name, fault in damaged.items():
            names = (f"{name}{DAMAGED}-{number}" for number in itertools.count(1))
            aside = next(other for other in names if not (self.folder / other).exists())
            (self.folder / name).rename(self.folder / aside)
            log.warning("%s is damaged: %s; going on from %s, and keeping it as %s", name, fault, sound, aside)

    def drop(self, checkpoint: Checkpoint, processes: Processes) -> None:
        """Remove a checkpoint that is not to be gone on with; every process must call."""
        if processes.is_first:
            _remove(self.path(checkpoint))
        processes.wait()

    def remove_incomplete(self) -> None:
        """Delete what a killed run left half-written, or half-removed, and nothing that somebody put there."""
        for path in self.folder.glob("step_*"):
            if re.fullmatch(rf"step_\d+({PARTIAL}|{REMOVED})", path.name):
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
        if unseen := _unseen(partial, files):
            return [
                f"the first process does not see {unseen} of another; --output is to be one folder for all machines"
            ]
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
        """Note the held-out loss of a checkpoint that was evaluated after it was saved; every process must call."""
        if processes.is_first:
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


def _read(marker: Path) -> Checkpoint | None:
    """What a marker says; None where it cannot be read, which makes its checkpoint absent."""
    try:
        return Checkpoint.from_record(json.loads(marker.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read: %s", marker, error)
        return None


def _unseen(folder: Path, files: dict[str, FileRecord]) -> str | None:
    """A file of a folder that is not there as the process that wrote it says, however long it is waited for."""
    deadline = time.monotonic() + SEEN_SECONDS
    for name, record in files.items():
        while _size(folder / name) != record["bytes"]:
            if time.monotonic() > deadline:
                return name
            time.sleep(LOOK_SECONDS)
    return None


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return -1


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
