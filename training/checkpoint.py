"""Checkpoints that are complete or absent: DeepSpeed's files, made durable, then a marker that says what they are.

A checkpoint is `checkpoints/step_00001000/`: DeepSpeed's files go into `step_00001000.partial` while training goes on,
each process flushes what it wrote to the disk and takes its checksum, the folder is renamed, and `complete.json`,
which holds the checksums, is written last. A folder without the marker does not count and is removed by the next run;
one with a file that is not as it was written is found before it is used, and the checkpoint before it is used instead.
The randomness of a step is keyed by the seed and the step (see `steps.seed_step`), so the marker's integers are the
whole state of the random generators and of the data.
"""

import json
import logging
import math
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.shard_index import flush
from training import restoring
from training.durable import PARTIAL, FileRecord, damaged, write_durably
from training.guard import Record
from training.processes import Processes
from training.sample_chain import Chain
from training.saved_parameters import SavedParameters
from training.saving import Saving

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MARKER = "complete.json"
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


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay when a new one is complete: the newest, and of those to go back to as many as are asked.

    A run that is stopped among bad steps saves the last of them, to go on with and not to go back to.

    Args:
        last: how many of the newest that no bad step had just come before.
        best: whether the one of the lowest held-out loss stays, of those that were saved at an evaluation.
        every: those at multiples of so many steps stay for good; 0 = none.
    """

    last: int = 1
    best: bool = True
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"keep_checkpoints {self.last} is below 1; a run needs its last checkpoint")
        if self.every < 0:
            raise ValueError(f"keep_every {self.every} is below 0; 0 keeps none for good")

    def dropped(self, complete: list[Checkpoint]) -> list[Checkpoint]:
        """Those of `complete` (oldest first) that go."""
        sound = [checkpoint for checkpoint in complete if not checkpoint.guard.in_a_row]
        kept = {checkpoint.step for checkpoint in (*complete[-1:], *sound[-self.last :])}
        if self.every:
            kept |= {checkpoint.step for checkpoint in complete if checkpoint.step % self.every == 0}
        losses = {checkpoint.step: checkpoint.validation_loss for checkpoint in complete}
        evaluated = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
        if self.best and evaluated:
            kept.add(min(evaluated, key=lambda step: (evaluated[step], step)))
        return [checkpoint for checkpoint in complete if checkpoint.step not in kept]


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
        markers = [path for path in self.folder.glob(f"step_*/{MARKER}") if not path.parent.suffix]
        found = [checkpoint for path in markers if (checkpoint := _read(path)) is not None]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def latest_complete(self) -> Checkpoint | None:
        """The newest checkpoint that was written whole, or None."""
        return max(self.complete(), key=lambda checkpoint: checkpoint.step, default=None)

    def newest_sound(self, processes: Processes) -> Checkpoint | None:
        """The newest checkpoint whose files are as they were written, or None; every process must call.

        Each process reads its share of the files, which are in memory then for loading. Newer checkpoints, which are
        damaged, are told of and removed.
        """
        found = processes.from_first(self.complete())
        while found:
            faults = [fault for share in processes.gathered(self._faults(found[-1], processes)) for fault in share]
            if not faults:
                return found[-1]
            damaged = found.pop()
            before = f"going on from {found[-1].name}" if found else "there is none before it"
            if processes.is_first:
                log.warning("%s is damaged: %s; %s", damaged.name, faults[0], before)
            if not found:
                raise ValueError(
                    f"{self.path(damaged)}: {faults[0]}, and there is no other checkpoint; put the file back, or "
                    "begin anew with --overwrite"
                )
            self.drop(damaged, processes)
        return None

    def _faults(self, checkpoint: Checkpoint, processes: Processes) -> list[str]:
        folder = self.path(checkpoint)
        files: dict[str, FileRecord] = json.loads((folder / MARKER).read_text()).get("files", {})
        mine = sorted(files)[processes.rank :: processes.world_size]
        return list(damaged(folder, {name: files[name] for name in mine}, quiet=not processes.is_first))

    def drop(self, checkpoint: Checkpoint, processes: Processes) -> None:
        """Remove a checkpoint that is not to be gone on with; every process must call."""
        if processes.is_first:
            _remove(self.path(checkpoint))
        processes.wait()

    def remove_incomplete(self) -> None:
        """Delete what a killed run left half-written."""
        for path in self.folder.glob("step_*"):
            if path.suffix or not (path / MARKER).is_file():
                shutil.rmtree(path)

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
        """Give a whole checkpoint its name and its marker; why that failed, if it did."""
        partial, final = self.folder / (checkpoint.name + PARTIAL), self.path(checkpoint)
        try:
            for path in (partial, *partial.rglob("*")):
                if path.name not in files:
                    flush(path)
            _remove(final)
            partial.rename(final)
            flush(self.folder)
            write_durably(final / MARKER, asdict(checkpoint) | {"files": files})
        except OSError as error:
            return [str(error)]
        for old in self.retention.dropped(self.complete()):
            _remove(self.path(old))
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


def _read(marker: Path) -> Checkpoint | None:
    """What a marker says; None where it cannot be read, which makes its checkpoint absent."""
    try:
        return Checkpoint.from_record(json.loads(marker.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read: %s", marker, error)
        return None


def _remove(folder: Path) -> None:
    """Delete a checkpoint, its marker first, so that it is never half a one."""
    if folder.exists():
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)
