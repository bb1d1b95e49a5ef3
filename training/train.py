"""Shards -> a trained model: `deepspeed training/train.py --config FILE.yaml --shards SHARDS --output RUN`."""

import logging
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizer.command_line import run
from training import data_card, processes, steps
from training import engine as engines
from training.config import Batch, Model, Optimizer, Recipe, Schedule
from training.optimizer import learning_rate
from training.watch import Watch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.job import Job
    from training.meter import Meter, Row
    from training.processes import Processes, StopRequest
    from training.run_folder import Plan

STOPPED = 75  # exit code of a run that saved because it was asked to stop: try again (EX_TEMPFAIL), it goes on
PROBE_SHARE = 0.04  # of the minutes to train, spent on timing steps before

DEFAULTS = Recipe(Model(), Batch(), Optimizer(), Schedule(), seed=0)
DEFAULT_WATCH = Watch()
log = logging.getLogger("train")


def main(
    *,
    shards: str,
    output: str,
    model: Model = DEFAULTS.model,
    batch: Batch = DEFAULTS.batch,
    optimizer: Optimizer = DEFAULTS.optimizer,
    schedule: Schedule = DEFAULTS.schedule,
    seed: int = DEFAULTS.seed,
    max_steps: int | None = None,
    train_minutes: float | None = None,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    evaluate_every: int = 500,
    evaluation_tokens: int = 1 << 20,
    watch: Watch = DEFAULT_WATCH,
    resume: Literal["auto", "never"] = "auto",
    deepspeed: str = engines.DEFAULT_CONFIGURATION,
    tokenizer: str | None = None,
    threads: int = 0,
    local_rank: int = -1,
    overwrite: bool = False,
) -> int:
    """Train a language model from scratch on token shards, from one CPU to many GPUs.

    A run goes on from its last checkpoint when the same command is given again; a finished one is left as it is.

    Args:
        shards: folder that write_shards wrote.
        output: folder of the run.
        model: shape of the transformer.
        batch: what one step sees.
        optimizer: AdamW.
        schedule: learning rate over the run.
        seed: of weights, data order and dropout.
        max_steps: optimizer steps of the whole run; without it and train_minutes, one epoch.
        train_minutes: length of the run where max_steps is not given: steps are timed first, as many planned as fit,
            and their number revised at checkpoints; evaluations and checkpoints come on top.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep_checkpoints: how many of the newest are kept.
        evaluate_every: steps between evaluations; the last step always has one.
        evaluation_tokens: bound on the tokens of one evaluation; 0 = no evaluation.
        watch: what the run shows of itself.
        resume: auto goes on from the last complete checkpoint; never refuses a folder that holds a run.
        deepspeed: DeepSpeed configuration, of ZeRO only; the rest is decided here.
        tokenizer: folder of the tokenizer.json that wrote the shards; default: SHARDS/tokenizer.
        threads: of torch on CPUs, a process; 0 = OMP_NUM_THREADS, else cores divided by local processes.
        local_rank: set by the launcher.
        overwrite: begin anew, whatever run `output` holds.
    """
    from training.job import Intervals, Length, prepare

    if int(os.environ.get("RANK", "0")):
        log.setLevel(logging.ERROR)  # the first process speaks for all
    with processes.first_speaks():
        batch.micro_size(int(os.environ.get("WORLD_SIZE", "1")))
        job = prepare(
            shards=Path(shards),
            output=Path(output),
            recipe=Recipe(model, batch, optimizer, schedule, seed),
            length=Length(max_steps, train_minutes),
            intervals=Intervals(checkpoint_every, evaluate_every),
            keep_checkpoints=keep_checkpoints,
            evaluation_tokens=evaluation_tokens,
            watch=watch,
            configuration=engines.read_configuration(deepspeed),
            tokenizer=Path(tokenizer) if tokenizer else None,
            resume=resume == "auto",
            overwrite=overwrite,
        )
        if job.is_done:
            _say_once(f"already trained\n{_results(job)}")
            return 0
        everyone = processes.join(local_rank, threads)
        job = _with_known_length(job, everyone)
        finished = _train(job, everyone)
        processes.leave()
    _say_once(_results(job) if finished else f"stopped and saved; the same command goes on ({output})")
    return 0 if finished else STOPPED


def _train(job: "Job", everyone: "Processes") -> bool:
    """Take the run from where it is to its end; False if it was asked to stop before."""
    from training.meter import Meter

    last = job.last_checkpoint(everyone)
    everyone.wait()
    if everyone.is_first:
        job.folder.begin(job.plan, job.tokenizer, begun=job.begun)
        job.checkpoints.remove_incomplete()
    everyone.wait()
    engine = engines.build(job.plan.recipe, job.plan.model_config(), job.configuration, everyone)
    if last is not None:
        job.checkpoints.load(engine, last)
    step = last.step if last else 0
    _announce(job, engine, everyone, step)
    meter = None
    if everyone.is_first:
        job.folder.record_data(data_card.describe(job.training.stream.index, job.training.stream.folder))
        meter = Meter(
            job.folder.metrics,
            job.folder.tensorboard,
            step=step,
            max_steps=job.plan.max_steps,
            bytes_per_token=job.training.stream.text_bytes / len(job.training.stream),
            wandb=job.watch.wandb,
        )
    finished = loop(job, engine, everyone, meter, processes.StopRequest(), step)
    if finished and everyone.is_first:
        _finish(job)
    everyone.wait()
    return finished


def loop(
    job: "Job",
    engine: "DeepSpeedEngine",
    everyone: "Processes",
    meter: "Meter | None",
    stop: "StopRequest",
    step: int,
) -> bool:
    """The training loop, from `step` to the end of the plan; False if asked to stop before. The last step is saved.

    All that it depends on is plan and step: data, learning rate and randomness are functions of them.
    """
    from training.gauges import Gauges

    recipe, plan = job.plan.recipe, job.plan
    gauges = Gauges(engine, job.training, everyone, recipe.batch.sequence_length)
    samples = job.samples(step)
    while step < plan.max_steps:
        begun = time.monotonic()
        step += 1
        rate = learning_rate(step, plan.planned, recipe.optimizer.learning_rate, recipe.schedule)
        steps.seed_step(recipe.seed, step, everyone.rank)
        mine = steps.take_step(engine, gauges.batches, everyone, (step - 1) * recipe.batch.sequences, rate)
        losses, stops = everyone.total([mine, stop.came])
        row = _row(job, engine, step, losses / everyone.world_size, rate, time.monotonic() - begun)
        row |= gauges.read(recipe.batch.tokens, row["seconds"])
        if job.evaluation and (step % job.intervals.evaluate_every == 0 or step == plan.max_steps):
            row |= steps.evaluate(engine, job.evaluation, everyone)
            samples.write(engine, everyone, step)
        if meter:
            meter.record(row)
        if step % job.intervals.checkpoint_every == 0 or step == plan.max_steps or stops:
            plan = _replanned(job, plan, everyone, meter, step)
            job.checkpoints.save(engine, job.checkpoint(step, everyone), everyone)
        if stops:
            break
    if meter:
        meter.close()
    return step == plan.max_steps


def _replanned(job: "Job", plan: "Plan", everyone: "Processes", meter: "Meter | None", step: int) -> "Plan":
    """The plan, with a new end if the run's minutes ask for one; on the disk, as the metrics, before a checkpoint."""
    if meter:
        meter.flush()
        if job.length.budget_seconds is not None and step < plan.max_steps:
            left = job.length.budget_seconds - meter.seconds
            plan = plan.keeping_time(step, left, meter.seconds_per_step)
            meter.max_steps = plan.max_steps
            job.folder.record(plan)
    return everyone.from_first(plan)


def _row(job: "Job", engine: "DeepSpeedEngine", step: int, loss: float, rate: float, seconds: float) -> "Row":
    recipe = job.plan.recipe
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss of step {step} is {loss}; begin anew with a learning rate below "
            f"{recipe.optimizer.learning_rate} (--optimizer.learning_rate)"
        )
    tokens, norm = recipe.batch.tokens, engine.get_global_grad_norm()
    row: Row = {
        "step": step,
        "loss": loss,
        "tokens": step * tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "learning_rate": rate,
        "seconds": round(seconds, 4),
        "epoch": round(step * recipe.batch.sequences / job.training.windows, 6),
    }
    return row if norm is None else row | {"gradient_norm": float(norm)}


def _with_known_length(job: "Job", everyone: "Processes") -> "Job":
    """The job with its steps counted; where only minutes are given, by timing an engine that is thrown away.

    The count is what the learning rate follows. It is revised at checkpoints, where the machine turns out faster or
    slower than it was, and each revision is part of the plan: the schedule stays a function of plan and step.
    """
    if not job.must_be_timed:
        return job
    assert job.length.budget_seconds is not None
    probe_seconds = PROBE_SHARE * job.length.budget_seconds
    if everyone.is_first:
        log.info("timing steps for %.0f s, to plan %.0f s of training", probe_seconds, job.length.budget_seconds)
    engine = engines.build(job.plan.recipe, job.plan.model_config(), job.configuration, everyone)
    seconds = steps.seconds_per_step(engine, job.training, everyone, probe_seconds)
    engine.destroy()
    return replace(job, plan=job.plan.ending(0, max(1, round(job.length.budget_seconds / seconds))))


def _announce(job: "Job", engine: "DeepSpeedEngine", everyone: "Processes", step: int) -> None:
    if not everyone.is_first:
        return
    recipe, stream = job.plan.recipe, job.training.stream
    log.info(
        "%s of %s parameters; %s tokens of data; %d process%s on %s in %s, ZeRO stage %d",
        recipe.model.architecture,
        f"{_parameters(job):,}",
        f"{len(stream):,}",
        everyone.world_size,
        "es" if everyone.world_size > 1 else "",
        everyone.device.type,
        everyone.precision,
        engine.zero_optimization_stage(),
    )
    log.info(
        "%s steps of %s tokens, %.2f epochs%s",
        f"{job.plan.max_steps:,}",
        f"{recipe.batch.tokens:,}",
        job.plan.max_steps * recipe.batch.sequences / job.training.windows,
        f"; going on after step {step:,}" if step else "",
    )


def _parameters(job: "Job") -> int:
    """Weights of the model, counted without allocating them."""
    import torch

    from training.model import build, count_parameters

    with torch.device("meta"):
        return count_parameters(build(job.plan.model_config(), seed=0))


def _finish(job: "Job") -> None:
    """Export the model and record the results, from what the run left on the disk."""
    from training.export import export
    from training.meter import read_metrics
    from training.run_page import write_page

    export(job.folder, job.folder.export)
    write_page(job.folder)
    rows = read_metrics(job.folder.metrics)
    seconds = sum(row["seconds"] for row in rows)
    summary: dict[str, Any] = {
        "steps": rows[-1]["step"],
        "tokens": rows[-1]["tokens"],
        "parameters": _parameters(job),
        "loss": rows[-1]["loss"],
        "tokens_per_second": round(rows[-1]["tokens"] / seconds, 1),
        "training_seconds": round(seconds, 1),
    }
    names = ("validation_loss", "perplexity", "bits_per_byte")
    job.folder.finish(summary | {name: rows[-1][name] for name in names if name in rows[-1]})


def _results(job: "Job") -> str:
    """The summary of a finished run, for people."""
    summary = job.folder.summary
    assert summary is not None
    lines = []
    if "validation_loss" in summary:
        lines += [
            f"held-out loss   {summary['validation_loss']:.4f} nats a token",
            f"perplexity      {summary['perplexity']:.2f}",
            f"bits per byte   {summary['bits_per_byte']:.4f}",
        ]
    lines += [
        f"training loss   {summary['loss']:.4f} at step {summary['steps']:,}, {summary['tokens']:,} tokens",
        f"tokens/s        {summary['tokens_per_second']:,.0f}",
        f"model           {job.folder.export}",
        f"metrics         {job.folder.metrics}",
        f"curves          {job.folder.page}",
    ]
    return "\n".join(lines)


def _say_once(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


if __name__ == "__main__":
    run(main)
