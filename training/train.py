"""Shards -> a trained model: `deepspeed training/train.py --config FILE.yaml --shards SHARDS --output RUN`."""

import contextlib
import enum
import functools
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizer.command_line import run
from training import checks, nvme, processes, results, run_lock, steps
from training import engine as engines
from training.config import Attention, Batch, Compute, Data, Model, Objective, Optimizer, Recipe, Schedule
from training.guard import Guard, OnNan, Record, Tolerance
from training.model import read_pretrained
from training.optimizer import learning_rate
from training.run_length import replanned, with_known_length
from training.sample_chain import Chain
from training.stopping import STOPPED, StopRequest
from training.watch import Watch
from training.zero_settings import read_configuration

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.job import Job
    from training.marker import Checkpoint
    from training.meter import Meter, Row
    from training.processes import Processes
    from training.samples import Samples

DEFAULTS = Recipe(Model(), Batch(), Optimizer(), Schedule(), seed=0)
DEFAULT_WATCH, DEFAULT_TOLERANCE = Watch(), Tolerance()
log = logging.getLogger("train")


def main(
    *,
    shards: list[str],
    output: str,
    model: Model = DEFAULTS.model,
    batch: Batch = DEFAULTS.batch,
    optimizer: Optimizer = DEFAULTS.optimizer,
    schedule: Schedule = DEFAULTS.schedule,
    compute: Compute = DEFAULTS.compute,
    from_pretrained: str = "",
    seed: int = DEFAULTS.seed,
    data: Data = DEFAULTS.data,
    objective: Objective = DEFAULTS.objective,
    attention: Attention = DEFAULTS.attention,
    verify: bool = False,
    cache: str | None = None,
    cache_bytes: int = 64 << 30,
    max_steps: int | None = None,
    train_minutes: float | None = None,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    keep_best: bool = True,
    keep_every: int = 0,
    save_in_background: bool = True,
    evaluate_every: int = 500,
    evaluation_tokens: int = 1 << 20,
    on_nan: OnNan = DEFAULT_TOLERANCE.on_nan,
    bad_steps: int = DEFAULT_TOLERANCE.in_a_row,
    spike_factor: float = DEFAULT_TOLERANCE.spike_factor,
    watch: Watch = DEFAULT_WATCH,
    resume: Literal["auto", "never"] = "auto",
    deepspeed: str = engines.DEFAULT_CONFIGURATION,
    tokenizer: str | None = None,
    threads: int = 0,
    local_rank: int = -1,
    overwrite: bool = False,
) -> int:
    """Train a language model from scratch on token shards, from one CPU to many GPUs.

    A run goes on from its last sound checkpoint when the same command is given again, with as many processes and at
    whichever ZeRO stage it is given; a finished one is left as it is.

    Args:
        shards: folders that write_shards wrote, all with one tokenizer; or URIs of such, as s3://bucket/folder.
        output: folder of the run.
        model: shape of the transformer.
        batch: what one step sees.
        optimizer: AdamW, or Muon with it.
        schedule: learning rate over the run.
        compute: precision, compilation, what is traded for memory.
        from_pretrained: folder of a `transformers` model to go on from, instead of fresh weights; its tokenizer must
            be that of the shards.
        seed: of weights, data order and dropout.
        data: weights of several folders, how far they are shuffled, sequence-length warm-up.
        objective: what is predicted.
        attention: sequence = across the borders of documents; document = it and positions begin anew at each.
        verify: hash all shards before the first step; else each is hashed when it is first read, once a machine.
        cache: folder for copies of shards in remote storage (s3://…), for all processes of a machine, so with several
            machines best on a disk of each; default: OUTPUT.cache.
        cache_bytes: bound on the copies.
        max_steps: optimizer steps of the whole run; without it and train_minutes, one epoch.
        train_minutes: length of the run where max_steps is not given: steps are timed first, as many planned as fit,
            and their number revised at checkpoints; evaluations and checkpoints come on top.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep_checkpoints: how many of the newest are kept.
        keep_best: keep the one of the lowest held-out loss too, of those saved at an evaluation.
        keep_every: keep those at multiples of so many steps for good; 0 = none.
        save_in_background: train on while a checkpoint is written, from a copy; needs 12 bytes a parameter, divided by
            the processes, until then.
        evaluate_every: steps between evaluations; the last step always has one.
        evaluation_tokens: bound on the tokens of one evaluation; 0 = no evaluation.
        on_nan: a step whose gradient is not finite is skipped and counted; after bad_steps of them in a row the run
            goes back to the last checkpoint and leaves that data out (rewind), or ends (skip). stop: ends at once.
        bad_steps: in a row, after which on_nan decides.
        spike_factor: a gradient norm is as bad as NaN above that many times the larger of two: the median of the last
            128 good steps, once there are 16, and what gradients are clipped to (1 where they are not); 0 = never.
        watch: what the run shows of itself.
        resume: auto goes on from the last complete checkpoint; never refuses a folder that holds a run.
        deepspeed: DeepSpeed configuration, of ZeRO only; the rest is decided here.
        tokenizer: folder of the tokenizer.json that wrote the shards; default: SHARDS/tokenizer.
        threads: of torch on CPUs, a process; 0 = OMP_NUM_THREADS, else cores divided by local processes.
        local_rank: set by the launcher.
        overwrite: begin anew, whatever run `output` holds.
    """
    from training.job import Intervals, Length
    from training.preparation import prepare
    from training.retention import Retention
    from training.sources import Storage

    if not _is_first():
        log.setLevel(logging.ERROR)
    with processes.first_speaks(), processes.loss_told():
        if not output:
            raise ValueError("output is empty; name the folder of the run")
        for name, value in (("evaluation_tokens", evaluation_tokens), ("cache_bytes", cache_bytes)):
            if value < 0:
                raise ValueError(f"{name} {value} is below 0; choose 0 or more")
        world_size = processes.world_size()
        storage = Storage(shards, cache=Path(cache or f"{output}.cache"), cache_bytes=cache_bytes)
        if storage.is_remote and not cache and processes.on_several_machines():
            log.warning("copies of shards go to %s.cache, for all machines; --cache is best on a disk of each", output)
        model = read_pretrained(from_pretrained, model, storage.folders[0]) if from_pretrained else model.read()
        recipe = Recipe(model, batch, optimizer, schedule, seed, compute, from_pretrained, data, objective, attention)
        configuration = read_configuration(deepspeed, recipe, world_size)
        prepared = functools.partial(
            prepare,
            storage=storage,
            output=Path(output),
            recipe=recipe,
            length=Length(max_steps, train_minutes),
            intervals=Intervals(checkpoint_every, evaluate_every),
            retention=Retention(keep_checkpoints, keep_best, keep_every),
            save_in_background=save_in_background,
            tolerance=Tolerance(on_nan, bad_steps, spike_factor),
            evaluation_tokens=evaluation_tokens,
            watch=watch,
            configuration=configuration,
            tokenizer=Path(tokenizer) if tokenizer else None,
            resume=resume == "auto",
            overwrite=overwrite,
        )
        job = prepared()
        if job.is_done:
            if _is_first():
                print(f"already trained\n{results.told(job)}", flush=True)
            return 0
        everyone, ending = processes.join(local_rank, threads, compute.precision), processes.Ending()
        stop = StopRequest()
        timed, trained, finished = None, None, False
        with (
            run_lock.held(job.folder.path, everyone, stop) as is_held,
            nvme.own_folders(configuration, Path(output), everyone.rank, everyone.world_size) as configuration,
        ):
            if is_held:
                job = prepared() if everyone.from_first(job.is_outdated) else job
                everyone.refuse_differences(job.shared)
                finished = everyone.from_first(job.is_done)
            if is_held and not finished:
                checks.require_all(job.streams, everyone)
                checks.share(job.streams, everyone)
                if not verify or checks.verify(job.streams, everyone, stop):
                    timed = with_known_length(replace(job, configuration=configuration), everyone, stop)
                trained = _train(timed, everyone, stop) if timed else None
            processes.leave()  # what follows may take long, and only the first has to do with it
            if trained and everyone.is_first:
                results.finish(trained)
        finished = finished or trained is not None
    if _is_first():
        stopped = "stopped and saved" if timed else "stopped before the first step, nothing is written"
        print(results.told(job) if finished else f"{stopped}; the same command goes on ({output})", flush=True)
    ending.code = 0 if finished else STOPPED
    return ending.code


class Outcome(enum.Enum):
    """How the loop ended."""

    FINISHED = enum.auto()
    STOPPED = enum.auto()
    GAVE_UP = enum.auto()


def _train(job: "Job", everyone: "Processes", stop: StopRequest) -> "Job | None":
    """Take the run from where it is to its end, with the plan of then; None if it was asked to stop before."""
    while True:
        last = job.last_checkpoint(everyone)
        engine = _engine_from(job, last, everyone)
        guard = Guard(job.tolerance, last.guard if last else Record())
        guard.attach(engine)
        step = last.step if last else 0
        results.announce(job, engine, everyone, step)
        meter = _meter(job, step) if everyone.is_first else None
        with contextlib.closing(job.training):
            outcome, step = loop(job, engine, everyone, meter, stop, guard, last)
        if meter:
            meter.close()
        if outcome is not Outcome.GAVE_UP:
            break
        skipped = guard.skipped
        engines.discard(engine)
        del engine, guard
        engines.collect()
        job = job.rewound(step, skipped, everyone)
    return job if outcome is Outcome.FINISHED else None


def _engine_from(job: "Job", last: "Checkpoint | None", everyone: "Processes") -> "DeepSpeedEngine":
    """The folder laid out, and an engine that stands where the checkpoint does, whoever wrote that.

    The engine comes first: what cannot be made of the settings leaves the folder as it was.
    """
    engine = engines.build(job.plan.recipe, job.plan.model_config(), job.configuration, everyone)
    everyone.wait()
    if everyone.is_first:
        job.folder.begin(job.plan, job.tokenizer, begun=job.begun)
        job.checkpoints.remove_incomplete()
    everyone.wait()
    if last is not None:
        job.checkpoints.load(engine, last, everyone)
    job.fit(engine.module)
    return engine


def loop(
    job: "Job",
    engine: "DeepSpeedEngine",
    everyone: "Processes",
    meter: "Meter | None",
    stop: StopRequest,
    guard: Guard,
    last: "Checkpoint | None",
) -> tuple[Outcome, int]:
    """The training loop, from the `last` checkpoint to the end of the plan, and the step that it came to.

    All that it depends on is plan and step: data, learning rate and randomness are functions of them. A bad step
    changes nothing; what is saved is the last step, and none in a row of bad ones that may have to be gone back from.
    An evaluation that a request to stop leaves off is made when the run goes on.
    """
    from training.gauges import Gauges

    recipe, plan, chain = job.plan.recipe, job.plan, last.chain if last else Chain()
    step = chain.step
    gauges, samples = Gauges(engine, job.training, everyone, recipe.objective), job.samples(step)
    if last is not None and last.validation_loss is None and job.is_to_evaluate(step, plan.max_steps):
        figures = _evaluated(job, engine, everyone, samples, step, stop)
        if figures is None:
            return Outcome.STOPPED, step
        if meter:
            meter.complete(step, figures)
        job.checkpoints.record_loss(last, figures["validation_loss"], everyone)
    left_off = False
    while step < plan.max_steps:
        begun = time.monotonic()
        step += 1
        rate = learning_rate(step, plan.planned, recipe.optimizer.learning_rate, recipe.schedule)
        steps.seed_step(recipe.seed, step, everyone.rank)
        guard.begin()
        gauges.begin()
        mine = steps.take_step(engine, job.training, everyone, plan.consumed(step), rate)
        chain = chain.after(job.numbers(step))
        written, waits = job.checkpoints.written, gauges.waits()
        losses, stops, refused, done, *waits = everyone.total(
            [mine, stop.came, guard.refused(engine), written, *waits]
        )
        row = _row(job, engine, step, losses / everyone.world_size, rate, time.monotonic() - begun)
        row |= gauges.read(recipe.batch.tokens, job.training.length_at(plan.consumed(step)), row["seconds"], waits)
        row |= guard.settle(engine, refused > 0) | plan.rewinds_told(step)
        if job.is_to_evaluate(step, plan.max_steps):
            figures = None if stops else _evaluated(job, engine, everyone, samples, step, stop)
            left_off = figures is None
            row |= figures or {}
        if meter:
            meter.record(row)
        if guard.gives_up or done == everyone.world_size:
            job.checkpoints.finish(everyone)
        if guard.gives_up:
            return _gave_up(job, row)
        due = step % job.intervals.checkpoint_every == 0 and not guard.in_a_row
        if due or step == plan.max_steps or stops or left_off:
            plan = replanned(job, plan, everyone, meter, step)
            saved = job.checkpoint(step, everyone, guard.record, chain, row.get("validation_loss"))
            job.checkpoints.save(engine, saved, everyone)
        if stops or left_off:
            break
    job.checkpoints.finish(everyone)
    return Outcome.FINISHED if step == plan.max_steps and not left_off else Outcome.STOPPED, step


def _evaluated(
    job: "Job", engine: "DeepSpeedEngine", everyone: "Processes", samples: "Samples", step: int, stop: StopRequest
) -> "Row | None":
    """Held-out figures and samples of a step; None if one process was asked to stop meanwhile."""
    assert job.evaluation is not None

    def stops() -> bool:
        return everyone.total([stop.came])[0] > 0

    found = steps.evaluate(engine, job.evaluation, everyone, stops)
    return found if found and samples.write(engine, everyone, step, stops) else None


def _gave_up(job: "Job", row: "Row") -> tuple[Outcome, int]:
    """Too many bad steps: go back, or ValueError where the run should end."""
    step, wanted = int(row["step"]), job.tolerance.on_nan
    if wanted == "rewind":
        return Outcome.GAVE_UP, step
    many = "" if wanted == "stop" else f", the last of {job.tolerance.in_a_row} bad ones in a row (--bad_steps),"
    raise ValueError(
        f"step {step}{many} has loss {row['loss']} and gradient norm {row.get('gradient_norm')}, and --on_nan is "
        f"{wanted}; "
        "give the same command with --on_nan rewind, or begin anew with a learning rate below "
        f"{job.plan.recipe.optimizer.learning_rate} (--optimizer.learning_rate)"
    )


def _row(job: "Job", engine: "DeepSpeedEngine", step: int, loss: float, rate: float, seconds: float) -> "Row":
    recipe = job.plan.recipe
    tokens, norm = recipe.batch.tokens, engine.get_global_grad_norm()
    row: Row = {
        "step": step,
        "loss": loss,
        "tokens": step * tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "learning_rate": rate,
        "seconds": round(seconds, 4),
        "epoch": round(job.plan.seen(step) / job.training.windows, 6),
    } | job.training.epochs(job.plan.seen(step))
    return row if norm is None else row | {"gradient_norm": float(norm)}


def _meter(job: "Job", step: int) -> "Meter":
    from training import data_card
    from training.meter import Meter
    from training.objectives import FITTING

    sources = job.training.sources
    shares = zip(sources.all, sources.mixture.shares, strict=True)
    described = [(one.stream.index, one.stream.folder, share, one.name) for one, share in shares]
    job.folder.record_data([data_card.describe(*one) for one in described])
    held_out = job.evaluation.bytes_per_token if job.evaluation else 0.0
    hides = job.plan.recipe.objective.kind in FITTING  # and then losses add up to no likelihood of the text
    return Meter(
        job.folder.metrics,
        job.folder.tensorboard,
        step=step,
        max_steps=job.plan.max_steps,
        bytes_per_token=(0.0, 0.0) if hides else (sources.bytes_per_token, held_out),
        wandb=job.watch.wandb,
    )


def _is_first() -> bool:
    """Whether this process speaks for all; known before they meet."""
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":
    run(main)
