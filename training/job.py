"""A run made ready before any process starts torch: its plan, data and folder, checked so that faults cost nothing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizer.shards import ShardIndex, TokenStream
from training.batches import EvaluationBatches, TrainingBatches
from training.checkpoint import Checkpoint, Checkpoints
from training.config import Recipe
from training.engine import zero_stage
from training.processes import Processes
from training.run_folder import Plan, RunFolder, find_tokenizer


@dataclass(frozen=True)
class Length:
    """How long a run is: in steps, else in minutes of training, else one epoch."""

    max_steps: int | None
    train_minutes: float | None

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps {self.max_steps} is below 1; choose 1 or more")
        if self.train_minutes is not None and self.train_minutes <= 0:
            raise ValueError(f"train_minutes {self.train_minutes} is not above 0; choose a part of a minute or more")

    def steps(self, epoch_steps: int, seconds_per_step: float | None) -> int | None:
        """Optimizer steps of the run; None where steps must be timed first."""
        if self.max_steps is not None:
            return self.max_steps
        if self.train_minutes is None:
            return max(1, epoch_steps)
        if seconds_per_step is None:
            return None
        return max(1, round(self.train_minutes * 60 / seconds_per_step))


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
    training: TrainingBatches
    evaluation: EvaluationBatches | None
    checkpoints: Checkpoints
    configuration: dict[str, Any]
    tokenizer: Path

    @property
    def is_done(self) -> bool:
        """Whether the run reached the end of this plan before, and its model is there."""
        summary = self.folder.summary if self.begun and self.folder.export.is_dir() else None
        return summary is not None and summary["steps"] == self.plan.max_steps

    @property
    def must_be_timed(self) -> bool:
        """Whether the number of steps is not known yet."""
        return self.plan.max_steps == 0

    def timed(self, seconds_per_step: float) -> "Job":
        """The job with its number of steps fixed by a measurement."""
        steps = self.length.steps(0, seconds_per_step) or 1
        return replace(self, plan=replace(self.plan, max_steps=steps, seconds_per_step=seconds_per_step))

    def checkpoint(self, step: int, processes: Processes) -> Checkpoint:
        """What the marker of a checkpoint of this run says."""
        recipe = self.plan.recipe
        return Checkpoint(
            step=step,
            samples=step * recipe.batch.sequences,
            data_fingerprint=self.plan.data_fingerprint,
            sequence_length=recipe.batch.sequence_length,
            seed=recipe.seed,
            world_size=processes.world_size,
            zero_stage=zero_stage(self.configuration, processes.precision),
            precision=processes.precision,
        )

    def last_checkpoint(self, processes: Processes) -> Checkpoint | None:
        """Where to go on from; ValueError if these processes cannot, or the run is beyond its end already."""
        last = self.checkpoints.latest_complete() if self.begun else None
        if last is None:
            return None
        if last.step > self.plan.max_steps:
            raise ValueError(
                f"{self.folder.path} has trained {last.step} steps, more than the {self.plan.max_steps} asked for; "
                "choose another --output, or --overwrite"
            )
        last.refuse_other(self.checkpoint(last.step, processes))
        return last


def prepare(
    *,
    shards: Path,
    output: Path,
    recipe: Recipe,
    length: Length,
    intervals: Intervals,
    keep_checkpoints: int,
    evaluation_tokens: int,
    configuration: dict[str, Any],
    tokenizer: Path | None,
    resume: bool,
    overwrite: bool,
) -> Job:
    """Check everything that can be checked without torch, and write nothing. ValueError says what does not fit."""
    index, folder = ShardIndex.load(shards), RunFolder(output)
    tokenizer_file = find_tokenizer(tokenizer or shards / "tokenizer", index)
    sequence_length, sequences = recipe.batch.sequence_length, recipe.batch.sequences
    training = TrainingBatches(
        TokenStream(shards, "train"), sequence_length=sequence_length, sequences=sequences, seed=recipe.seed
    )
    evaluation = None
    if evaluation_tokens:
        evaluation = EvaluationBatches(
            TokenStream(shards, "validation"), sequence_length=sequence_length, max_tokens=evaluation_tokens
        )
    begun = folder.is_begun(recipe, index, resume=resume, overwrite=overwrite)
    measured = folder.plan.seconds_per_step if begun and folder.plan else None
    plan = Plan(
        recipe=recipe,
        data_fingerprint=index.fingerprint("train"),
        vocab_size=index.vocab_size,
        end_of_text_id=index.end_of_text_id,
        max_steps=length.steps(training.windows // sequences, measured) or 0,
        seconds_per_step=measured,
    )
    checkpoints = Checkpoints(folder.checkpoints, keep_checkpoints)
    return Job(
        plan, folder, begun, length, intervals, training, evaluation, checkpoints, configuration, tokenizer_file
    )
