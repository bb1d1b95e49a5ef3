"""Steps that must not count: the gradient is not finite, or far above what is usual in this run.

Such a step changes neither weights nor optimizer. DeepSpeed's ZeRO stages look for gradients that are not finite
themselves; stage 0 does not, and none knows what is usual. So the guard stands before the optimizer that DeepSpeed
calls last, at every stage, and reads the global gradient norm, which is the same number on every process.
"""

import collections
import logging
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from training.meter import Row

OnNan = Literal["rewind", "skip", "stop"]
USUAL_STEPS, LEAST_STEPS = 128, 16
log = logging.getLogger("train")


@dataclass(frozen=True)
class Tolerance:
    """What is done about bad steps.

    Args:
        on_nan: stop at the first one; skip them, and stop after `in_a_row`; or then go back to a checkpoint.
        in_a_row: bad steps after which a run does not go on as it was.
        spike_factor: a gradient norm is bad too above that many times the larger of two: the median of the last
            USUAL_STEPS good steps, once there are LEAST_STEPS, and what gradients are clipped to (1 where they are
            not); 0 = never.
    """

    on_nan: OnNan = "rewind"
    in_a_row: int = 3
    spike_factor: float = 50.0

    def __post_init__(self) -> None:
        if self.in_a_row < 1:
            raise ValueError(f"bad_steps {self.in_a_row} is below 1; choose 1 or more")
        if self.spike_factor and not self.spike_factor > 1:
            raise ValueError(f"spike_factor {self.spike_factor} is not above 1; choose 3 or more, or 0 for none")


@dataclass(frozen=True)
class Record:
    """What the guard remembers; checkpoints hold it, so that a resumed run judges as the unbroken one.

    Args:
        skipped: steps that were skipped so far.
        in_a_row: how many of the last ones.
        norms: gradient norms of the last good steps; none where spike_factor is 0.
    """

    skipped: int = 0
    in_a_row: int = 0
    norms: tuple[float, ...] = ()


class Guard:
    """Judges each step by its gradient norm, before the optimizer sees it."""

    def __init__(self, tolerance: Tolerance, record: Record) -> None:
        self.tolerance = tolerance
        self.skipped, self.in_a_row = record.skipped, record.in_a_row
        self.norms = collections.deque(record.norms, USUAL_STEPS)
        self._refused: bool | None = None
        self._norm, self._harmless = 0.0, 1.0

    def attach(self, engine: "DeepSpeedEngine") -> None:
        """Stand before the optimizer of `engine`."""
        self._harmless = engine.gradient_clipping() or 1.0
        base: Any = getattr(engine.optimizer, "optimizer", engine.optimizer)
        update = base.step
        sharded = base is not engine.optimizer
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        if engine.fp16_enabled() and scaler is not None:
            scaler.raise_error_at_min_scale = False  # it is judged here
        if not sharded:
            engine.clip_fp32_gradients = lambda: self._clip(engine, base)
        if hasattr(engine.optimizer, "refuses"):  # of Muon, asked before a gradient enters its momenta
            engine.optimizer.refuses = self._refuses

        def guarded(*arguments: Any, **named: Any) -> Any:
            if self._refused is None:
                if not sharded and not engine.gradient_clipping():
                    self._clip(engine, base)
                self._refuses(float(engine.optimizer._global_grad_norm))
            return None if self._refused else update(*arguments, **named)

        base.step = guarded

    def begin(self) -> None:
        """A step begins."""
        self._refused = None

    def refused(self, engine: "DeepSpeedEngine") -> bool:
        """Whether the step that was just taken changed nothing: by the guard, or by DeepSpeed itself."""
        return bool(self._refused) or not engine.was_step_applied()

    def settle(self, engine: "DeepSpeedEngine", refused: bool) -> "Row":
        """Count the step; what the metrics say of it."""
        if not refused:
            self.in_a_row = 0
            if self.tolerance.spike_factor:
                self.norms.append(self._norm)
            return {"skipped_steps": self.skipped}
        self.skipped += 1
        norm = engine.get_global_grad_norm()
        words = "a step with gradient norm %s was skipped, %d so far"
        log.warning(words, "unknown" if norm is None else f"{float(norm):.4g}", self.skipped)
        if self._refused or not _adapts(engine):
            self.in_a_row += 1
        return {"skipped_steps": self.skipped, "skipped": 1}

    @property
    def gives_up(self) -> bool:
        """Whether the run cannot go on as it was."""
        return self.in_a_row >= (1 if self.tolerance.on_nan == "stop" else self.tolerance.in_a_row)

    @property
    def record(self) -> Record:
        return Record(self.skipped, self.in_a_row, tuple(self.norms))

    def _refuses(self, norm: float) -> bool:
        """Judge a step by its gradient norm."""
        self._norm, most = norm, math.inf
        if self.tolerance.spike_factor and len(self.norms) >= LEAST_STEPS:
            # Late in a run that knows its data by heart, many times next to nothing is no harm.
            most = self.tolerance.spike_factor * max(statistics.median(self.norms), self._harmless)
        self._refused = not 0 <= norm < math.inf or norm > most
        return self._refused

    def _clip(self, engine: "DeepSpeedEngine", base: Any) -> None:
        """Clip the gradients of stage 0 and keep the norm that they had, which DeepSpeed throws away there."""
        from deepspeed.runtime.utils import clip_grad_norm_

        most = engine.gradient_clipping() or math.inf
        base._global_grad_norm = float(clip_grad_norm_(parameters=engine.module.parameters(), max_norm=most))


def _adapts(engine: "DeepSpeedEngine") -> bool:
    """Whether steps that overflow are how the loss scale of fp16 finds its size, which has not reached its least."""
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    return bool(engine.fp16_enabled() and scaler is not None and scaler.cur_scale > scaler.min_scale)
