"""The parts of the training loop: one optimizer step, one evaluation, and the timing of steps before a run."""

import hashlib
import itertools
import time
from typing import TYPE_CHECKING

from training.meter import Row, validation_figures
from training.model import token_losses

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.batches import EvaluationBatches
    from training.processes import Processes
    from training.read_ahead import ReadAhead

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

    Returns this process's mean loss in nats a token. Every sequence has equally many labels, so the mean over
    micro-batches and processes is the mean over tokens, however the batch is cut.
    """
    import torch

    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    total = torch.zeros((), device=engine.device)
    accumulation = engine.gradient_accumulation_steps()
    size = engine.train_micro_batch_size_per_gpu()
    for batch in batches.share(consumed, size, processes.rank, processes.world_size):
        loss = token_losses(engine, batch).mean()
        engine.backward(loss)
        engine.step()
        total += loss.detach() / accumulation
    return float(total)


def evaluate(engine: "DeepSpeedEngine", batches: "EvaluationBatches", processes: "Processes") -> Row:
    """Held-out figures, weighted by tokens over all processes; every process must call."""
    import torch

    begun = time.monotonic()
    nats, tokens_read = torch.zeros((), dtype=torch.float64, device=engine.device), 0
    engine.eval()
    with torch.no_grad():
        size = engine.train_micro_batch_size_per_gpu()
        for batch in batches.share(size, processes.rank, processes.world_size):
            losses = token_losses(engine, batch)
            nats += losses.double().sum()
            tokens_read += len(losses)
    engine.train()
    total, count = processes.total([float(nats), tokens_read])
    stream = batches.stream
    figures = validation_figures(total / count, len(stream), stream.text_bytes)
    return figures | {"evaluation_seconds": round(time.monotonic() - begun, 3)}


def seconds_per_step(
    engine: "DeepSpeedEngine", batches: "ReadAhead", processes: "Processes", budget_seconds: float
) -> float:
    """Mean seconds of an optimizer step, the same number on every process.

    Takes real steps for about `budget_seconds`, at least PROBE_STEPS after PROBE_WARMUP_STEPS: hand it an engine
    that is thrown away.
    """
    begun = taken = 0.0
    for step in itertools.count():
        timed = step - PROBE_WARMUP_STEPS
        if timed == 0:
            begun = time.monotonic()
        taken = time.monotonic() - begun
        if processes.from_first(timed >= PROBE_STEPS and taken >= budget_seconds):
            break
        take_step(engine, batches, processes, step * batches.sequences, learning_rate=0.0)
    return float(processes.from_first(taken / timed))
