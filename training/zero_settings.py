"""A user's DeepSpeed configuration, checked before any process takes a device: what it may say, and what it may not.

DeepSpeed ignores keys that it does not know, has defaults that its users do not expect, and asserts late. Here every
key that another setting decides is compared with that, removed keys are named with what to do instead, and notes tell
where a default would have been another.
"""

import difflib
import json
import logging
from pathlib import Path
from typing import Any

from training.config import Recipe
from training.nvme import BUFFERS, PIPELINED_BUFFERS

OFF_BY_REMOVAL = "remove it"
REMOVED = {
    "nebula": "checkpoints are written by --checkpoint_every, in the background; remove it",
    "compression_training": "quantise the exported model instead; remove it",
    "amp": "use --compute.precision bf16 or fp16; remove it",
    "quantize_training": "quantise the exported model instead; remove it",
    "sparse_gradients": "gradients of embeddings are reduced as they are; remove it",
    "eigenvalue": "it served quantize_training; remove it",
    "sparse_attention": "choose an attention of the model (--model.config); remove it",
    "elasticity": "a run goes on with any number of processes by itself; remove it",
    "graph_harvesting": "use --compute.compile true; remove it",
    "curriculum_learning": "sequence lengths are warmed up by the run's own settings; remove it",
    "progressive_layer_drop": OFF_BY_REMOVAL,
    "zero_optimization.mics_shard_size": "use zero_optimization.zero_hpz_partition_size; remove it",
    "zero_optimization.mics_hierarchical_params_gather": "use zero_optimization.zero_hpz_partition_size; remove it",
    "zero_optimization.zeropp_loco_param": "zero_quantized_gradients works without it; remove it",
    "zero_optimization.cpu_offload": 'use zero_optimization.offload_optimizer {"device": "cpu"}',
    "zero_optimization.cpu_offload_params": 'use zero_optimization.offload_param {"device": "cpu"}',
    "zero_optimization.cpu_offload_use_pin_memory": 'use "pin_memory": true in zero_optimization.offload_optimizer',
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": (
        "use zero_optimization.stage3_gather_16bit_weights_on_model_save"
    ),
    "zero_optimization.elastic_checkpoint": "a run goes on with any number of processes by itself; remove it",
}
ADAM_DEFAULTS = {"weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8, "lr": 1e-3}
log = logging.getLogger("train")


def read_configuration(path: str, recipe: Recipe, world_size: int) -> dict[str, Any]:
    """A DeepSpeed configuration file, without what the run's settings decide; ValueError says what contradicts them.

    Values "auto", as `transformers` knows them, are left to the run.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no DeepSpeed configuration at {path}; infra/deepspeed/ holds some")
    try:
        record = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no JSON object; infra/deepspeed/ holds examples")
    record = _without_auto(record)
    recipe.batch.micro_size(world_size)  # refuses what no file decides
    try:
        _refuse_forms(record)
        _refuse_removed(record)
        _refuse_unknown(record)
        _refuse_batch(record, recipe, world_size)
        _refuse_precision(record, recipe)
        _refuse_optimizer(record, recipe)
        _refuse_offload(record.get("zero_optimization", {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {key: value for key, value in record.items() if key not in (*DECIDED, *NEUTRAL)}


DECIDED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "torch_autocast",
    "data_types",
    "communication_data_type",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)


INSTEAD = {
    "checkpoint": "checkpoints are written and read by --checkpoint_every and --resume",
    "activation_checkpointing": "activations are checkpointed by --compute.checkpoint_activations",
    "compile": "the model is compiled by --compute.compile",
    "managed_gradient_accumulation": "micro-batches are accumulated by --batch.sequences_per_device",
    "data_efficiency": "sequence lengths are warmed up by --data.warmup_steps",
}
# What has to be as DeepSpeed has it by default, and why.
NEUTRAL: dict[str, tuple[Any, str]] = {
    "gradient_allreduce_op": ("mean", "the gradient of a global batch is its mean over labels, however it is cut"),
    "prescale_gradients": (False, "gradients are summed in fp32 and do not overflow"),
    "gradient_predivide_factor": (1, "gradients are summed in fp32 and do not overflow"),
    "zero_optimization.compute_grad_norm": (True, "steps are judged by the norm of their gradient"),
    "zero_optimization.legacy_stage1": (False, "DeepSpeed has it no more"),
    "zero_optimization.load_from_fp32_weights": (True, "a run would not go on in the same bits"),
    "zero_optimization.save_muon_momentum_buffer_in_memory": (False, "momenta wait where other states do"),
    "zero_optimization.stage3_module_granularity_threshold": (0, "DeepSpeed 0.19 stops at the first backward pass"),
    "zero_optimization.zenflow": (None, "updates would pass by what looks for bad steps"),
}
# What changes no number of a run: how it communicates, and what DeepSpeed itself tells.
LEFT_TO_THE_USER = (
    *("zero_optimization", "aio", "comms_logger", "flops_profiler", "wall_clock_breakdown", "memory_breakdown"),
    *("steps_per_print", "dump_state", "log_level", "disable_allgather", "disable_python_gc", "tensorboard"),
    *("wandb", "csv_monitor", "comet", "timers"),
)
ZERO = (
    *("stage", "allgather_bucket_size", "allgather_partitions", "contiguous_gradients"),
    *("enable_sanity_checks", "ignore_unused_parameters", "leaf_module"),
    *("log_trace_cache_warnings", "memory_efficient_linear", "offload_optimizer", "offload_param", "overlap_comm"),
    *("override_module_apply", "parameter_alignment", "pipeline_loading_checkpoint", "reduce_bucket_size"),
    *("reduce_scatter", "round_robin_gradients", "sub_group_size"),
    *("use_multi_rank_bucket_allreduce", "zero_hpz_partition_size", "zero_quantized_gradients"),
    *("zero_quantized_nontrainable_weights", "zero_quantized_weights", "stage3_allgather_sequential"),
    *("stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_model_persistence_threshold", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size"),
    "stage3_use_all_reduce_for_fetch_params",
)
OBJECTS = ("zero_optimization", "fp16", "bf16", "torch_autocast", "data_types", "optimizer")


def _without_auto(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in record.items() if value != "auto"}
    return {key: _without_auto(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _refuse_forms(record: dict[str, Any]) -> None:
    for key in OBJECTS:
        if not isinstance(record.get(key, {}), dict):
            raise ValueError(f"{key!r} is {record[key]!r} and must be an object, as in infra/deepspeed/")
    zero = "zero_optimization"
    for section, key in ((zero, "offload_optimizer"), (zero, "offload_param"), ("optimizer", "params")):
        if not isinstance(record.get(section, {}).get(key) or {}, dict):
            raise ValueError(f"'{section}.{key}' is {record[section][key]!r} and must be an object, as in DeepSpeed")
    every = record.get("steps_per_print", 1)
    if not isinstance(every, int | float) or not every >= 1:
        raise ValueError(f"steps_per_print {every!r} is no number of steps from 1 on; remove it")
    stage = record.get("zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ValueError(f"zero_optimization.stage {stage!r} is none of 0, 1, 2 and 3")


def _refuse_unknown(record: dict[str, Any]) -> None:
    """DeepSpeed passes over keys that it does not know: a slip of the pen would train at another stage."""
    for key, instead in INSTEAD.items():
        if key in record:
            raise ValueError(f"{key!r} is decided by this training: {instead}; remove it")
    for section, names in {"": (*DECIDED, *LEFT_TO_THE_USER), "zero_optimization": ZERO}.items():
        for key, value in (record.get(section, {}) if section else record).items():
            whole = ".".join(filter(None, (section, key)))
            if whole in NEUTRAL:
                neutral, why = NEUTRAL[whole]
                if value != neutral:
                    raise ValueError(f"{whole!r} {value!r} is not offered: {why}; remove it")
                continue
            if key not in names:
                close = difflib.get_close_matches(key, names, 1)
                meant = f"; did you mean {close[0]!r}?" if close else "; remove it"
                raise ValueError(f"{whole!r} is no key that is known here{meant}")


def _refuse_removed(record: dict[str, Any]) -> None:
    zero = record.get("zero_optimization", {})
    for key, instead in REMOVED.items():
        section, _, name = key.rpartition(".")
        if name in (zero if section else record):
            raise ValueError(f"{key!r} is no key of DeepSpeed any more: {instead}")


def _refuse_batch(record: dict[str, Any], recipe: Recipe, world_size: int) -> None:
    """Batch sizes that differ from the run's, or from each other."""
    micro = recipe.batch.micro_size(world_size)
    accumulation = recipe.batch.sequences // (micro * world_size)
    ours = {
        "train_batch_size": (recipe.batch.sequences, "--batch.sequences"),
        "train_micro_batch_size_per_gpu": (micro, "--batch.sequences_per_device"),
        "gradient_accumulation_steps": (accumulation, "--batch.sequences and --batch.sequences_per_device"),
        "gradient_clipping": (recipe.optimizer.gradient_clipping, "--optimizer.gradient_clipping"),
    }
    theirs: list[Any] = [record.get(key) for key in tuple(ours)[:3]]
    if None not in theirs and theirs[0] != theirs[1] * theirs[2] * world_size:
        whole, part, steps = theirs
        raise ValueError(
            f"train_batch_size {whole} is not {part} a device * {steps} accumulation steps * {world_size} processes; "
            "remove the three, --batch.sequences and --batch.sequences_per_device decide"
        )
    for key, (value, option) in ours.items():
        _refuse_other(key, record.get(key, value), value, option)


def _refuse_precision(record: dict[str, Any], recipe: Recipe) -> None:
    chosen = recipe.compute.precision
    for key, precision in (("fp16", "fp16"), ("bf16", "bf16"), ("torch_autocast", "bf16")):
        if record.get(key, {}).get("enabled", False) and chosen != precision:
            raise ValueError(f"{key!r} is decided by --compute.precision, which is {chosen}; give {precision} there")
    given = record.get("data_types", {}).get("grad_accum_dtype", "fp32")
    if given not in ("fp32", "float32", "float", "torch.float32"):
        raise ValueError(f"data_types.grad_accum_dtype {given}: gradients are accumulated in fp32 here; remove it")
    given = record.get("communication_data_type", "fp32")
    if given not in ("fp32", "float32", "float"):
        raise ValueError(f"communication_data_type {given}: gradients are reduced in fp32 here; remove it")


def _refuse_optimizer(record: dict[str, Any], recipe: Recipe) -> None:
    if "scheduler" in record:
        raise ValueError("'scheduler' is decided by --schedule.*; remove it from the file")
    if "optimizer" not in record:
        return
    settings, kind = recipe.optimizer, str(record["optimizer"].get("type", "AdamW"))
    if kind.lower() not in ({"muon"} if settings.kind == "muon" else {"adam", "adamw"}):
        raise ValueError(f"'optimizer' of type {kind} is decided by --optimizer.*; remove it from the file")
    if settings.kind == "muon":
        log.warning("DeepSpeed gives Muon every matrix whose name lacks 'embed'; here it gets those of the blocks")
    given = record["optimizer"].get("params") or {}
    rate = settings.muon_learning_rate if settings.kind == "muon" else settings.learning_rate
    ours = {
        "lr": (rate, "--optimizer.learning_rate"),
        "weight_decay": (settings.weight_decay, "--optimizer.weight_decay"),
        "betas": ([settings.beta1, settings.beta2], "--optimizer.beta1 and --optimizer.beta2"),
        "eps": (settings.epsilon, "--optimizer.epsilon"),
    }
    for key, (value, option) in ours.items():
        _refuse_other(f"optimizer.params.{key}", given.get(key, value), value, option)
        if key not in given and value != ADAM_DEFAULTS[key]:
            log.warning("optimizer.params.%s: %s by %s, where DeepSpeed's default is %s", key, value, option,
                        ADAM_DEFAULTS[key])  # fmt: skip


def _refuse_offload(zero: dict[str, Any]) -> None:
    stage = zero.get("stage", 0)
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = (zero.get(key) or {}).get("device", "none")
        if device not in ("none", "cpu", "nvme"):
            raise ValueError(f"zero_optimization.{key}.device {device} is none of none, cpu and nvme")
        needed = 3 if device == "nvme" else least
        if device != "none" and stage < needed:
            raise ValueError(f"zero_optimization.{key} to {device} needs stage {needed}, the file has {stage}")
        if device == "nvme":
            _refuse_nvme(key, zero[key])
        if (zero.get(key) or {}).get("ratio", 1) != 1:
            raise ValueError(f"zero_optimization.{key}.ratio: states are offloaded all or none here; remove it")


def _refuse_nvme(key: str, settings: dict[str, Any]) -> None:
    """Settings with which DeepSpeed stops at an assertion, or reads what is not there."""
    if not isinstance(settings.get("nvme_path"), str) or not settings["nvme_path"]:
        raise ValueError(f"zero_optimization.{key} to nvme needs nvme_path, a folder on a fast local disk")
    if settings.get("max_in_cpu", 0):
        raise ValueError(f"zero_optimization.{key}.max_in_cpu must be 0: weights are on the disk, or offloaded to cpu")
    if settings.get("fast_init"):
        raise ValueError(f"zero_optimization.{key}.fast_init asks for larger buffers than there are; remove it")
    pipelined = settings.get("pipeline_read") or settings.get("pipeline_write")
    least = PIPELINED_BUFFERS if pipelined else BUFFERS
    count = settings.get("buffer_count", least)
    if type(count) is not int or (key == "offload_optimizer" and count < least):
        raise ValueError(f"zero_optimization.{key}.buffer_count {count!r} is below {least}, or no number")


def _refuse_other(key: str, given: Any, ours: Any, option: str) -> None:
    if given != ours:
        raise ValueError(
            f"{key} {given!r} is decided by {option}, which makes it {ours!r}; make them agree or remove it"
        )
