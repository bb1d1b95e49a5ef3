"""A run made ready before any process starts torch: its plan, data and folder, checked so that faults cost nothing."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer.shards import ShardIndex, TokenStream
from training.batches import EvaluationBatches, TrainingBatches
from training.checkpoint import Checkpoint, Checkpoints
from training.config import Recipe
from training.engine import zero_stage
from training.meter import require_wandb
from training.processes import Processes
from training.run_folder import Plan, RunFolder, find_tokenizer
from training.samples import Samples
from training.watch import Watch

log = logging.getLogger("train")


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
    training: TrainingBatches
    evaluation: EvaluationBatches | None
    checkpoints: Checkpoints
    configuration: dict[str, Any]
    tokenizer: Path
    watch: Watch

    @property
    def is_done(self) -> bool:
        """Whether the run reached the end of this plan before, and its model is there."""
        summary = self.folder.summary if self.begun and self.folder.export.is_dir() else None
        return summary is not None and summary["steps"] == self.plan.max_steps

    @property
    def must_be_timed(self) -> bool:
        """Whether the number of steps is not known yet."""
        return self.plan.max_steps == 0

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

    def samples(self, step: int) -> Samples:
        """What writes samples from `step` on."""
        plan = self.plan
        return Samples(
            self.folder.samples,
            self.tokenizer,
            end_of_text_id=plan.end_of_text_id,
            context_tokens=plan.recipe.batch.sequence_length,
            watch=self.watch,
            seed=plan.recipe.seed,
            step=step,
        )

    def last_checkpoint(self, processes: Processes) -> Checkpoint | None:
        """Where to go on from; ValueError if these processes cannot."""
        last = self.checkpoints.latest_complete() if self.begun else None
        if last is not None:
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
    watch: Watch,
    resume: bool,
    overwrite: bool,
) -> Job:
    """Check everything that can be checked without torch, and write nothing. ValueError says what does not fit."""
    if watch.wandb:
        require_wandb()
    index, folder = ShardIndex.load(shards), RunFolder(output)
    tokenizer_file = find_tokenizer(tokenizer or shards / "tokenizer", index)
    sequence_length, sequences = recipe.batch.sequence_length, recipe.batch.sequences
    training = TrainingBatches(
        TokenStream(shards, "train"), sequence_length=sequence_length, sequences=sequences, seed=recipe.seed
    )
    evaluation = None
    if evaluation_tokens and index.has_split("validation"):
        evaluation = EvaluationBatches(
            TokenStream(shards, "validation"), sequence_length=sequence_length, max_tokens=evaluation_tokens
        )
    elif evaluation_tokens:
        log.warning("%s has no validation split: there will be no held-out loss", shards)
    begun = folder.is_begun(recipe, index, resume=resume, overwrite=overwrite)
    checkpoints = Checkpoints(folder.checkpoints, keep_checkpoints)
    last = checkpoints.latest_complete() if begun else None
    plan = folder.plan if begun else None
    if plan is None:
        plan = Plan(recipe, index.fingerprint("train"), index.vocab_size, index.end_of_text_id, planned=())
    if length.budget_seconds is None:
        max_steps = length.max_steps or max(1, training.windows // sequences)
        plan = _ending(plan, max_steps, last.step if last else 0)
    return Job(
        plan, folder, begun, length, intervals, training, evaluation, checkpoints, configuration, tokenizer_file, watch
    )


def _ending(plan: Plan, max_steps: int, taken: int) -> Plan:
    if taken > max_steps:
        raise ValueError(
            f"the run has taken {taken} steps, more than the {max_steps} asked for; choose another --output, or "
            "--overwrite"
        )
    return plan.ending(taken, max_steps)
