"""A user's DeepSpeed configuration, checked before any process takes a device: what it may say, and what it may not.

DeepSpeed ignores keys that it does not know, has defaults that its users do not expect, and asserts late. Here every
key that another setting decides is compared with that, removed keys are named with what to do instead, and notes tell
where a default would have been another.
"""

import json
import logging
from pathlib import Path
from typing import Any

from training.config import Recipe

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
    try:
        _refuse_removed(record)
        _refuse_batch(record, recipe, world_size)
        _refuse_precision(record, recipe)
        _refuse_optimizer(record, recipe)
        _refuse_offload(record.get("zero_optimization", {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {key: value for key, value in record.items() if key not in DECIDED}


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


def _without_auto(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in record.items() if value != "auto"}
    return {key: _without_auto(value) if isinstance(value, dict) else value for key, value in kept.items()}


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
    given = record["optimizer"].get("params", {})
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
        if device == "nvme" and not zero[key].get("nvme_path"):
            raise ValueError(f"zero_optimization.{key} to nvme needs nvme_path, a folder on a fast local disk")


def _refuse_other(key: str, given: Any, ours: Any, option: str) -> None:
    if given != ours:
        raise ValueError(f"{key} {given} is decided by {option}, which makes it {ours}; make them agree or remove it")
