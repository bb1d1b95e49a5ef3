"""Some steps of tiny models by real engines, in every way of computing them: losses and gradient norms to a file.

Not a test: test_numerics.py starts it, as one process and as several.
"""

import json
import os
import sys
from dataclasses import dataclass, replace

import torch
from deepspeed.comm import comm

from training import engine as engines
from training import processes, steps
from training.config import Batch, Compute, Model, Optimizer, Recipe, Schedule
from training.micro_batch import MicroBatch
from training.model import configuration

LENGTH, SEQUENCES, STEPS, VOCABULARY = 16, 8, 4, 50
MANY = 512
MODEL = Model(hidden_size=32, layers=2, heads=2)
PLAIN = Compute()
ADAMW = Optimizer(learning_rate=0.01)
MUON = Optimizer(kind="muon", learning_rate=0.01, muon_learning_rate=0.05, weight_decay=0.1)


@dataclass(frozen=True)
class Case:
    """One way to compute the steps: ZeRO stage, type of the weights, whether the optimizer waits on the CPU."""

    stage: int
    optimizer: Optimizer = ADAMW
    compute: Compute = PLAIN
    weights: str = "fp32"
    offload: bool = False


CHUNKS = Compute(loss_chunk_tokens=5, checkpoint_activations=True)
CASES = {
    "plain": Case(0),
    "stage_2": Case(2),
    "z_loss": Case(1, replace(ADAMW, z_loss=0.01)),
    "chunks": Case(3, replace(ADAMW, z_loss=0.01), CHUNKS),
    "muon_0": Case(0, MUON),
    "muon_1": Case(1, MUON),
    "muon_2": Case(2, MUON),
    "muon_3": Case(3, MUON),
    "muon_1_offload": Case(1, MUON, offload=True),
    "muon_3_offload": Case(3, MUON, offload=True),
    "bf16": Case(2, ADAMW, Compute(precision="bf16")),
    "bf16_chunks": Case(1, ADAMW, replace(CHUNKS, precision="bf16")),
    "bf16_weights_1": Case(1, ADAMW, weights="bf16"),
    "bf16_weights_2": Case(2, ADAMW, weights="bf16"),
}


def micro_size(world_size):
    return 2 if world_size == 1 else 1


def global_batch(step):
    """Random tokens; the n-th sequence has about 2n labels, so that every cut is uneven."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    labels = rows[:, 1:].clone()
    for number in range(SEQUENCES):
        labels[number, 2 * number + 1 :] = -100
    return {"input_ids": rows[:, :-1], "labels": labels}


class Uneven:
    """A source of micro-batches with unequally many labels."""

    sequences = SEQUENCES

    def share(self, consumed, size, rank, world_size):
        whole, share = global_batch(consumed // SEQUENCES), SEQUENCES // world_size
        for first in range(rank * share, (rank + 1) * share, size):
            yield MicroBatch.of({name: values[first : first + size].numpy() for name, values in whole.items()})


def run(case, rank, world_size):
    everyone = replace(EVERYONE, precision=case.weights, autocast=case.compute.precision == "bf16")
    batch = Batch(LENGTH, SEQUENCES, micro_size(world_size))
    recipe = Recipe(MODEL, batch, case.optimizer, Schedule(), 0, case.compute)
    config = configuration(MODEL, vocab_size=VOCABULARY, context_tokens=LENGTH, end_of_text_id=0)
    zero = {"stage": case.stage} | ({"offload_optimizer": {"device": "cpu"}} if case.offload else {})
    engine = engines.build(recipe, config, {"zero_optimization": zero}, everyone)
    rows = []
    for step in range(STEPS):
        mine = steps.take_step(engine, Uneven(), everyone, step * SEQUENCES, case.optimizer.learning_rate)
        norm = engine.get_global_grad_norm()
        rows.append([everyone.total([mine])[0] / world_size, None if norm is None else float(norm)])
    engine.destroy()
    return rows


class Repeated:
    """One sequence, so many times."""

    def __init__(self, count):
        self.sequences = count

    def share(self, consumed, size, rank, world_size):
        whole = global_batch(0)
        for _ in range(self.sequences // world_size):
            yield MicroBatch.of({name: values[-1:].numpy() for name, values in whole.items()})


def accumulated(stage, settings):
    """Norms of the gradient and of what Muon remembers of it, after a step on one sequence a process and one on MANY,
    in bf16; and the types that were reduced."""
    reduced, norms, momenta = set(), [], []
    for name in ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor"):
        setattr(comm.cdb, name, noting(getattr(type(comm.cdb), name).__get__(comm.cdb), reduced))
    config = configuration(MODEL, vocab_size=VOCABULARY, context_tokens=LENGTH, end_of_text_id=0)
    everyone = replace(EVERYONE, precision="bf16")
    for count in (EVERYONE.world_size, MANY):
        recipe = Recipe(MODEL, Batch(LENGTH, count, 1), settings, Schedule(), 0)
        engine = engines.build(recipe, config, {"zero_optimization": {"stage": stage}}, everyone)
        steps.take_step(engine, Repeated(count), everyone, 0, 0.01)
        norms.append(float(engine.get_global_grad_norm()))
        states = engine.optimizer.optimizer.state.values()
        momenta.append([float(one["momentum_buffer"].norm()) for one in states if "momentum_buffer" in one])
        engine.destroy()
    return {"norms": norms, "momenta": momenta, "reduced": sorted(reduced)}


def refused(stage, weights):
    """Whether a step of Muon's that is refused for its norm leaves the momenta as they were."""
    config = configuration(MODEL, vocab_size=VOCABULARY, context_tokens=LENGTH, end_of_text_id=0)
    recipe = Recipe(MODEL, Batch(LENGTH, SEQUENCES, 1), MUON, Schedule(), 0)
    everyone = replace(EVERYONE, precision=weights)
    engine = engines.build(recipe, config, {"zero_optimization": {"stage": stage}}, everyone)
    found = []
    for refuses in (False, True):
        engine.optimizer.refuses = lambda norm, answer=refuses: answer
        steps.take_step(engine, Uneven(), everyone, 0, 0.01)
        states = engine.optimizer.optimizer.state.values()
        found.append([one["momentum_buffer"].clone() for one in states if "momentum_buffer" in one])
    engine.destroy()
    return len(found[0]) > 0 and all(map(torch.equal, *found)) and any(one.any() for one in found[0])


def noting(collective, types):
    def noted(*arguments, **named):
        given = [one for one in (*arguments, *named.values()) if isinstance(one, torch.Tensor)]
        types.update(str(one.dtype) for one in given if one.is_floating_point() and one.numel() > 1)
        return collective(*arguments, **named)

    return noted


if __name__ == "__main__":
    EVERYONE = processes.join(-1, 1)
    chosen = sys.argv[2:] or list(CASES)
    results = {name: run(CASES[name], EVERYONE.rank, EVERYONE.world_size) for name in chosen}
    unclipped = replace(ADAMW, gradient_clipping=0.0)
    results["accumulated"] = {stage: accumulated(stage, unclipped) for stage in (1, 2, 3)}
    results["accumulated by muon"] = {stage: accumulated(stage, MUON) for stage in (1, 2, 3)}
    ways = [(stage, weights) for stage in (1, 2, 3) for weights in ("fp32", "bf16")]
    results["refused by muon"] = {f"{stage} {weights}": bool(refused(stage, weights)) for stage, weights in ways}
    if EVERYONE.is_first:
        with open(sys.argv[1], "w") as file:
            json.dump(results, file)
    processes.leave()
    os._exit(0)
