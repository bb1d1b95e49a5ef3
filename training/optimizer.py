"""AdamW over two groups of parameters, and the learning rate as a pure function of the step."""

import math
from typing import TYPE_CHECKING, Any

from training.config import Optimizer, Schedule

if TYPE_CHECKING:
    import torch

Planned = tuple[tuple[int, int], ...]


def parameter_groups(model: "torch.nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Matrices (two dimensions or more) decay; biases and the gains of norms do not.

    Embeddings are matrices and decay too: tied, they are the output layer, whose logits weight decay keeps small;
    untied, rows of rare tokens would otherwise keep their random initial values for ever.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build(model: "torch.nn.Module", settings: Optimizer) -> "torch.optim.AdamW":
    """torch's own AdamW: DeepSpeed's needs a compiler at run time and has other defaults. Fused, on CPUs too."""
    import torch

    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


def progress(step: int, planned: Planned) -> float:
    """How much of the run is done after `step`, 0 to 1: linear in the step, towards the end that was planned then.

    `planned` holds pairs (from this step on, the run ends at that step). A run of fixed length has one pair; each
    later one bends the line so that what is left reaches 1 at the new end, without a jump.
    """
    done = 0.0
    for number, (begin, end) in enumerate(planned):
        last = planned[number + 1][0] if number + 1 < len(planned) else step
        done += (1 - done) * min(1.0, (min(step, last) - begin) / (end - begin))
        if step <= last:
            break
    return done


def learning_rate(step: int, planned: Planned, peak: float, schedule: Schedule) -> float:
    """Learning rate of a step from 1 on: up in a line to `peak`, down along a cosine to the final fraction.

    The warm-up takes at most half of the run as it was planned first, so that a short trial of a long recipe still
    trains.
    """
    warmup = min(schedule.warmup_steps, planned[0][1] // 2)
    if step <= warmup:
        return peak * step / warmup
    begun = progress(warmup, planned)
    fallen = (progress(step, planned) - begun) / (1 - begun) if begun < 1 else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * fallen))
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * cosine)
