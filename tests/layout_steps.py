"""Engines in many layouts that save a checkpoint, and others that go on from those and save at once.

Not a test: test_restoring.py starts it, as one process and as several, with a folder, and a generation to write there;
all but the first generation go on from one before, which so many processes wrote.
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numeric_steps
from numeric_steps import ADAMW, LENGTH, MODEL, MUON, SEQUENCES, VOCABULARY

from training import engine as engines
from training import processes, restoring, steps
from training.config import Batch, Model, Optimizer, Recipe, Schedule
from training.model import configuration
from training.saved_parameters import SavedParameters
from training.saving import Saving

OFFLOADED = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
SMALL_PARTS = {"sub_group_size": 3000, "stage3_param_persistence_threshold": 100}


@dataclass(frozen=True)
class Layout:
    """How an engine cuts what it holds, and the type of its weights."""

    zero: dict
    optimizer: Optimizer = ADAMW
    weights: str = "fp32"
    model: Model = MODEL


ZERO = {
    "whole": {"stage": 0},
    "all": {"stage": 1},
    "aligned": {"stage": 2, "parameter_alignment": True},
    "round robin": {"stage": 2, "round_robin_gradients": True},
    "all offloaded": {"stage": 1} | OFFLOADED,
    "each": {"stage": 3} | SMALL_PARTS,
    "each offloaded": {"stage": 3} | SMALL_PARTS | OFFLOADED,
}
# A model some of whose weights are never trained.
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 0}
HALF_FROZEN = {"model_type": "ernie4_5_moe", "intermediate_size": 32, "moe_layer_start_index": 0} | SMALL | EXPERTS
FROZEN = Model(config=json.dumps(HALF_FROZEN))
# Each goes on from the one before it, and the first from the last.
RINGS = {
    "adamw": {name: Layout(zero) for name, zero in ZERO.items()},
    "muon": {name: Layout(zero, MUON) for name, zero in ZERO.items()},
    "frozen": {name: Layout(ZERO[name], model=FROZEN) for name in ("whole", "all", "each")},
    "bf16": {name: Layout(zero, ADAMW, "bf16") for name, zero in ZERO.items() if zero["stage"]},
    "bf16 muon": {name: Layout(zero, MUON, "bf16") for name, zero in ZERO.items() if zero["stage"]},
}


def before(ring, name):
    names = list(RINGS[ring])
    return names[names.index(name) - 1]


def engine_of(layout, sequences, everyone):
    everyone = replace(everyone, precision=layout.weights)
    recipe = Recipe(layout.model, Batch(LENGTH, sequences, 1), layout.optimizer, Schedule(), 0)
    config = configuration(layout.model, vocab_size=VOCABULARY, context_tokens=LENGTH, end_of_text_id=0)
    return engines.build(recipe, config, {"zero_optimization": layout.zero}, everyone)


def save(engine, folder, tag):
    saving = Saving(engine, folder, tag, restoring.names_of_parameters(engine), in_background=False)
    saving.wait()
    assert saving.fault is None, saving.fault


def begin(folder, ring, name, everyone):
    """Take some steps, and save."""
    layout = RINGS[ring][name]
    engine = engine_of(layout, SEQUENCES, everyone)
    for step in range(3):
        steps.take_step(engine, numeric_steps.Uneven(), everyone, step * SEQUENCES, layout.optimizer.learning_rate)
    save(engine, folder / ring, name)
    engine.destroy()


def go_on(folder, old, old_size, ring, name, everyone):
    """Restore what the layout before saved, and save it again."""
    source = before(ring, name)
    engine = engine_of(RINGS[ring][name], everyone.world_size, everyone)
    saved = SavedParameters(old / ring / source, RINGS[ring][source].zero["stage"], old_size)
    restoring.restore(engine, saved)
    restoring.complete(engine)
    save(engine, folder / ring, name)
    engine.destroy()


if __name__ == "__main__":
    folder, generation, *rest = sys.argv[1:]
    everyone = processes.join(-1, 1)
    new = Path(folder) / generation
    for ring, layouts in RINGS.items():
        for name in layouts:
            if rest:
                go_on(new, Path(folder) / rest[0], int(rest[1]), ring, name, everyone)
            else:
                begin(new, ring, name, everyone)
    processes.leave()
    os._exit(0)
