"""Optimizer states and weights that wait on a fast local disk between their uses (ZeRO-Infinity), set up.

DeepSpeed 0.19 does the reading and writing. Here is what it asks of the machine, folders that no other process writes
to, and the settings without which it stops at an assertion.
"""

import contextlib
import hashlib
import logging
import os
import resource
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OFFLOADS = ("offload_optimizer", "offload_param")
OPTIMIZER_BYTES = 16  # a parameter: weights in fp32, two moments, and their gradient
# Tensors that are in memory at once: the four of a part (OPTIMIZER_BYTES), pipelined those of its neighbours too.
BUFFERS, PIPELINED_BUFFERS = 4, 12
WEIGHT_BUFFERS = 5  # DeepSpeed's default
PART_ELEMENTS = 1_000_000_000  # DeepSpeed's default of sub_group_size
log = logging.getLogger("train")


def offloads(configuration: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a DeepSpeed configuration leaves on a disk, with its settings."""
    zero = configuration.get("zero_optimization", {})
    return {key: zero[key] for key in OFFLOADS if (zero.get(key) or {}).get("device") == "nvme"}


@contextlib.contextmanager
def own_folders(configuration: dict[str, Any], run: Path, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
    """The configuration with folders of this process's own on the disk, which are gone afterwards.

    DeepSpeed's names know the rank alone, so that two runs on a machine would write to the same files. What killed
    processes leave behind is removed when their run goes on, on the same machine.

    Raises:
        ValueError: the machine lacks what has to be there, or the disk cannot be used.
    """
    wanted = offloads(configuration)
    if not wanted:
        yield configuration
        return
    _refuse_what_is_missing()
    name = hashlib.blake2b(f"{socket.gethostname()}:{run.resolve()}".encode(), digest_size=6).hexdigest()
    folders = {key: Path(settings["nvme_path"]) / f"corella_{name}_{rank}" for key, settings in wanted.items()}
    zero = configuration["zero_optimization"]
    own = {key: wanted[key] | {"nvme_path": str(folder)} for key, folder in folders.items()}
    try:
        for key, folder in folders.items():
            _make(folder, f"zero_optimization.{key}.nvme_path {wanted[key]['nvme_path']}")
            for left in folder.parent.glob(f"corella_{name}_*"):
                if int(left.name.rpartition("_")[2]) >= world_size:
                    shutil.rmtree(left, ignore_errors=True)
        yield configuration | {"zero_optimization": zero | own}
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def has_cuda_without_toolkit() -> bool:
    """Whether there are NVIDIA's GPUs, and not what DeepSpeed builds its parts with."""
    import torch
    from torch.utils import cpp_extension

    return torch.cuda.is_available() and not torch.version.hip and cpp_extension.CUDA_HOME is None


def _refuse_what_is_missing() -> None:
    """ValueError where DeepSpeed cannot build its reader of disks; a line where it has to."""
    if not (shutil.which("c++") or shutil.which("g++")) or not shutil.which("ninja"):
        raise ValueError("offload to nvme needs a C++ compiler and ninja, to build DeepSpeed's reader; install them")
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import get_default_build_root

    if has_cuda_without_toolkit():
        raise ValueError(
            "offload to nvme needs the CUDA toolkit, to build DeepSpeed's reader; install it, set CUDA_HOME"
        )
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ValueError("offload to nvme needs the headers of libaio (libaio-dev, libaio-devel); install them")
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if not any(root.rglob("async_io.so")) or any(root.rglob("lock")):
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


def clear(configuration: dict[str, Any]) -> None:
    """Remove the files of an engine before: those of the next have other names."""
    for settings in offloads(configuration).values():
        shutil.rmtree(settings["nvme_path"], ignore_errors=True)
        Path(settings["nvme_path"]).mkdir()


def completed(configuration: dict[str, Any], model: "torch.nn.Module", world_size: int) -> dict[str, Any]:
    """The configuration with the buffers and distances that DeepSpeed needs, where the user chose none.

    Weights on the disk come in one module at a time: what DeepSpeed fetches ahead, or keeps for its next use, takes
    buffers until there are none, and a weight that is used twice in a row is fetched twice, which it does not allow.

    Raises:
        ValueError: the disk has no room, or less memory may be locked than the buffers take.
    """
    wanted = offloads(configuration)
    if not wanted:
        return configuration
    zero = configuration["zero_optimization"]
    if settings := wanted.get("offload_param"):
        largest = max(parameter.numel() for parameter in model.parameters())
        zero = {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0} | zero
        zero |= {"offload_param": {"buffer_size": -(-largest // world_size)} | settings | {"max_in_cpu": 0}}
    if settings := wanted.get("offload_optimizer"):
        pipelined = settings.get("pipeline_read") or settings.get("pipeline_write")
        zero |= {"offload_optimizer": {"buffer_count": PIPELINED_BUFFERS if pipelined else BUFFERS} | settings}
    found = configuration | {"zero_optimization": zero}
    _refuse_full_disk(wanted, model, world_size)
    _refuse_locked_memory(offloads(found), zero, model, world_size)
    _align_gradients()
    return found


def _refuse_full_disk(wanted: dict[str, dict[str, Any]], model: "torch.nn.Module", world_size: int) -> None:
    """DeepSpeed does not notice what could not be written."""
    parameters = list(model.parameters())
    share = sum(parameter.numel() for parameter in parameters) / world_size * int(os.environ["LOCAL_SIZE"])
    bytes_each = {"offload_optimizer": OPTIMIZER_BYTES, "offload_param": parameters[0].element_size()}
    needed: Counter[int] = Counter()  # by disk
    for key, settings in wanted.items():
        own = Path(settings["nvme_path"])
        disk, free = own.stat().st_dev, shutil.disk_usage(own).free
        needed[disk] += round(share * bytes_each[key])
        if free < needed[disk]:
            raise ValueError(
                f"zero_optimization.{key}.nvme_path {own.parent} has {free / 1e9:,.1f} GB free, this machine's "
                f"processes need {needed[disk] / 1e9:,.1f}; name a larger disk, or use more machines"
            )


def _refuse_locked_memory(
    wanted: dict[str, dict[str, Any]], zero: dict[str, Any], model: "torch.nn.Module", world_size: int
) -> None:
    """DeepSpeed aborts where its buffers cannot be locked in memory; root may always."""
    share = sum(parameter.numel() for parameter in model.parameters()) / world_size
    part = 4 * min(share, zero.get("sub_group_size", PART_ELEMENTS))
    needed = part * wanted["offload_optimizer"]["buffer_count"] if "offload_optimizer" in wanted else 0.0
    if settings := wanted.get("offload_param"):
        needed += 4 * settings.get("buffer_count", WEIGHT_BUFFERS) * settings["buffer_size"] + part
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() and limit != resource.RLIM_INFINITY and limit < needed:
        raise ValueError(
            f"offload to nvme locks {needed / 1e9:,.2f} GB of memory a process, and {limit / 1e9:,.2f} may be locked "
            "(ulimit -l); raise that limit, or give a smaller zero_optimization.sub_group_size"
        )


def _align_gradients() -> None:
    """Have DeepSpeed write and read gradients at addresses that a disk can reach, once a process.

    It aligns the length of a piece and not its place in the buffer, does not look at what came of a read, and goes on
    with what the buffer held before. The first elements, up to an address that will do, become a piece that stays in
    memory, as its last ones are.
    """
    from deepspeed.runtime.swap_tensor.optimizer_utils import OptimizerSwapper

    usual = OptimizerSwapper._adjust_for_misaligned_lengths
    if getattr(usual, "aligns_places", False):
        return

    def adjusted(self: Any, tensors: Any, offsets: Any) -> Any:
        pieces, places = [], []
        for tensor, offset in zip(tensors, offsets, strict=True):
            first = min(-offset % self.numel_alignment, tensor.numel())
            for begin, count in ((0, first), (first, tensor.numel() - first)):
                if count:
                    piece = tensor.narrow(0, begin, count)
                    # A first one that stays would keep the whole gradient.
                    pieces.append(piece.clone() if count < tensor.numel() and not begin else piece)
                    places.append(offset + begin)
        return usual(self, pieces, places)

    adjusted.aligns_places = True  # type: ignore[attr-defined]
    OptimizerSwapper._adjust_for_misaligned_lengths = adjusted


def partition(configuration: dict[str, Any], model: "torch.nn.Module") -> None:
    """Cut a model whose weights are to wait on the disk, after its optimizer was made from whole ones; on CPUs alone.

    DeepSpeed does it by itself, but where fp16 is not supported it takes the weights for bf16, whatever they are.
    """
    import deepspeed

    if settings := offloads(configuration).get("offload_param"):
        pinned = settings.get("pin_memory", True)
        deepspeed.zero.Init(module=model, config_dict_or_path=configuration, remote_device="nvme", pin_memory=pinned)
