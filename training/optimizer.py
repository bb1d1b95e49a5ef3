"""AdamW and Muon over groups of parameters, and the learning rate as a pure function of the step."""

import itertools
import math
import shutil
from typing import TYPE_CHECKING, Any

from training import muon
from training.config import Optimizer, Schedule

if TYPE_CHECKING:
    import torch

Planned = tuple[tuple[int, int], ...]


def parameter_groups(model: "torch.nn.Module", settings: Optimizer) -> list[dict[str, Any]]:
    """Matrices (two dimensions or more) decay; biases and the gains of norms do not.

    Embeddings are matrices and decay too: tied, they are the output layer, whose logits weight decay keeps small;
    untied, rows of rare tokens would otherwise keep their random initial values for ever. Muon gets the matrices of
    the blocks, and neither embeddings nor the output layer: a row of those is a vector of its own.

    Each group has `peak`, the learning rate that the schedule scales, and `use_muon`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    looked_up = _embeddings_and_head(model)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": settings.weight_decay, "use_muon": False},
        {"params": [], "weight_decay": 0.0, "use_muon": False},
        {"params": [], "weight_decay": settings.weight_decay, "use_muon": True},
    ]
    for parameter in trained:
        is_muons = settings.kind == "muon" and parameter.ndim == 2 and id(parameter) not in looked_up
        groups[2 if is_muons else parameter.ndim < 2]["params"].append(parameter)
    for group in groups:
        group["peak"] = group["lr"] = settings.muon_learning_rate if group["use_muon"] else settings.learning_rate
    return [group for group in groups if group["params"]]


def _embeddings_and_head(model: "torch.nn.Module") -> set[int]:
    """Ids of the parameters of all embeddings and of the output layer, whatever their names."""
    import torch

    modules = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    return {id(parameter) for module in [*modules, *([head] if head else [])] for parameter in module.parameters()}


def build(model: "torch.nn.Module", settings: Optimizer, *, offloaded: bool = False) -> "torch.optim.Optimizer":
    """AdamW, by default torch's own, fused on CPUs too: DeepSpeed's need a compiler at run time.

    `offloaded` says that the states wait on the CPUs, or on a disk, and are updated there.

    Muon is DeepSpeed's, which orthogonalises whole matrices before ZeRO cuts them; torch's would be given flat parts.
    DeepSpeed tags parameters by their names when it makes its optimizer (GPT-2's `wte` would be a matrix to it); here
    they are tagged by what they are.
    """
    import torch

    groups = parameter_groups(model, settings)
    adam: dict[str, Any] = {"betas": (settings.beta1, settings.beta2), "eps": settings.epsilon}
    if settings.kind == "adamw":
        for group in groups:
            del group["use_muon"]
        if settings.implementation == "torch":
            return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True, **adam)
        on_cpus = offloaded or not torch.cuda.is_available()
        return _by_deepspeed(groups, on_cpus, adam | {"lr": settings.learning_rate})
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    if not torch.cuda.is_available():
        muon.without_compiler()
    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
        group |= {"momentum": settings.muon_momentum} if group["use_muon"] else adam
    return MuonWithAuxAdam(groups)  # type: ignore[no-any-return]


def _by_deepspeed(groups: list[dict[str, Any]], on_cpus: bool, settings: dict[str, Any]) -> "torch.optim.Optimizer":
    """DeepSpeed's AdamW for states on CPUs or on GPUs; ValueError where it cannot be compiled."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    line = "optimizer.implementation deepspeed is compiled when it is first used, and cannot be"
    if not (shutil.which("c++") or shutil.which("g++")) or not shutil.which("ninja"):
        raise ValueError(f"{line}: a C++ compiler or ninja is missing; install them, or use torch")
    try:
        optimizer = (DeepSpeedCPUAdam if on_cpus else FusedAdam)(groups, **settings)
    except (RuntimeError, OSError, ImportError) as error:
        words = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{line}: {words[-1]}; use torch") from error
    if on_cpus:
        optimizer.register_step_pre_hook(_forget_powers)
    return optimizer  # type: ignore[no-any-return]


def _forget_powers(optimizer: Any, *_: Any) -> None:
    """Have the powers of the betas computed from the step, and not from those of the step before.

    Those are kept outside of the state, so that a resumed run would differ in the last bits. An update of nothing, of
    a step that does not come next, makes DeepSpeed compute them.
    """
    import torch

    steps = [state["step"] for state in itertools.islice(optimizer.state.values(), 1)]
    group, nothing = optimizer.param_groups[0], [torch.empty(0) for _ in range(4)]
    constants = (group["lr"], *group["betas"], group["eps"], group["weight_decay"], group["bias_correction"])
    optimizer.ds_opt_adam.adam_update(optimizer.opt_id, sum(steps) + 2, *constants, *nothing)


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
    """Learning rate of a step from 1 on: up in a line to `peak`, then as the schedule's kind says.

    The warm-up takes at most half of the run as it was planned first, so that a short trial of a long recipe still
    trains. A run that is cut to an end within it rises until then: were the warm-up cut too, one that is lengthened
    again would never reach its peak.
    """
    warmup = min(schedule.warmup_steps, planned[0][1] // 2)
    if step <= warmup:
        return peak * step / warmup
    if schedule.kind == "constant":
        return peak
    begun = progress(warmup, planned)
    gone = (progress(step, planned) - begun) / (1 - begun) if begun < 1 else 1.0
    final = schedule.final_fraction
    if schedule.kind == "wsd":
        left = 1.0 if schedule.decay_share == 0 else min(1.0, (1 - gone) / schedule.decay_share)
        return peak * (final + (1 - final) * max(0.0, left))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * gone)))
