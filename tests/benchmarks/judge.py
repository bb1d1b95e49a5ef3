"""What the exact truth says of a result: removals that nothing kept justifies, and duplicates that were left."""

from typing import NamedTuple

import numpy as np
from exact_join import Truth


class Verdict(NamedTuple):
    """Counts of files. Similar means: of the same content, or of a pair of the truth."""

    removed: int
    unjustified: int  # removed, and similar to no kept file (or, where twins are named, not to the named one)
    kept: int
    residual: int  # kept, and similar to a kept file that is earlier in file order

    @property
    def unjustified_share(self) -> float:
        return self.unjustified / max(self.removed, 1)

    @property
    def residual_share(self) -> float:
        return self.residual / max(self.kept, 1)


def judge(truth: Truth, kept: np.ndarray, removed: np.ndarray, twins: np.ndarray | None = None) -> Verdict:
    """Judge a result.

    Args:
        truth: at the threshold of the result.
        kept, removed: row numbers. What is in neither was no candidate, such as a file that a tool takes for binary.
        twins: rows that the removed ones were removed for; where it is given, nothing else justifies a removal.
    """
    contents = int(truth.content.max()) + 1
    never = len(truth.content)
    first_kept = np.full(contents, never)  # row of the first kept file of a content
    np.minimum.at(first_kept, truth.content[kept], kept)
    first_similar = first_kept.copy()  # or of a similar one
    np.minimum.at(first_similar, truth.left, first_kept[truth.right])
    np.minimum.at(first_similar, truth.right, first_kept[truth.left])
    residual = first_similar[truth.content[kept]] < kept
    justified = first_similar[truth.content[removed]] < never
    if twins is not None:
        justified = np.isin(twins, kept) & _similar(truth, truth.content[removed], truth.content[twins], contents)
    return Verdict(len(removed), int((~justified).sum()), len(kept), int(residual.sum()))


def _similar(truth: Truth, one: np.ndarray, other: np.ndarray, contents: int) -> np.ndarray:
    """Which pairs of contents are similar."""
    pairs = np.minimum(one, other) * contents + np.maximum(one, other)
    return (one == other) | np.isin(pairs, truth.left * contents + truth.right)
