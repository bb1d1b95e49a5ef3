"""The processes of a run: how they find each other, which device and precision each uses, what they agree on."""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MOST_THREADS = 4096
RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FIRST_SPEAKS_SECONDS, LONGEST_REASON = 3.0, 120
LONGEST_WAIT = timedelta(minutes=30)  # for each other; a slow file system keeps some busy for long


@dataclass(frozen=True)
class Processes:
    """This process among all of the run.

    `precision` is that of the weights: fp32, bf16 or fp16. `autocast` says that the weights are fp32 and matrix
    products are computed in bf16 all the same.
    """

    rank: int
    world_size: int
    device: "torch.device"
    precision: str
    autocast: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes; every process must call. Costs one small reduction and a wait for the device."""
        if self.world_size == 1:
            return [float(value) for value in values]
        import torch
        from deepspeed import comm

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        comm.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def from_first(self, value: Any) -> Any:
        """The first process's `value` (anything that pickles), on every process."""
        import torch.distributed

        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """The `value` (anything small that pickles) of each process, by rank, on every process."""
        import torch.distributed

        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def refuse_differences(self, mine: dict[str, Any]) -> None:
        """ValueError, on all processes, where what is to be the same on each is not; every process must call."""
        for name, values in zip(mine, zip(*self.gathered(list(mine.values())), strict=True), strict=True):
            other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise ValueError(
                    f"{name} of process {other} is {values[other]}, that of process 0 is {values[0]}; give all "
                    "processes the same command, and the same shards on every machine"
                )

    def wait(self) -> None:
        """Return when every process has come here."""
        from deepspeed import comm

        comm.barrier()


def join(local_rank: int, threads: int, precision: str = "auto") -> Processes:
    """Meet the other processes. Works under `deepspeed`, under torchrun, with RENDEZVOUS set, and alone.

    No compiler is needed: DeepSpeed's shared-memory collectives, which it would build here, are left to gloo.

    Args:
        local_rank: as the launcher passes it; -1 = from the environment.
        threads: of torch on CPUs, a process; 0 = OMP_NUM_THREADS, else cores divided by local processes.
        precision: as of `config.Compute`.
    """
    if threads < 0:
        raise ValueError(f"threads {threads} is below 0; 0 takes OMP_NUM_THREADS, or a share of the cores")
    if threads > MOST_THREADS:
        raise ValueError(f"threads {threads} is above {MOST_THREADS:,}; choose about as many as there are cores")
    _complete_rendezvous(local_rank)
    import torch

    on_gpu = torch.cuda.is_available()
    if precision == "fp16" and not on_gpu:
        raise ValueError("compute.precision fp16 needs GPUs, and there are none; use bf16 or fp32")
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(threads or _threads())
        _keep_freed_memory()
    _quieten()
    import deepspeed
    from deepspeed import ops

    if not on_gpu:
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False, timeout=LONGEST_WAIT)
    except torch.distributed.DistNetworkError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        line = f"the processes cannot meet at {place}: {reason}; give the launcher another --master_port or address"
        raise ValueError(line) from None
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not on_gpu:
        return Processes(rank, world_size, device, "fp32", autocast=precision == "bf16")
    return Processes(rank, world_size, device, "bf16" if precision == "auto" else precision)


def _keep_freed_memory() -> None:
    """Have glibc's malloc keep what tensors free for the tensors of the next step; other allocators are left alone.

    By itself it gives each tensor above 32 MB (logits and their gradients) back to the system, which has to clear its
    pages anew: a tenth of a step. The names and numbers are those of <malloc.h>; see mallopt(3).
    """
    m_trim_threshold, m_mmap_max = -1, -4
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def _quieten() -> None:
    """Keep the libraries' notices and bars out of the progress line; their errors stay."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message=r"barrier\(\)", module="torch.distributed")


def leave() -> None:
    """Wait for the other processes and part from them in order, so that none sees a broken connection."""
    import torch.distributed

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


class Ending:
    """The exit code of a process that met others; when Python comes to its end, the process ends by it, at once.

    Python and the libraries are not taken apart: a thread of gloo that lets go of a tensor meanwhile ends the process
    with SIGABRT, after all was done and saved.
    """

    def __init__(self) -> None:
        self.code = 1
        atexit.register(self._end)

    def _end(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code)


def _complete_rendezvous(local_rank: int) -> None:
    """Fill in what a lone process lacks; ValueError names what one of several lacks."""
    environment = os.environ
    if local_rank >= 0:
        environment.setdefault("LOCAL_RANK", str(local_rank))
    if world_size() == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for name, value in zip(RENDEZVOUS, ("0", "0", "1", "127.0.0.1", port), strict=True):
            environment.setdefault(name, value)
    missing = [name for name in RENDEZVOUS if name not in environment]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']} but {', '.join(missing)} is not set; start the processes "
            "with deepspeed or torchrun, or set it for each"
        )
    environment.setdefault("LOCAL_SIZE", environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]))


def on_several_machines() -> bool:
    """Whether the environment tells of more processes than this machine has."""
    here = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE")
    return here is not None and _count("LOCAL_SIZE", here) < world_size()


def world_size() -> int:
    """How many processes the environment says there are; ValueError where that is no number of them."""
    return _count("WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} is {text!r} in the environment, which is no number from 1 on; set or unset it")
    return int(text)


def _threads() -> int:
    chosen = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if chosen:
        return _count("OMP_NUM_THREADS", chosen)
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_SIZE"]))


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Delay a user's fault on all processes but the first, so that the launcher ends them after one line, not many."""
    try:
        yield
    except (ValueError, OSError):
        if int(os.environ.get("RANK", "0")):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # of the launcher, which saw the first one end
            time.sleep(FIRST_SPEAKS_SECONDS)
        raise


@contextlib.contextmanager
def loss_told() -> Iterator[None]:
    """What collectives raise where another process ended, as an OSError of one line."""
    try:
        yield
    except RuntimeError as error:
        words = " ".join(str(error).split())
        if not re.search(r"gloo|NCCL|Connection (closed|reset)|TCPStore", words):
            raise
        raise OSError(
            f"another process of the run ended or cannot be reached ({words[:LONGEST_REASON]}); the same command goes "
            "on from the last checkpoint"
        ) from error
