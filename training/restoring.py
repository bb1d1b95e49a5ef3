"""An engine brought to where a checkpoint stood, in whichever layout: the only way in which this project loads one.

DeepSpeed 0.19 loads what the same number of processes wrote at the same stage. For all else it has a converter, to be
run before, which does not know stage 0 and loses shapes and step counts after stage 3, and a loader that gives all
groups of stage 3 the settings of the first; neither knows Muon's momenta, or weights on a disk.
"""

from math import prod
from typing import TYPE_CHECKING, Any

from tokenizer.progress import Progress
from training import nvme_checkpoint
from training.fragments import Fragment, laid_out, part_of_all, part_of_each
from training.saved_parameters import MOMENTUM, NAMES, WEIGHTS, SavedParameters

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine


def names_of_parameters(engine: "DeepSpeedEngine") -> dict[str, list[str]]:
    """What a checkpoint of stage 0 must say beside DeepSpeed's files: the parameters, in the optimizer's order."""
    if engine.zero_optimization():
        return {}
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return {NAMES: [names[id(p)] for group in engine.optimizer.param_groups for p in group["params"]]}


def restore(engine: "DeepSpeedEngine", saved: SavedParameters) -> None:
    """Give a fresh engine this process's share of what is saved; `complete` must follow, on all processes.

    Raises:
        KeyError, RuntimeError: it is not what this engine needs.
    """
    import torch
    from deepspeed import comm

    optimizer: Any = engine.optimizer
    stage = engine.zero_optimization_stage()
    mine = saved.size_bytes() // (comm.get_world_size() if stage else 1)
    saved.progress = Progress("restoring weights and optimizer", mine, gigabytes=True, quiet=comm.get_rank() > 0)
    with torch.no_grad():
        for name, buffer in engine.module.named_buffers():
            if name in saved.buffers:
                buffer.copy_(saved.buffers[name])
        if stage == 0:
            _restore_whole(engine, saved)
        elif stage == 3:
            optimizer.checkpoint_event_prologue()
            _restore_parts_of_each(optimizer, saved)
        else:
            _restore_parts_of_all(optimizer, saved)
    saved.progress.end()
    _set_steps(getattr(optimizer, "optimizer", optimizer), saved.taken)
    if saved.scaler is not None and engine.fp16_enabled():
        for name, value in saved.scaler.items():
            setattr(optimizer, name, value)
    for name, value in saved.counters.items():
        setattr(engine, name, value)


def complete(engine: "DeepSpeedEngine") -> None:
    """Have the processes give each other the weights that each has restored its part of."""
    optimizer: Any = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        optimizer.checkpoint_event_epilogue()
    elif engine.zero_optimization():
        optimizer.update_lp_params()


def _restore_whole(engine: "DeepSpeedEngine", saved: SavedParameters) -> None:
    """Stage 0: the parameters are the optimizer's own. Those that it has not are as they were made."""
    for name, parameter in engine.module.named_parameters():
        if name not in saved.shapes:
            continue
        state = engine.optimizer.state[parameter]
        _fill(parameter.data.view(-1), state, laid_out({name: parameter.numel()}), saved)
        for kind, value in state.items():
            state[kind] = value.view_as(parameter)


def _restore_parts_of_all(optimizer: Any, saved: SavedParameters) -> None:
    """Stages 1 and 2, and DeepSpeed's optimizer of bf16 weights at stage 1."""
    import torch
    from deepspeed import comm

    of_bf16 = hasattr(optimizer, "bf16_groups")
    groups = optimizer.bf16_groups if of_bf16 else optimizer.round_robin_bit16_groups
    masters = optimizer.fp32_groups_flat_partition if of_bf16 else optimizer.single_partition_of_fp32_groups
    for number, (parameters, master) in enumerate(zip(groups, masters, strict=True)):
        sizes = {optimizer.param_names[parameter]: parameter.numel() for parameter in parameters}
        aligned = None if of_bf16 else dict(zip(sizes, optimizer.round_robin_bit16_padding[number], strict=True))
        rank = comm.get_rank(group=optimizer.real_dp_process_group[number])
        held = part_of_all(laid_out(sizes, aligned), master.numel(), rank)
        state = optimizer.optimizer.state[master]
        _fill(master.data, state, held, saved)
        if MOMENTUM in state and not (of_bf16 or optimizer.cpu_offload):
            wholes = laid_out({one.name: sizes[one.name] for one in held})
            momentum = torch.zeros(sum(one.count for one in wholes), dtype=master.dtype, device=master.device)
            state[MOMENTUM] = saved.fill(momentum, wholes, MOMENTUM)


def _restore_parts_of_each(optimizer: Any, saved: SavedParameters) -> None:
    """Stage 3, part by part, so that what waits on a disk takes the memory of one."""
    from deepspeed import comm

    world_size, rank = (size(group=optimizer.dp_process_group) for size in (comm.get_world_size, comm.get_rank))
    for number, master in nvme_checkpoint.parts(optimizer):
        sizes = {optimizer.param_names[one]: prod(one.ds_shape) for one in optimizer.fp16_groups[number]}
        state = optimizer.optimizer.state[master]
        _fill(master.data, state, part_of_each(sizes, world_size, rank), saved)


def _fill(master: "torch.Tensor", state: dict[str, Any], held: list[Fragment], saved: SavedParameters) -> None:
    """Weights and moments of a flat part; what lies between and behind the fragments is zero, as in training."""
    import torch

    if not held:
        return
    state.clear()
    saved.fill(master.zero_(), held, WEIGHTS)
    for kind in saved.kinds(one.name for one in held):
        if kind != WEIGHTS:
            state[kind] = saved.fill(torch.zeros_like(master), held, kind)


def _set_steps(optimizer: Any, step: float | None) -> None:
    """Give each state of Adam its count of steps, of the kind and on the device that its optimizer wants."""
    import torch

    if step is None:
        return
    in_torch = type(optimizer).__module__.startswith("torch.")
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for parameter, state in optimizer.state.items():
        if "exp_avg" in state:
            device = parameter.device if on_device else torch.device("cpu")
            state["step"] = torch.tensor(step, dtype=torch.float32, device=device) if in_torch else int(step)
