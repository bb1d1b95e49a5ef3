"""The marker of a checkpoint: where the run stood, and by it that the checkpoint is whole.

The randomness of a step is keyed by the seed and the step (see `steps.seed_step`), so the marker's integers are the
whole state of the random generators and of the data.
"""

import json
import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from training.guard import Record
from training.sample_chain import Chain

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
        validation_loss: of this step, where it was evaluated, and is finite.
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


def read_marker(marker: Path) -> Checkpoint | None:
    """What a marker says; None where it cannot be read, which makes its checkpoint absent."""
    try:
        return Checkpoint.from_record(json.loads(marker.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read: %s", marker, error)
        return None
