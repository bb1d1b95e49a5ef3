"""training/train.py with data that does harm: at the sequences named by FAULTS the gradient is not finite, or a spike.

FAULTS is JSON: {"nan": [first sequence of a step, …], "spike": […], "rank": the process that meets it}.
"""

import json
import os

from tokenizer.command_line import run
from training import model, steps, train

FAULTS = json.loads(os.environ["FAULTS"])
now = {"factor": 1.0}


def harmful(take_step):
    def noted(engine, batches, processes, consumed, learning_rate):
        mine = processes.rank == FAULTS["rank"]
        met = [kind for kind in ("nan", "spike") if mine and consumed in FAULTS.get(kind, ())]
        now["factor"] = {"nan": float("nan"), "spike": 1e4}[met[0]] if met else 1.0
        return take_step(engine, batches, processes, consumed, learning_rate)

    return noted


def watched(build):
    def built(*arguments, **named):
        made = build(*arguments, **named)

        def spoil(module, inputs, output):
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient * now["factor"])

        made.get_input_embeddings().register_forward_hook(spoil)
        return made

    return built


steps.take_step = harmful(steps.take_step)
model.build = watched(model.build)

if __name__ == "__main__":
    run(train.main)
