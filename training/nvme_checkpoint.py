"""Checkpoints of what waits on a disk, in the form that they have without one.

DeepSpeed 0.19 copies its swap files into a checkpoint, and back, and leaves out what lay in memory: step counts, and
parts too small for the disk. From that a run goes on as another one, one of other processes cannot, and nothing can be
exported.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine


def has_optimizer_on_disk(engine: "DeepSpeedEngine") -> bool:
    """Whether states of the optimizer wait on a disk."""
    return getattr(engine.optimizer, "swap_optimizer", False)


@contextlib.contextmanager
def mapped(engine: "DeepSpeedEngine") -> Iterator[None]:
    """To save: what waits on a disk is where it would be in memory, and takes none: it is mapped.

    It changes with the next step, so it must be written before.
    """
    import torch

    if not has_optimizer_on_disk(engine):
        yield
        return
    waiting = list(engine.optimizer.optimizer_swapper.swap_params_info.values())
    for part in waiting:
        for one in part.tensors:
            one.compute_tensor.data = torch.from_file(one.swap_path, size=part.numel(), dtype=part.dtype())
    try:
        with _without_copies(engine):
            yield
    finally:
        for part in waiting:
            part.release_memory()


@contextlib.contextmanager
def _without_copies(engine: Any) -> Iterator[None]:
    """DeepSpeed copies no swap files."""
    engine.zero_nvme_offload_optimizer = lambda: False
    try:
        yield
    finally:
        del engine.zero_nvme_offload_optimizer


def parts(optimizer: Any) -> "Iterator[tuple[int, torch.Tensor]]":
    """Of an optimizer of stage 3, each part's number and weights in fp32, to be filled, with its states, meanwhile.

    The weights that the model computes with follow, and what waits on a disk is brought there, before the next part.
    """
    swapper: Any = getattr(optimizer, "optimizer_swapper", None)
    if swapper is not None:
        swapper.purge_state()
    for number, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        waits = optimizer._swappable_optimizer_subgroup(number)
        if waits:
            optimizer._optimizer_states_and_gradient_swap_in(number)
        yield number, master
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if waits:
            optimizer._optimizer_states_and_gradient_swap_out(number)
            swapper.swap_params_info[master.ds_id].release_memory()
