"""A run that is ready to start: its plan, data and folder, and what is found of it there."""

import hashlib
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.attention import takes_borders
from training.batches import EvaluationBatches
from training.checkpoint import Checkpoints
from training.engine import zero_stage
from training.guard import Record, Tolerance
from training.marker import Checkpoint
from training.meter import read_metrics
from training.processes import Processes
from training.read_ahead import ReadAhead
from training.run_folder import Plan, Rewind, RunFolder
from training.sample_chain import Chain
from training.samples import Samples
from training.sources import CheckedStream
from training.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_REWINDS = 3  # to one checkpoint
Found = tuple[Plan | None, Checkpoint | None, dict[str, Any] | None]  # what a run's folder holds: how far it is
log = logging.getLogger("train")


@dataclass(frozen=True)
class Length:
    """How long a run is: in steps, else in minutes of training, else one epoch."""

    max_steps: int | None
    train_minutes: float | None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps {self.max_steps} is below 1; choose 1 or more")
        if self.train_minutes is not None and not 0 < self.train_minutes < math.inf:
            wrong = f"train_minutes {self.train_minutes} is not above 0 and finite"
            raise ValueError(f"{wrong}; choose a part of a minute or more")

    @property
    def budget_seconds(self) -> float | None:
        """Seconds of training where the length is given so, else None."""
        return None if self.train_minutes is None or self.max_steps else self.train_minutes * 60


@dataclass(frozen=True)
class Intervals:
    """Steps between checkpoints, and between evaluations."""

    checkpoint_every: int
    evaluate_every: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} {value} is below 1; choose 1 or more, or a number beyond the last step")


@dataclass(frozen=True)
class Job:
    """All that the loop needs beside the engine; `begun` says that the folder holds this very run already."""

    plan: Plan
    folder: RunFolder
    begun: bool
    length: Length
    intervals: Intervals
    training: ReadAhead
    evaluation: EvaluationBatches | None
    checkpoints: Checkpoints
    configuration: dict[str, Any]
    tokenizer: Path
    tolerance: Tolerance
    watch: Watch
    found: Found

    @property
    def streams(self) -> list[CheckedStream]:
        """All splits that the run reads."""
        found = [source.stream for source in self.training.sources.all]
        found += [self.evaluation.stream] if self.evaluation else []
        return [stream for stream in found if isinstance(stream, CheckedStream)]

    @property
    def is_outdated(self) -> bool:
        """Whether another run wrote to the folder since this job was made ready."""
        return found_in(self.folder, self.checkpoints) != self.found

    @property
    def is_done(self) -> bool:
        """Whether the run reached the end of this plan before, and its model is there."""
        summary = self.folder.summary if self.begun and self.folder.export.is_dir() else None
        return summary is not None and summary["steps"] == self.plan.max_steps

    @property
    def must_be_timed(self) -> bool:
        """Whether the number of steps is not known yet."""
        return self.plan.max_steps == 0

    def is_to_evaluate(self, step: int, max_steps: int) -> bool:
        """Whether held-out figures of a step are wanted, in a run of now so many steps."""
        is_due = step % self.intervals.evaluate_every == 0 or step == max_steps
        return self.evaluation is not None and step > 0 and is_due

    @property
    def shared(self) -> dict[str, Any]:
        """What must be the same on all processes, by name: it decides on what they compute, and when they meet."""
        held_out = None
        if self.evaluation:
            stream = self.evaluation.stream
            held_out = f"{self.evaluation.count} windows of {stream.index.fingerprint(stream.split)}"
        when = (self.length, self.intervals, self.tolerance, self.watch, self.configuration)
        return {
            "data": self.plan.data_fingerprint,
            "settings": self.plan.recipe.fingerprint,
            "the run's being begun": self.begun,
            "held-out data": held_out,
            "the plan": _digest((self.plan.planned, self.plan.rewinds)),
            "the rest of the command": _digest(when),
        }

    def fit(self, model: "PreTrainedModel") -> None:
        """Give batches the form that the attention of a model wants."""
        for batches in (self.training.batches, self.evaluation):
            if batches:
                batches.flatten = takes_borders(model)

    def checkpoint(
        self,
        step: int,
        processes: Processes,
        guard: Record | None = None,
        chain: Chain | None = None,
        validation_loss: float | None = None,
    ) -> Checkpoint:
        """What the marker of a checkpoint of this run says."""
        recipe = self.plan.recipe
        is_known = validation_loss is not None and math.isfinite(validation_loss)
        return Checkpoint(
            step=step,
            samples=self.plan.seen(step),
            data_fingerprint=self.plan.data_fingerprint,
            sequence_length=recipe.batch.sequence_length,
            seed=recipe.seed,
            world_size=processes.world_size,
            zero_stage=zero_stage(self.configuration, processes.precision),
            precision=processes.precision,
            validation_loss=validation_loss if is_known else None,
            guard=guard or Record(),
            chain=chain or Chain(),
        )

    def numbers(self, step: int) -> Any:
        """Numbers of the samples of a step, on whichever process."""
        return self.training.samples(self.plan.consumed(step))

    def samples(self, step: int) -> Samples:
        """What writes samples from `step` on."""
        plan = self.plan
        return Samples(
            self.folder.samples,
            self.tokenizer,
            objective=plan.recipe.objective,
            predict=self.training.batches.predict,
            end_of_text_id=plan.end_of_text_id,
            context_tokens=plan.recipe.batch.sequence_length,
            watch=self.watch,
            seed=plan.recipe.seed,
            step=step,
        )

    def last_checkpoint(self, processes: Processes) -> Checkpoint | None:
        """Where to go on from, checked; every process must call. ValueError if this run cannot."""
        last = self.checkpoints.newest_sound(processes) if self.begun else None
        if last is None and self.begun and processes.from_first(processes.is_first and self._had_checkpoints()):
            raise ValueError(
                f"{self.checkpoints.folder} holds no checkpoint, though its run had some; put them back, or begin "
                "anew with --overwrite"
            )
        if last is not None:
            last.refuse_other(self.checkpoint(last.step, processes))
            last.chain.refuse_other(self.numbers)
        return last

    def _had_checkpoints(self) -> bool:
        """Whether a run that has no checkpoints must have lost them: it came to its end, or too far without."""
        if any(rewind.to_step == 0 for rewind in self.plan.rewinds):
            return False
        steps = [row["step"] for row in read_metrics(self.folder.metrics)]
        return self.folder.summary is not None or max(steps, default=0) > 2 * self.intervals.checkpoint_every

    def rewound(self, step: int, skipped: int, processes: Processes) -> "Job":
        """The job after a step at which it gave up: back at a checkpoint from before the trouble, on other data.

        Every process must call. ValueError if it went back there too often.
        """
        checkpoints = self.checkpoints
        while last := processes.from_first(checkpoints.latest_complete() if processes.is_first else None):
            if not last.guard.in_a_row:
                break
            self.checkpoints.drop(last, processes)
        back, known = (last.step, last.guard.skipped) if last else (0, 0)
        plan = processes.from_first(self.folder.plan)
        if sum(rewind.to_step == back for rewind in plan.rewinds) >= MOST_REWINDS:
            raise ValueError(
                f"{self.tolerance.in_a_row} steps in a row were bad up to step {step}, after going back to step "
                f"{back} {MOST_REWINDS} times; begin anew with a learning rate below "
                f"{plan.recipe.optimizer.learning_rate} (--optimizer.learning_rate)"
            )
        if processes.is_first:
            log.warning("steps up to %d were bad: going back to step %d, on other data", step, back)
            self.folder.keep_rewound(back)
        plan = replace(plan, rewinds=(*plan.rewinds, Rewind(step, back, skipped - known)))
        return replace(self, plan=plan, begun=True)


def found_in(folder: RunFolder, checkpoints: Checkpoints) -> Found:
    """How far the run of a folder is."""
    return folder.plan, checkpoints.latest_complete(), folder.summary


def _digest(values: object) -> str:
    """Short, and equal for values that show themselves equally."""
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()
