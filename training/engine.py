"""The DeepSpeed engine of a run: the user's ZeRO settings, completed by what the run's own settings decide."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import model as models
from training import optimizer as optimizers
from training.config import Recipe
from training.processes import Processes

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from transformers import PretrainedConfig

DEFAULT_CONFIGURATION = str(Path(__file__).parent.parent / "infra" / "deepspeed" / "zero2.json")
DECIDED_ELSEWHERE = {
    "train_batch_size": "--batch.sequences",
    "train_micro_batch_size_per_gpu": "--batch.sequences_per_device",
    "gradient_accumulation_steps": "--batch.sequences and --batch.sequences_per_device",
    "gradient_clipping": "--optimizer.gradient_clipping",
    "optimizer": "--optimizer.*",
    "scheduler": "--schedule.*",
    "fp16": "the device: fp32 on CPUs, bf16 on GPUs",
    "bf16": "the device: fp32 on CPUs, bf16 on GPUs",
    "torch_autocast": "the device: fp32 on CPUs, bf16 on GPUs",
    "data_types": "the run: gradients accumulate in fp32",
    "communication_data_type": "the run: gradients are reduced in fp32",
    "zero_allow_untested_optimizer": "--optimizer.*",
    "zero_force_ds_cpu_optimizer": "--optimizer.*",
}


def read_configuration(path: str) -> dict[str, Any]:
    """A DeepSpeed configuration file; ValueError names a key in it that the run's own settings decide."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no DeepSpeed configuration at {path}; infra/deepspeed/ holds some")
    try:
        record: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    for key in record:
        if key in DECIDED_ELSEWHERE:
            raise ValueError(f"{path}: {key!r} is decided by {DECIDED_ELSEWHERE[key]}; remove it from the file")
    return record


def zero_stage(configuration: dict[str, Any], precision: str) -> int:
    """The ZeRO stage that a configuration runs at: 0 becomes 1 in bf16, where DeepSpeed's stage 0 is not sound.

    In bf16 its stage 0 accumulates in bf16 and takes an empty step first, which shortens the first update.
    """
    stage = int(configuration.get("zero_optimization", {}).get("stage", 0))
    return 1 if stage == 0 and precision == "bf16" else stage


def build(
    recipe: Recipe, config: "PretrainedConfig", configuration: dict[str, Any], processes: Processes
) -> "DeepSpeedEngine":
    """An engine around a fresh model; every process must call it."""
    import deepspeed

    model = models.build(config, recipe.seed)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizers.build(model, recipe.optimizer),
        config=_completed(recipe, configuration, processes),
        dist_init_required=False,
    )
    return engine


def _completed(recipe: Recipe, configuration: dict[str, Any], processes: Processes) -> dict[str, Any]:
    micro = recipe.batch.micro_size(processes.world_size)
    stage = zero_stage(configuration, processes.precision)
    zero = configuration.get("zero_optimization", {})
    if stage != zero.get("stage", 0):
        logging.getLogger("train").info("ZeRO stage 0 in bf16 is run as stage 1")
    completed = configuration | {
        "zero_optimization": zero | {"stage": stage},
        "train_batch_size": recipe.batch.sequences,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.batch.sequences // (micro * processes.world_size),
        "gradient_clipping": recipe.optimizer.gradient_clipping,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": configuration.get("steps_per_print", 1 << 40),
    }
    if processes.precision == "bf16":
        completed |= {
            "bf16": {"enabled": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    return completed
