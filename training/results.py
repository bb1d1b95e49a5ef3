"""What is said of a run at its beginning and its end, and the model and the page that it leaves."""

import logging
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.job import Job
    from training.meter import Row
    from training.processes import Processes
    from training.sources import Sources

# Of shards that are hashed, and beside what is read of them.
WORTH_TELLING_BYTES, WORTH_TELLING_TIMES = 1e12, 4
WORTH_TELLING_ROUNDING = 0.1
log = logging.getLogger("train")


def announce(job: "Job", engine: "DeepSpeedEngine", everyone: "Processes", step: int) -> None:
    """What is about to be trained, on what, for how long."""
    if not everyone.is_first:
        return
    recipe = job.plan.recipe
    log.info(
        "%s of %s parameters; %s tokens of data; %d process%s on %s in %s, ZeRO stage %d",
        job.plan.model_config().model_type,
        f"{_parameters(job):,}",
        f"{job.training.tokens:,}",
        everyone.world_size,
        "es" if everyone.world_size > 1 else "",
        everyone.device.type,
        everyone.precision + (" and bf16" if everyone.autocast else ""),
        engine.zero_optimization_stage(),
    )
    log.info(
        "%s steps of %s tokens, %.2f epochs%s",
        f"{job.plan.max_steps:,}",
        f"{recipe.batch.tokens:,}",
        job.plan.max_steps * recipe.batch.sequences / job.training.windows,
        f"; going on after step {step:,}" if step else "",
    )
    if recipe.model.unused:
        log.warning("%s: not used, the model's own configuration decides", ", ".join(recipe.model.unused))
    sources = job.training.sources
    if len(sources.all) > 1:
        shares = zip(sources.all, sources.mixture.shares, strict=True)
        told = ", ".join(f"{share:.1%} of {source.name}" for source, share in shares)
        log.info("sequences are mixed: %s; held-out figures are of the first", told)
        _tell_rounding(sources)
    _tell_hashing(job, step)


def _tell_rounding(sources: "Sources") -> None:
    """A line where the parts in which sequences are mixed give a folder far more or less than its weight does."""
    mixture = sources.mixture
    times = [share / asked for share, asked in zip(mixture.shares, mixture.asked, strict=True)]
    named = zip(sources.all, times, strict=True)
    off = [f"{source.name} {many:.2f} times" for source, many in named if abs(many - 1) > WORTH_TELLING_ROUNDING]
    if off:
        words = "sequences are mixed in parts of %s: %s as often as its weight asks"
        log.warning(words, f"{mixture.BLOCK:,}", ", ".join(off))


def _tell_hashing(job: "Job", step: int) -> None:
    """A line where a machine will hash far more of the shards than it reads of them, as each is before its first use.

    Of n shards, m windows at random are in about n (1 - exp(-m / n)).
    """
    if job.plan.recipe.data.shuffle_tokens:
        return
    batch, sources = job.plan.recipe.batch, job.training.sources
    windows = (job.plan.max_steps - step) * batch.sequences
    hashed = read = 0.0
    for source, share in zip(sources.all, sources.mixture.shares, strict=True):
        shards = source.stream.shards
        hashed += sum(shard.file_bytes for shard in shards) * -math.expm1(-windows * share / len(shards))
        read += windows * share * batch.sequence_length * source.stream.dtype.itemsize
    if hashed > max(WORTH_TELLING_BYTES, WORTH_TELLING_TIMES * read):
        words = "%.1f TB of shards will be hashed on each machine, and %.1f TB read; see --data.shuffle_tokens"
        log.info(words, hashed / 1e12, read / 1e12)


def _parameters(job: "Job") -> int:
    """Weights of the model, counted without allocating them."""
    import torch

    from training.model import build, count_parameters

    with torch.device("meta"):
        return count_parameters(build(job.plan.model_config(), seed=0))


def finish(job: "Job") -> None:
    """Export the model and record the results, from what the run left on the disk."""
    from training.export import export
    from training.meter import read_metrics
    from training.run_page import write_page

    export(job.folder, job.folder.export)
    write_page(job.folder)
    rows = read_metrics(job.folder.metrics)
    if not rows:
        lost = f"{job.folder.metrics} holds no step, though the run took {job.plan.max_steps:,}"
        raise ValueError(f"{lost}; put it back (the model is in {job.folder.export})")
    job.folder.finish({"parameters": _parameters(job)} | figures(rows))


def figures(rows: "list[Row]") -> dict[str, Any]:
    """What a run came to, by its rows, one or more: its last loss and held-out figures, where they are finite."""
    from training.meter import last_finite, tokens_per_second

    last, trained = rows[-1], last_finite(rows, "loss")
    held_out = {name: last.get(name, math.nan) for name in ("validation_loss", "perplexity", "bits_per_byte")}
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "loss": trained["loss"] if trained else None,
        "loss_step": trained["step"] if trained else None,
        "tokens_per_second": round(tokens_per_second(rows), 1),
        "training_seconds": round(sum(row["seconds"] for row in rows), 1),
    } | {name: value for name, value in held_out.items() if math.isfinite(value)}


def told(job: "Job") -> str:
    """The summary of a finished run, for people."""
    summary = job.folder.summary
    assert summary is not None
    lines = []
    if "validation_loss" in summary:
        lines.append(f"held-out loss   {summary['validation_loss']:.4f} nats a token")
    if "bits_per_byte" in summary:
        lines += [
            f"perplexity      {summary['perplexity']:.2f}",
            f"bits per byte   {summary['bits_per_byte']:.4f}",
        ]
    if summary["loss"] is not None:
        lines.append(f"training loss   {summary['loss']:.4f} at step {summary.get('loss_step', summary['steps']):,}")
    lines += [
        f"trained         {summary['steps']:,} steps, {summary['tokens']:,} tokens",
        f"tokens/s        {summary['tokens_per_second']:,.0f}",
        f"model           {job.folder.export}",
        f"metrics         {job.folder.metrics}",
        f"curves          {job.folder.page}",
    ]
    return "\n".join(lines)
