"""The running digest of the sample numbers of each step: what a resumed run will see is checked, not hoped.

digest(step) = H(digest(step - 1), numbers of the step). Every checkpoint holds it, and one from some steps before,
from which a resuming run computes the chain again by its own recipe. Where they differ, data, seed, order or code are
not those that trained, and the run is refused.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
Mark = tuple[int, str]
RECOMPUTED_SAMPLES = 1 << 20


def sample_digest(previous: bytes, numbers: Numbers) -> bytes:
    """The digest of a step whose global batch holds the samples `numbers`, after that of the step before."""
    return hashlib.blake2b(previous + np.ascontiguousarray(numbers, "<u8").tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Chain:
    """The digest after `step`, and `marks`: one or two earlier (step, digest), from which it can be computed again."""

    step: int = 0
    digest: str = ""
    marks: tuple[Mark, ...] = ((0, ""),)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Chain":
        """The inverse of `dataclasses.asdict`."""
        return cls(record["step"], record["digest"], tuple((step, digest) for step, digest in record["marks"]))

    def after(self, numbers: Numbers) -> "Chain":
        """The chain one step on. About a microsecond a sample."""
        step, digest = self.step + 1, sample_digest(bytes.fromhex(self.digest), numbers).hex()
        marks = self.marks
        if (step - marks[-1][0]) * len(numbers) >= RECOMPUTED_SAMPLES:
            marks = (*marks, (step, digest))[-2:]
        return Chain(step, digest, marks)

    def refuse_other(self, numbers: Callable[[int], Numbers]) -> None:
        """ValueError if `numbers`, the samples of each step by this run's recipe, are not those of the chain.

        Computes the steps since the first mark again: at most some 2^21 samples, which takes a second.
        """
        begin, digest = self.marks[0]
        chain = Chain(begin, digest)
        while chain.step < self.step:
            chain = chain.after(numbers(chain.step + 1))
        if chain.digest != self.digest:
            raise ValueError(
                f"the samples of steps {begin + 1} to {self.step} have digest {chain.digest}, the checkpoint says "
                f"{self.digest}: data, seed or order are not what trained; give that, or another --output"
            )
