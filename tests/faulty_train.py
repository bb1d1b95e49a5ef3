"""training/train.py with data that does harm: at the sequences named by FAULTS the gradient is not finite, or a spike.

FAULTS is JSON: {"nan": [first sequence of a step, …], "spike": […], "rank": the process that meets it}.
"""

import json
import os

from tokenizer.command_line import run
from training import model, train
from training.batches import TrainingBatches

FAULTS = json.loads(os.environ["FAULTS"])
now = {"factor": 1.0}


def harmful(share):
    def noted(self, consumed, size, rank, world_size):
        met = [kind for kind in ("nan", "spike") if consumed in FAULTS.get(kind, ()) and rank == FAULTS["rank"]]
        now["factor"] = {"nan": float("nan"), "spike": 1e4}[met[0]] if met else 1.0
        return share(self, consumed, size, rank, world_size)

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


TrainingBatches.share = harmful(TrainingBatches.share)
model.build = watched(model.build)

if __name__ == "__main__":
    run(train.main)
