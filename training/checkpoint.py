"""Checkpoints that are complete or absent: DeepSpeed's files, made durable, then a marker that says what they are.

A checkpoint is `checkpoints/step_00001000/`: DeepSpeed writes into `step_00001000.partial`, every file is flushed to
the disk, the folder is renamed, and `complete.json` is written last. A folder without the marker does not count and
is removed by the next run. The randomness of a step is keyed by the seed and the step (see `train.seed_step`), so
the marker's integers are the whole state of the random generators and of the data.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.processes import Processes

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MARKER = "complete.json"
PARTIAL = ".partial"


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
        precision: fp32 or bf16, of the weights trained.
    """

    step: int
    samples: int
    data_fingerprint: str
    sequence_length: int
    seed: int
    world_size: int
    zero_stage: int
    precision: str

    @property
    def name(self) -> str:
        return f"step_{self.step:08d}"

    def refuse_other(self, other: "Checkpoint") -> None:
        """ValueError if a run like `other` cannot go on from here, and why."""
        if (self.data_fingerprint, self.sequence_length) != (other.data_fingerprint, other.sequence_length):
            raise ValueError(
                f"{self.name} was trained on data {self.data_fingerprint} in sequences of {self.sequence_length}, "
                f"this run has {other.data_fingerprint} in sequences of {other.sequence_length}; give the same "
                "shards and length, or another --output"
            )
        if self.world_size != other.world_size:
            raise ValueError(
                f"{self.name} was saved by {self.world_size} processes, this run has {other.world_size}; start it "
                f"with {self.world_size} (deepspeed --num_gpus {self.world_size})"
            )
        if (self.zero_stage, self.precision) != (other.zero_stage, other.precision):
            raise ValueError(
                f"{self.name} was saved at ZeRO stage {self.zero_stage} in {self.precision}, this run has stage "
                f"{other.zero_stage} in {other.precision}; resume with what saved it"
            )


class Checkpoints:
    """The checkpoints of one run, in a folder that all processes see.

    Args:
        folder: RUN/checkpoints.
        keep: how many of the newest to keep; at least one.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        if keep < 1:
            raise ValueError(f"keep_checkpoints {keep} is below 1; a run needs its last checkpoint")
        self.folder, self.keep = folder, keep

    def path(self, checkpoint: Checkpoint) -> Path:
        return self.folder / checkpoint.name

    def complete(self) -> list[Checkpoint]:
        """All complete checkpoints, oldest first."""
        known = {entry.name for entry in fields(Checkpoint)}
        records = [json.loads(path.read_text()) for path in sorted(self.folder.glob(f"step_*/{MARKER}"))]
        return [Checkpoint(**{key: record[key] for key in known}) for record in records]

    def latest_complete(self) -> Checkpoint | None:
        """The newest checkpoint that was written whole, or None."""
        return max(self.complete(), key=lambda checkpoint: checkpoint.step, default=None)

    def remove_incomplete(self) -> None:
        """Delete what a killed run left half-written."""
        for path in self.folder.glob("step_*"):
            if not (path / MARKER).is_file():
                shutil.rmtree(path)

    def save(self, engine: "DeepSpeedEngine", checkpoint: Checkpoint, processes: Processes) -> None:
        """Write a checkpoint and drop those beyond `keep`; every process must call.

        Costs about 12 bytes a parameter in all, and a flush to the disk.
        """
        partial = checkpoint.name + PARTIAL
        engine.save_checkpoint(str(self.folder), tag=partial, client_state=asdict(checkpoint), save_latest=False)
        processes.wait()
        if processes.is_first:
            for path in (self.folder / partial).rglob("*"):
                _flush(path)
            final = self.path(checkpoint)
            if final.exists():
                shutil.rmtree(final)
            (self.folder / partial).rename(final)
            _flush(self.folder)
            write_durably(final / MARKER, asdict(checkpoint))
            for old in self.complete()[: -self.keep]:
                (self.path(old) / MARKER).unlink()
                shutil.rmtree(self.path(old))
        processes.wait()

    def load(self, engine: "DeepSpeedEngine", checkpoint: Checkpoint) -> None:
        """Restore weights and optimizer; every process must call."""
        path, _ = engine.load_checkpoint(str(self.folder), tag=checkpoint.name)
        if path is None:
            raise ValueError(f"{self.path(checkpoint)} cannot be read by DeepSpeed; delete it to use the one before")


def write_durably(path: Path, record: dict[str, Any]) -> None:
    """Write JSON whole or not at all, and have it on the disk on return."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
