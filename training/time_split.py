"""Where the time of a step goes: its forward pass, the optimizer, and the collectives that arithmetic waits for.

What is left of a step's time is its backward pass. On GPUs a part lies between two events in the stream of work, which
are read after the step, so that nothing waits for them. Collectives on a stream of their own (`overlap_comm`) do not
count: what arithmetic waits for them is in the part that waits.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PARTS = ("forward", "optimizer", "communication")
# The collectives of ZeRO, by their names in DeepSpeed's backend (deepspeed/comm/torch.py).
COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast"),
    *("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_to_all_single"),
)


class TimeSplit:
    """Adds up the time of parts; they may lie within each other, and each counts without those within it."""

    def __init__(self, device: "torch.device") -> None:
        self._on_gpu = device.type == "cuda"
        self._stream = self._current_stream()
        self._open: list[str] = []
        self._since: Any = None
        self._spent: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []

    def begin(self, part: str) -> None:
        self._cut()
        self._open.append(part)

    def end(self, part: str) -> None:
        """An end without a begin, as of an evaluation, does not count."""
        if self._open and self._open[-1] == part:
            self._cut()
            self._open.pop()

    def watch_engine(self, engine: Any, optimizer: Any) -> None:
        """Follow the forward passes of an engine in training, an optimizer of torch's kind, and all collectives."""
        # An engine of DeepSpeed hands `eval` on to its module, and is itself always in training.
        engine.register_forward_pre_hook(lambda *_: self.begin("forward") if engine.module.training else None)
        engine.register_forward_hook(lambda *_: self.end("forward"))
        if optimizer is not None:
            optimizer.register_step_pre_hook(lambda *_: self.begin("optimizer"))
            optimizer.register_step_post_hook(lambda *_: self.end("optimizer"))
        self._watch_collectives()

    def seconds(self) -> dict[str, float]:
        """The sums of all PARTS since they were last asked for."""
        if self._events:
            self._events[-1][2].synchronize()
        for part, begin, end in self._events:
            self._spent[part] += begin.elapsed_time(end) / 1000
        self._events.clear()
        found = {part: self._spent[part] for part in PARTS}
        self._spent.clear()
        return found

    def _cut(self) -> None:
        """What went by since the last cut is the innermost part's."""
        now = self._now()
        if self._open and self._on_gpu:
            self._events.append((self._open[-1], self._since, now))
        elif self._open:
            self._spent[self._open[-1]] += now - self._since
        self._since = now

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _current_stream(self) -> Any:
        if not self._on_gpu:
            return None
        import torch

        return torch.cuda.current_stream()

    def _watch_collectives(self) -> None:
        """In DeepSpeed's backend, through which all collectives of its engines go; another split takes them over."""
        import torch
        from deepspeed.comm import comm

        for name in COLLECTIVES:
            plain = getattr(type(comm.cdb), name).__get__(comm.cdb)
            setattr(comm.cdb, name, torch.compiler.disable(self._timed(plain)))

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(collective)
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._current_stream() != self._stream:
                return collective(*arguments, **named)
            self.begin("communication")
            try:
                work = collective(*arguments, **named)
            finally:
                self.end("communication")
            return work if work is None else _Work(work, self)

        return timed


class _Work:
    """A collective that goes on; to wait for it is communication too."""

    def __init__(self, work: Any, split: TimeSplit) -> None:
        self._work, self._split = work, split

    def wait(self, *arguments: Any) -> Any:
        self._split.begin("communication")
        try:
            return self._work.wait(*arguments)
        finally:
            self._split.end("communication")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
