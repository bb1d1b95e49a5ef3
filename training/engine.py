"""The DeepSpeed engine of a run: the user's ZeRO settings, completed by what the run's own settings decide."""

import contextlib
import gc
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import attention as attentions
from training import model as models
from training import muon, nvme
from training import optimizer as optimizers
from training.config import Recipe
from training.processes import LONGEST_WAIT, Processes

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from transformers import PretrainedConfig

DEFAULT_CONFIGURATION = str(Path(__file__).parent.parent / "infra" / "deepspeed" / "zero2.json")
log = logging.getLogger("train")


def zero_stage(configuration: dict[str, Any], precision: str) -> int:
    """The ZeRO stage that a configuration runs at: 0 becomes 1 in bf16 and fp16, where DeepSpeed's is not sound.

    There its stage 0 accumulates in the weights' type, and in bf16 it takes an empty step first, which shortens the
    first update.
    """
    stage = int(configuration.get("zero_optimization", {}).get("stage", 0))
    return 1 if stage == 0 and precision != "fp32" else stage


def build(
    recipe: Recipe, config: "PretrainedConfig", configuration: dict[str, Any], processes: Processes
) -> "DeepSpeedEngine":
    """An engine around a model, fresh or from a folder; every process must call it.

    It is to be called with `target_ids` for losses (`losses.computes_losses`).
    """
    import deepspeed
    import torch
    from deepspeed.utils import groups

    from training.losses import computes_losses, has_liger

    compute = recipe.compute
    if compute.compile and not (shutil.which("c++") or shutil.which("g++")):
        raise ValueError("compute.compile needs a C++ compiler and there is none; install g++, or give false")
    if compute.loss_chunk_tokens and processes.device.type == "cuda" and not has_liger():
        log.info("losses in chunks take more memory and up to twice the time without liger-kernel (pip install it)")
    model = models.build(config, recipe.seed, recipe.from_pretrained)
    attentions.separate_cross_attention(model, recipe.objective, recipe.attention)
    attentions.refuse_other_reading(model, recipe.objective, recipe.attention)
    in_16_bits = processes.device.type == "cuda" and processes.precision != "fp32"
    attentions.use_fused(model, recipe.objective, recipe.attention, in_16_bits=in_16_bits)
    if compute.checkpoint_activations:
        model.activation_checkpointing_enable()
    computes_losses(
        model,
        chunk_tokens=compute.loss_chunk_tokens,
        z_loss=recipe.optimizer.z_loss,
        autocast=torch.bfloat16 if processes.autocast else None,
    )
    nvme.clear(configuration)
    processes.wait()  # before any looks how much room there is, all have made room
    completed = nvme.completed(_completed(recipe, configuration, processes), model, processes.world_size)
    offload = completed["zero_optimization"].get("offload_optimizer") or {}
    optimizer = optimizers.build(model, recipe.optimizer, offloaded=offload.get("device", "none") != "none")
    if nvme.offloads(completed):
        processes.wait()  # before any writes, all have looked how much room there is
    if processes.device.type == "cpu":
        nvme.partition(completed, model)
    # DeepSpeed's bf16 optimizer prints the memory of each group.
    with contextlib.redirect_stdout(io.StringIO()), _refusals_told(configuration):
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=completed,
            dist_init_required=False,
        )
    muon.mend(engine.optimizer)
    # DeepSpeed has a group of its own, for which torch's default with NCCL is 10 minutes.
    torch.distributed.distributed_c10d._set_pg_timeout(LONGEST_WAIT, groups._get_data_parallel_group())
    if compute.compile:
        engine.compile(backend="inductor")
    return engine


def discard(engine: "DeepSpeedEngine") -> None:
    """Let go of an engine, so that there need not be room for the states of two; every name of it has to go as well.

    DeepSpeed 0.19 itself keeps one of stage 3, in a list of modules and in the cache of a method.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    parameter_offload.FWD_MODULE_STACK.clear()
    released: Any = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    while not hasattr(released, "cache_clear"):  # within what instruments it
        released = next(cell.cell_contents for cell in released.__closure__ if callable(cell.cell_contents))
    released.cache_clear()


def collect() -> None:
    """Have the memory of discarded engines back: what the first round takes apart lets go of more."""
    for _ in range(2):
        gc.collect()


@contextlib.contextmanager
def _refusals_told(configuration: dict[str, Any]) -> Iterator[None]:
    """What DeepSpeed makes of a user's configuration that it cannot take, as a ValueError of one line."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError, AssertionError, ImportError) as error:
        if not configuration:
            raise
        entries: Any = getattr(error, "errors", None)  # of pydantic
        found = entries() if entries else []
        faults = [f"{'.'.join(map(str, one['loc']))} {one['input']!r}: {one['msg']}" for one in found]
        reason = "; ".join(faults) or " ".join(str(error).split()) or repr(error)
        raise ValueError(f"DeepSpeed cannot take the configuration of --deepspeed: {reason}") from error


def _completed(recipe: Recipe, configuration: dict[str, Any], processes: Processes) -> dict[str, Any]:
    micro = recipe.batch.micro_size(processes.world_size)
    stage = zero_stage(configuration, processes.precision)
    zero = configuration.get("zero_optimization", {})
    if stage != zero.get("stage", 0):
        log.info("ZeRO stage 0 in %s is run as stage 1", processes.precision)
    by_muon = recipe.optimizer.kind == "muon"
    if by_muon and recipe.optimizer.gradient_clipping:
        log.info("gradients are not clipped: Muon's updates have a norm of their own (optimizer.gradient_clipping)")
    if by_muon:
        # Stage 3 demands it. At the others DeepSpeed 0.19, where it scatters what it reduces, loses the gradient of a
        # parameter of Adam's that comes before a matrix of Muon's in 16 bits (`average_tensor` merges the two).
        zero = zero | {"reduce_scatter": False}
        offloaded = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
        if stage == 2 and offloaded and processes.precision != "fp32":
            raise ValueError(
                "zero_optimization.offload_optimizer at stage 2: DeepSpeed would add up Muon's gradients in "
                f"{processes.precision}; choose stage 1 or 3"
            )
    completed = configuration | {
        "zero_optimization": zero | {"stage": stage},
        "train_batch_size": recipe.batch.sequences,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.batch.sequences // (micro * processes.world_size),
        "gradient_clipping": 0.0 if by_muon else recipe.optimizer.gradient_clipping,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own timer waits for the device twice a micro-batch; gauges.py has one that does not.
        "timers": configuration.get("timers", {"throughput": {"enabled": False}}),
        "steps_per_print": configuration.get("steps_per_print", 1 << 40),
    }
    if processes.precision != "fp32":
        # At stage 1 a gradient goes into the fp32 sums as it comes, and its bf16 is freed, not zeroed and added to.
        immediate = {"immediate_grad_update": True} if processes.precision == "bf16" else {}
        completed |= {
            processes.precision: {"enabled": True} | immediate,
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    return completed
