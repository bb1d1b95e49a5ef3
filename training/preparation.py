"""A command -> a run made ready, before any process starts torch: what cannot be is said so that it costs nothing."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizer.encode import Encoder
from tokenizer.shards import ShardIndex
from training.batches import EvaluationBatches, TrainingBatches
from training.checkpoint import Checkpoints
from training.config import Recipe
from training.guard import Tolerance
from training.job import Intervals, Job, Length, found_in
from training.meter import require_wandb
from training.objectives import prediction, refuse_other_model
from training.optimizer import learning_rate
from training.read_ahead import ReadAhead
from training.retention import Retention
from training.run_folder import Plan, RunFolder, find_tokenizer, this_job
from training.sources import Storage
from training.watch import Watch

log = logging.getLogger("train")


def prepare(
    *,
    storage: Storage,
    output: Path,
    recipe: Recipe,
    length: Length,
    intervals: Intervals,
    retention: Retention,
    save_in_background: bool,
    tolerance: Tolerance,
    evaluation_tokens: int,
    configuration: dict[str, Any],
    tokenizer: Path | None,
    watch: Watch,
    resume: bool,
    overwrite: bool,
) -> Job:
    """Check everything that can be checked without torch, and write nothing. ValueError says what does not fit."""
    refuse_other_model(recipe.objective, recipe.model)
    if watch.wandb:
        require_wandb()
    shards, sequences = storage.folders[0], recipe.batch.sequences
    index, folder = ShardIndex.load(shards), RunFolder(output)
    tokenizer_file = find_tokenizer(tokenizer or shards / "tokenizer", index)
    training, evaluation = _batches(storage, recipe, index, tokenizer_file, evaluation_tokens)
    if sequences > training.windows:
        epoch = f"an epoch has {training.windows:,} sequences of {recipe.batch.sequence_length} tokens"
        raise ValueError(f"batch.sequences {sequences} of a step are too many: {epoch}; choose fewer or more data")
    fingerprint = training.sources.fingerprint
    begun = folder.is_begun(recipe, fingerprint, resume=resume, overwrite=overwrite)
    if not begun:
        _refuse_within(output, [recipe.from_pretrained, *storage.folders, tokenizer_file])
    checkpoints = Checkpoints(folder.checkpoints, retention, save_in_background)
    found = found_in(folder, checkpoints)
    plan, last, _ = found if begun else (None, None, None)
    if plan is None:
        plan = Plan(recipe, fingerprint, index.vocab_size, index.end_of_text_id, planned=(), begun_by=this_job())
    if recipe.model.config:
        plan.model_config()  # which refuses what is none
    if length.budget_seconds is None:
        max_steps = length.max_steps or max(1, training.windows // sequences)
        plan = _ending(plan, max_steps, last.step if last else 0)
        if max_steps <= recipe.data.warmup_steps:
            full = f"batch.sequence_length {recipe.batch.sequence_length}"
            log.warning("no step will have %s: data.warmup_steps %d are not over", full, recipe.data.warmup_steps)
    return Job(
        plan,
        folder,
        begun,
        length,
        intervals,
        ReadAhead(training),
        evaluation,
        checkpoints,
        configuration,
        tokenizer_file,
        tolerance,
        watch,
        found,
    )


def _refuse_within(output: Path, needed: Sequence[str | Path]) -> None:
    """ValueError if a file or folder that a run reads lies in its own, which is emptied when it begins anew."""
    for place in needed:
        if place and Path(place).resolve().is_relative_to(output.resolve()):
            line = f"{place} lies in {output}, which the run would empty"
            raise ValueError(f"{line}; copy it to another place, or choose another --output")


def _batches(
    storage: Storage, recipe: Recipe, index: ShardIndex, tokenizer_file: Path, evaluation_tokens: int
) -> tuple[TrainingBatches, EvaluationBatches | None]:
    """What the run trains on and what it is evaluated on; the latter is the validation split of the first folder."""
    length = recipe.batch.sequence_length
    predict = prediction(recipe.objective, recipe.attention, Encoder(tokenizer_file.parent), length)
    training = TrainingBatches(
        storage.streams("train"),
        sequence_length=length,
        sequences=recipe.batch.sequences,
        seed=recipe.seed,
        data=recipe.data,
        predict=predict,
    )
    if not evaluation_tokens:
        return training, None
    if not index.has_split("validation"):
        log.warning("%s has no validation split: there will be no held-out loss", storage.folders[0])
        return training, None
    held_out = storage.streams("validation", first=True)[0]
    return training, EvaluationBatches(held_out, sequence_length=length, max_tokens=evaluation_tokens, predict=predict)


def _ending(plan: Plan, max_steps: int, taken: int) -> Plan:
    if taken > max_steps:
        raise ValueError(
            f"the run has taken {taken} steps, more than the {max_steps} asked for; choose another --output, or "
            "--overwrite"
        )
    if max_steps == plan.max_steps:
        return plan
    if taken and taken == plan.max_steps:
        _refuse_no_rate(plan.ending(taken, max_steps), taken)
    # What was planned at steps that are lost, with the checkpoints of then, holds no more.
    kept = tuple(pair for pair in plan.planned if pair[0] <= taken)
    return replace(plan, planned=kept or plan.planned).ending(taken, max_steps)


def _refuse_no_rate(plan: Plan, taken: int) -> None:
    """ValueError where steps after the end of a run would change nothing, as its learning rate has come to 0."""
    peak = plan.recipe.optimizer.learning_rate
    rate = learning_rate(taken + 1, plan.planned, peak, plan.recipe.schedule)
    if not rate:
        raise ValueError(
            f"the run is at its end, step {taken}, and its learning rate at 0, where it would stay; train on from its "
            "export in another --output (--from_pretrained), or with a schedule.final_fraction above 0 from the start"
        )
    log.info("the learning rate of the steps after %d: %.2e, as at the end", taken, rate)
