"""DeepSpeed 0.19's Muon under ZeRO, mended: sums in fp32, norms of gradients, momenta that refused steps leave alone.

DeepSpeed makes a gradient orthogonal before it takes the global norm, which then tells nothing of the gradient: it is
nearly the same at every step. Here the norm is taken before, as at stage 0, and a step that is refused for it does not
enter the momentum.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def mend(optimizer: Any) -> None:
    """Mend what wraps a Muon of DeepSpeed's; another optimizer stays as it is.

    From now on `optimizer.refuses`, a function of the global gradient norm, is asked once a step, and every process
    must answer alike; it refuses nothing until another is put in its place.
    """
    inner = getattr(optimizer, "optimizer", None)
    if inner is None or not any(group.get("use_muon") for group in inner.param_groups):
        return
    optimizer.refuses = lambda norm: False
    if hasattr(optimizer, "_apply_muon_to_accumulated_grads"):
        from deepspeed.runtime.utils import combine_grad_norm_groups

        _norm_before(optimizer, "_apply_muon_to_accumulated_grads", "_get_norm_groups", combine_grad_norm_groups)
    elif getattr(optimizer, "cpu_offload", False):
        _norm_before(optimizer, "_apply_muon_updates_cpu_offload", "scaled_global_norm", lambda norm: norm)
    elif hasattr(optimizer, "_prepare_muon_updates"):
        _leave_out_refused(optimizer)
    elif hasattr(optimizer, "get_flat_partition"):
        _widen_sums(optimizer)
        _norms_of_parts(optimizer)


def without_compiler() -> None:
    """Take torch.compile off DeepSpeed's Muon: on CPUs it would need a C++ compiler and minutes at the first step."""
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    for name in ("zeropower_via_newtonschulz5", "zeropower_via_gram_newtonschulz", "muon_update"):
        compiled = getattr(original_muon, name)
        setattr(original_muon, name, getattr(compiled, "_torchdynamo_orig_callable", compiled))
    muon_optimizer.muon_update = original_muon.muon_update


def _widen_sums(optimizer: Any) -> None:
    """Have gradients of Muon's matrices added up in fp32 at stages 1 and 2, as Adam's are; momenta follow.

    DeepSpeed adds them up in the type of the weights.
    """
    usual = optimizer.get_all_grad_tensors
    optimizer.get_all_grad_tensors = lambda tensors, dtype: [one.to(dtype) for one in usual(tensors, dtype)]


def _norm_before(optimizer: Any, update: str, norm: str, total: Callable[[Any], "torch.Tensor"]) -> None:
    """Have method `norm` of an optimizer called before method `update`, which is left out where that is refused."""
    plain_update, plain_norm = getattr(optimizer, update), getattr(optimizer, norm)

    def updated() -> None:
        found = plain_norm()
        setattr(optimizer, norm, lambda: found)
        if not optimizer.refuses(float(total(found))):
            plain_update()

    setattr(optimizer, update, updated)


def _leave_out_refused(optimizer: Any) -> None:
    """Have a BF16_Optimizer, which takes the norm before by itself, leave momenta as they were where it is refused."""
    prepare = optimizer._prepare_muon_updates

    def prepared() -> None:
        if not optimizer.refuses(float(optimizer._global_grad_norm)):
            prepare()

    optimizer._prepare_muon_updates = prepared


def _norms_of_parts(optimizer: Any) -> None:
    """The same at stages 1 and 2 without offload, where gradients become updates as each process's part is filled.

    The norm of the gradient of each parameter in the part is kept for when DeepSpeed asks for that of the group.
    """
    from deepspeed import comm

    fill, norm_of = optimizer.get_flat_partition, optimizer.get_grad_norm_direct
    norm, commit = optimizer.scaled_global_norm, optimizer._commit_muon_momentum
    kept: dict[int, list[torch.Tensor]] = {}
    last = 0.0

    def filled(params: list[Any], *places: Any, param_group_idx: int, **named: Any) -> Any:
        if params and optimizer._is_muon_group(params):
            rank = comm.get_rank(group=optimizer.real_dp_process_group[param_group_idx])
            starts = optimizer.grad_start_offset[param_group_idx][rank]
            begins = optimizer.grad_partition_insertion_offset[param_group_idx][rank]
            size, norms = int(optimizer.partition_size[param_group_idx]), []
            for param, gradient in zip(params, optimizer.all_grad_tensors[param_group_idx], strict=True):
                key = optimizer.get_param_id(param)
                start, count = int(starts[key]), int(min(param.numel() - starts[key], size - begins[key]))
                norms.append(gradient.reshape(-1).narrow(0, start, count).float().norm())
            kept[param_group_idx] = norms
        return fill(params, *places, param_group_idx=param_group_idx, **named)

    def measured(gradients: Any, params: list[Any], *kind: Any) -> "torch.Tensor":
        group = next((number for number in kept if params is optimizer.params_in_partition[number]), None)
        found: torch.Tensor = norm_of(gradients if group is None else kept.pop(group), params, *kind)
        return found

    def known() -> "torch.Tensor":
        nonlocal last
        found: torch.Tensor = norm()
        last = float(found)
        return found

    def committed() -> None:
        if not optimizer.refuses(last):
            commit()

    optimizer.get_flat_partition, optimizer.get_grad_norm_direct = filled, measured
    optimizer.scaled_global_norm, optimizer._commit_muon_momentum = known, committed
