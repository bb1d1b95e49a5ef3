"""What a step cost: share of the device's peak, memory, and where its time went. One set of gauges a process."""

import functools
import logging
import time
from typing import TYPE_CHECKING, Any

from training.arithmetic import known_peak
from training.operations import flops_per_token
from training.time_split import TimeSplit

if TYPE_CHECKING:
    import torch

    from training.config import Objective
    from training.meter import Row
    from training.processes import Processes
    from training.read_ahead import ReadAhead

MATMUL_SIZE, MATMUL_SECONDS = 1024, 0.3
log = logging.getLogger("train")


class Gauges:
    """Reads what each step cost; every process needs its own, and all must make theirs at once.

    Args:
        engine: of the run; hooks are put on its forward pass, its optimizer and its collectives.
        batches: the training data, which count how long they were waited for.
        processes: of the run.
        objective: of the run.
    """

    def __init__(self, engine: Any, batches: "ReadAhead", processes: "Processes", objective: "Objective") -> None:
        self._batches = batches
        self._processes, self._device, self._split = processes, processes.device, TimeSplit(processes.device)
        self._files, self._most = mapped_bytes(), 0
        self._flops = functools.cache(lambda length: flops_per_token(engine.module, length, objective))
        self._split.watch_engine(engine, innermost_optimizer(engine))
        mine, self.peak_source = peak_of(self._device, "bf16" if processes.autocast else processes.precision)
        self.peak = processes.total([mine])[0]
        if processes.is_first:
            log.info("MFU is of %.4g TFLOP/s: %s", self.peak / 1e12, self.peak_source)

    def begin(self) -> None:
        """A step begins: what was between steps is none of it."""
        self._split.seconds()
        self._batches.take_wait()

    def waits(self) -> list[float]:
        """This process's wait for data since the step began, in its place among zeros for the others."""
        waits = [0.0] * self._processes.world_size
        waits[self._processes.rank] = self._batches.take_wait()
        return waits

    def read(self, tokens: int, sequence_length: int, seconds: float, waits: list[float]) -> "Row":
        """The figures of the step that just ended. Backward is what no other part accounts for.

        Args:
            tokens: that all processes trained on together.
            sequence_length: of the rows that they were in.
            seconds: from the step's begin to its end.
            waits: for data, of every process: one that waits has all others wait for it.
        """
        waited, parts, longest = waits[self._processes.rank], self._split.seconds(), max(waits)
        rest = max(0.0, seconds - waited - sum(parts.values()))
        return {
            "mfu": round(tokens * self._flops(sequence_length) / seconds / self.peak, 5),
            "memory_bytes": self._memory(),
            "data_wait_seconds": round(waited, 6),
            "longest_data_wait_seconds": round(longest, 6),
            "longest_data_wait_process": waits.index(longest),
            "forward_seconds": round(parts["forward"], 5),
            "backward_seconds": round(rest, 5),
            "optimizer_seconds": round(parts["optimizer"], 5),
            "communication_seconds": round(parts["communication"], 5),
        }

    def _memory(self) -> int:
        """The most so far: pages of shards that came after a peak are none of it, though taken off it."""
        self._most = max(self._most, peak_memory_bytes(self._device, self._files))
        return self._most


def innermost_optimizer(engine: Any) -> Any:
    """The torch optimizer within DeepSpeed's wrappers, or None if there is none to hook."""
    inner = engine.optimizer
    while inner is not None and not hasattr(inner, "register_step_pre_hook"):
        inner = getattr(inner, "optimizer", None)
    return inner


def peak_of(device: "torch.device", precision: str) -> tuple[float, str]:
    """Operations a second of one process's device, and where the figure comes from.

    The data sheet where the device is known; else what a matrix product reaches here and now, in the run's precision.
    """
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = known_peak(name)
        if peak is not None:
            return peak, f"the data sheet of {name}, dense bf16"
        return measured_peak(device, precision), f"measured by a matrix product on {name}"
    return measured_peak(device, precision), f"measured by a matrix product on {torch.get_num_threads()} threads"


def measured_peak(device: "torch.device", precision: str) -> float:
    """Operations a second of the best of some square matrix products."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    size = MATMUL_SIZE * (8 if device.type == "cuda" else 1)
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + MATMUL_SECONDS
    while time.perf_counter() < deadline:
        begun = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # wait for the device
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def peak_memory_bytes(device: "torch.device", files: int | None = None) -> int:
    """The most that this process ever held: of the GPU's memory by torch, else of the machine's (resident).

    Pages of files that it shows beyond `files` bytes are the page cache's, as those of shards are, and not counted.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    peak = _status("VmHWM")
    if peak is not None:
        return peak if files is None else peak - max(0, mapped_bytes() - files)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def mapped_bytes() -> int:
    """Resident pages of files that this process shows: libraries, and shards; 0 where the system does not tell."""
    return _status("RssFile") or 0


def _status(name: str) -> int | None:
    """A figure of Linux about this process, in bytes."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))
    except (OSError, StopIteration):
        return None
