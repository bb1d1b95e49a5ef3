"""Checkpoints of what waits on a disk, in the form that they have without one.

DeepSpeed 0.19 copies its swap files into a checkpoint, and back, and leaves out what lay in memory: step counts, and
parts too small for the disk. From that a run goes on as another one, one of other processes cannot, and nothing can be
exported. Its loader of stage 3 does not know of weights on a disk at all.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

    Part = tuple[torch.Tensor, dict[str, Any]]


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
def restoring(engine: "DeepSpeedEngine") -> Iterator[None]:
    """To load: what is to wait on a disk is brought there part by part, from files that are mapped."""
    optimizer: Any = engine.optimizer
    if not (has_optimizer_on_disk(engine) or getattr(optimizer, "params_in_nvme_and_cpu", False)):
        yield
        return
    optimizer.load_state_dict = functools.partial(_load, optimizer)
    usual = engine.checkpoint_engine
    engine.checkpoint_engine = _Mapping(usual)
    try:
        with _without_copies(engine):
            yield
    finally:
        engine.checkpoint_engine = usual
        del optimizer.load_state_dict


@contextlib.contextmanager
def _without_copies(engine: Any) -> Iterator[None]:
    """DeepSpeed copies no swap files."""
    engine.zero_nvme_offload_optimizer = lambda: False
    try:
        yield
    finally:
        del engine.zero_nvme_offload_optimizer


class _Mapping:
    """DeepSpeed's reader of checkpoints, whose files are mapped and not read."""

    def __init__(self, usual: Any) -> None:
        self._usual = usual

    def load(self, path: str, map_location: Any = None) -> Any:
        import torch

        return torch.load(path, map_location="cpu", weights_only=False, mmap=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._usual, name)


def _load(optimizer: Any, state_dict_list: list[Any], checkpoint_folder: str | None = None, **_: Any) -> None:
    """What DeepSpeed calls with a checkpoint's files, or with a universal folder, once its weights are partitioned."""
    import torch
    from deepspeed import comm

    if checkpoint_folder:
        parts = _of_universal(optimizer, Path(checkpoint_folder) / "zero")
    else:
        parts = _of_files(optimizer, state_dict_list[comm.get_rank(group=optimizer.dp_process_group)])
    swapper: Any = getattr(optimizer, "optimizer_swapper", None)
    if swapper is not None:
        swapper.purge_state()
    for number, (weights, moments) in enumerate(parts):
        waits = optimizer._swappable_optimizer_subgroup(number)
        if waits:
            optimizer._optimizer_states_and_gradient_swap_in(number)
        master = optimizer.fp32_partitioned_groups_flat[number]
        master.data.copy_(weights)
        # Copies, steps too: they would keep the whole file mapped.
        optimizer.optimizer.state[master] = {
            name: value.to(master.device, copy=True) if torch.is_tensor(value) else value
            for name, value in moments.items()
        }
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if waits:
            optimizer._optimizer_states_and_gradient_swap_out(number)
            swapper.swap_params_info[master.ds_id].release_memory()


def _of_files(optimizer: Any, state: dict[str, Any]) -> "Iterator[Part]":
    """Weights and moments of each part, as this process saved them."""
    optimizer.loss_scaler, optimizer.overflow = state["loss_scaler"], state["overflow"]
    optimizer.dynamic_loss_scale = state["dynamic_loss_scale"]
    moments = state["optimizer_state_dict"]["state"]
    for number, weights in enumerate(state["fp32_flat_groups"]):
        yield weights, moments.get(number, {})


def _of_universal(optimizer: Any, folder: Path) -> "Iterator[Part]":
    """Weights and moments of each part, put together from this process's shares of whole parameters."""
    import torch

    for parameters in optimizer.fp16_groups:
        folders = [folder / optimizer.param_names[parameter] for parameter in parameters]
        kinds = sorted({path.stem for path in folders[0].glob("*.pt")} - {"step"})
        values = {}
        for kind in kinds:
            shares = zip(folders, parameters, strict=True)
            found = [optimizer.load_hp_checkpoint_state(str(one), kind, param=parameter) for one, parameter in shares]
            values[kind] = torch.cat(found)
        yield values.pop("fp32"), values
