"""Which checkpoints of a run stay on the disk."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.marker import Checkpoint


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay when a new one is complete: the newest, and of those to go back to as many as are asked.

    A run that is stopped among bad steps saves the last of them, to go on with and not to go back to.

    Args:
        last: how many of the newest that no bad step had just come before.
        best: whether the one of the lowest held-out loss stays, of those that were saved at an evaluation.
        every: those at multiples of so many steps stay for good; 0 = none.
    """

    last: int = 1
    best: bool = True
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"keep_checkpoints {self.last} is below 1; a run needs its last checkpoint")
        if self.every < 0:
            raise ValueError(f"keep_every {self.every} is below 0; 0 keeps none for good")

    def dropped(self, complete: "list[Checkpoint]") -> "list[Checkpoint]":
        """Those of `complete` (oldest first) that go."""
        sound = [checkpoint for checkpoint in complete if not checkpoint.guard.in_a_row]
        kept = {checkpoint.step for checkpoint in (*complete[-1:], *sound[-self.last :])}
        if self.every:
            kept |= {checkpoint.step for checkpoint in complete if checkpoint.step % self.every == 0}
        losses = {checkpoint.step: checkpoint.validation_loss for checkpoint in complete}
        evaluated = {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}
        if self.best and evaluated:
            kept.add(min(evaluated, key=lambda step: (evaluated[step], step)))
        return [checkpoint for checkpoint in complete if checkpoint.step not in kept]
