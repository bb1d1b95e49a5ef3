"""The parts of the training loop: one optimizer step, one evaluation, and the timing of steps before a run."""

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine
    from transformers import PreTrainedModel

    from training.batches import EvaluationBatches
    from training.meter import Row
    from training.micro_batch import MicroBatch
    from training.processes import Processes
    from training.read_ahead import ReadAhead
    from training.stopping import StopRequest

PROBE_WARMUP_STEPS, PROBE_STEPS = 2, 4


def seed_step(seed: int, step: int, rank: int) -> None:
    """Key the random generators (dropout) by seed, step and rank.

    So they have no state to save: a resumed step draws what the unbroken run would have drawn.
    """
    import torch

    digest = hashlib.blake2b(f"{seed}:{step}:{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def take_step(
    engine: "DeepSpeedEngine", batches: "ReadAhead", processes: "Processes", consumed: int, learning_rate: float
) -> float:
    """One optimizer step on the global batch that begins at sequence `consumed`.

    The gradient is that of the sum over all labels of the global batch divided by their number, however the batch is
    cut among processes and micro-batches and however unequally labels are spread over them. Returns this process's
    part of the loss in nats a token: the mean over processes is that of the global batch.

    Args:
        learning_rate: of AdamW; Muon's goes up and down with it.
    """
    import torch

    _set_learning_rate(engine, learning_rate)
    size = engine.train_micro_batch_size_per_gpu()
    share = list(batches.share(consumed, size, processes.rank, processes.world_size))
    later = (summed_losses(engine, batch) for batch in share[1:])
    first = summed_losses(engine, share[0])
    # Processes add up their labels while the device is busy with the first.
    total, scale = torch.zeros((), device=engine.device), _scale(share, processes)
    for loss, nats in itertools.chain([first], later):
        engine.backward(loss * scale, scale_wrt_gas=False)
        engine.step()
        total += nats
    return float(total * scale)


def _set_learning_rate(engine: "DeepSpeedEngine", learning_rate: float) -> None:
    """Groups with a `peak` follow the first one in proportion: that is AdamW's, whose rate the schedule gives."""
    groups = engine.optimizer.param_groups
    peak = next(group["peak"] for group in groups if not group.get("use_muon"))
    for group in groups:
        group["lr"] = learning_rate * group["peak"] / peak


def _scale(share: "Sequence[MicroBatch]", processes: "Processes") -> "torch.Tensor":
    """Processes divided by the labels of the global batch; on the device, where nothing waits for it.

    DeepSpeed divides the sum of the processes' gradients by the number of processes.
    """
    import torch
    from deepspeed import comm

    labels = float(sum(batch.label_count for batch in share))
    count = torch.tensor(labels, dtype=torch.float64).to(processes.device, non_blocking=True)
    if processes.world_size > 1:
        comm.all_reduce(count)
    return (processes.world_size / count.clamp(min=1)).float()


def summed_losses(
    model: "PreTrainedModel | DeepSpeedEngine", batch: "MicroBatch"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """What is minimised, and the cross entropy in nats: sums over the labels of a micro-batch, on the model's device.

    The model is one of `losses.computes_losses`, in an engine or not.
    """
    device: Any = model.device
    inputs = batch.on(device)
    labels = inputs.pop("labels")
    loss, nats = model(**inputs, target_ids=labels)
    return loss, nats


def evaluate(
    engine: "DeepSpeedEngine", batches: "EvaluationBatches", processes: "Processes", stops: Callable[[], bool]
) -> "Row | None":
    """The held-out loss in nats a token, weighted by tokens over all processes; every process must call.

    None if `stops`, which is asked before each micro-batch and says the same on every process.
    """
    import torch

    begun = time.monotonic()
    total, labels = torch.zeros((), dtype=torch.float64, device=engine.device), 0
    engine.eval()
    with torch.no_grad():
        size = engine.train_micro_batch_size_per_gpu()
        for batch in batches.share(size, processes.rank, processes.world_size):
            if stops():
                engine.train()
                return None
            labels += batch.label_count
            total += summed_losses(engine, batch)[1].double()
    engine.train()
    nats, count = processes.total([float(total), labels])
    return {"validation_loss": nats / count, "evaluation_seconds": round(time.monotonic() - begun, 3)}


def seconds_per_step(
    engine: "DeepSpeedEngine",
    batches: "ReadAhead",
    processes: "Processes",
    budget_seconds: float,
    stop: "StopRequest",
) -> float | None:
    """Mean seconds of an optimizer step without its wait for data, the same number on every process.

    None if one was asked to stop.

    Takes real steps of the full sequence length for about `budget_seconds`, at least PROBE_STEPS after
    PROBE_WARMUP_STEPS: hand it an engine that is thrown away.
    """
    begun = taken = 0.0
    for step in itertools.count():
        timed = step - PROBE_WARMUP_STEPS
        if timed == 0:
            begun, _ = time.monotonic(), batches.take_wait()
        taken = time.monotonic() - begun
        if processes.total([stop.came])[0]:
            return None
        if processes.from_first(timed >= PROBE_STEPS and taken >= budget_seconds):
            break
        consumed = (batches.warmup_steps + step) * batches.sequences
        take_step(engine, batches, processes, consumed, learning_rate=0.0)
    # Waiting for shards that are read for the first time, and for processes that do, is none of a later step.
    return min(processes.gathered((taken - batches.take_wait()) / timed))
