"""Optimizer states and weights that wait on a fast local disk between their uses (ZeRO-Infinity), set up.

DeepSpeed 0.19 does the reading and writing. Here is what it asks of the machine, folders that no other process writes
to, and the settings without which it stops at an assertion.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OFFLOADS = ("offload_optimizer", "offload_param")
OPTIMIZER_BYTES = 16  # a parameter: weights in fp32, two moments, and their gradient
PIPELINED_BUFFERS = 12  # four tensors each of the parts that are read, updated and written at once
log = logging.getLogger("train")


def offloads(configuration: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a DeepSpeed configuration leaves on a disk, with its settings."""
    zero = configuration.get("zero_optimization", {})
    return {key: zero[key] for key in OFFLOADS if (zero.get(key) or {}).get("device") == "nvme"}


@contextlib.contextmanager
def own_folders(configuration: dict[str, Any], run: Path, rank: int) -> Iterator[dict[str, Any]]:
    """The configuration with folders of this process's own on the disk, which are gone afterwards.

    DeepSpeed's names know the rank alone, so that two runs on a machine would write to the same files. What a killed
    process leaves behind is removed when its run goes on.

    Raises:
        ValueError: the machine lacks what has to be there, or the disk cannot be used.
    """
    wanted = offloads(configuration)
    if not wanted:
        yield configuration
        return
    _refuse_what_is_missing()
    digest = hashlib.blake2b(str(run.resolve()).encode(), digest_size=6).hexdigest()
    folders = {key: Path(settings["nvme_path"]) / f"corella_{digest}_{rank}" for key, settings in wanted.items()}
    zero = configuration["zero_optimization"]
    own = {key: wanted[key] | {"nvme_path": str(folder)} for key, folder in folders.items()}
    try:
        for key, folder in folders.items():
            _make(folder, f"zero_optimization.{key}.nvme_path {wanted[key]['nvme_path']}")
        yield configuration | {"zero_optimization": zero | own}
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_what_is_missing() -> None:
    """ValueError where DeepSpeed cannot build its reader of disks; a line where it has to."""
    if not (shutil.which("c++") or shutil.which("g++")) or not shutil.which("ninja"):
        raise ValueError("offload to nvme needs a C++ compiler and ninja, to build DeepSpeed's reader; install them")
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import get_default_build_root

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ValueError("offload to nvme needs the headers of libaio (libaio-dev, libaio-devel); install them")
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if not any(root.rglob("async_io.so")):
        log.info("building DeepSpeed's reader of disks, which takes minutes, once; if it never ends, remove %s", root)


def _make(folder: Path, setting: str) -> None:
    """An empty folder on a disk that can be written to past the page cache, as DeepSpeed does."""
    if not folder.parent.is_dir():
        raise ValueError(f"{setting} is no folder; make it on a fast local disk, on every machine")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(exist_ok=True)
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError as error:
        raise ValueError(f"{setting} cannot be written to directly: {error}; name a folder on a local disk") from None


def completed(configuration: dict[str, Any], model: "torch.nn.Module", world_size: int) -> dict[str, Any]:
    """The configuration with the buffers and distances that DeepSpeed needs, where the user chose none.

    Weights on the disk come in one module at a time: what DeepSpeed fetches ahead, or keeps for its next use, takes
    buffers until there are none, and a weight that is used twice in a row is fetched twice, which it does not allow.

    Raises:
        ValueError: the disk has no room.
    """
    wanted = offloads(configuration)
    if not wanted:
        return configuration
    _refuse_full_disk(wanted, model, world_size)
    zero = configuration["zero_optimization"]
    if settings := wanted.get("offload_param"):
        largest = max(parameter.numel() for parameter in model.parameters())
        zero = {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0} | zero
        zero |= {"offload_param": {"buffer_size": -(-largest // world_size)} | settings}
    if settings := wanted.get("offload_optimizer"):
        pipelined = settings.get("pipeline_read") or settings.get("pipeline_write")
        zero |= {"offload_optimizer": ({"buffer_count": PIPELINED_BUFFERS} if pipelined else {}) | settings}
    return configuration | {"zero_optimization": zero}


def _refuse_full_disk(wanted: dict[str, dict[str, Any]], model: "torch.nn.Module", world_size: int) -> None:
    parameters = list(model.parameters())
    share = sum(parameter.numel() for parameter in parameters) / world_size * int(os.environ["LOCAL_SIZE"])
    bytes_each = {"offload_optimizer": OPTIMIZER_BYTES, "offload_param": parameters[0].element_size()}
    for key, settings in wanted.items():
        own, needed = Path(settings["nvme_path"]), share * bytes_each[key]
        ours = own.parent.glob(f"{own.name.rpartition('_')[0]}_*/**/*.swp")  # of all processes, who may be ahead
        free = shutil.disk_usage(own).free + sum(path.stat().st_size for path in ours)
        if free < needed:
            raise ValueError(
                f"zero_optimization.{key}.nvme_path {own.parent} has {free / 1e9:,.1f} GB free, this machine's "
                f"processes need {needed / 1e9:,.1f}; name a larger disk, or use more machines"
            )


def partition(configuration: dict[str, Any], model: "torch.nn.Module") -> None:
    """Cut a model whose weights are to wait on the disk, after its optimizer was made from whole ones; on CPUs alone.

    DeepSpeed does it by itself, but where fp16 is not supported it takes the weights for bf16, whatever they are.
    """
    import deepspeed

    if settings := offloads(configuration).get("offload_param"):
        pinned = settings.get("pin_memory", True)
        deepspeed.zero.Init(module=model, config_dict_or_path=configuration, remote_device="nvme", pin_memory=pinned)
