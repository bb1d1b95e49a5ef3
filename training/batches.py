"""Which tokens a training step sees: a pure function of the seed, the data and the number of the sequence.

A split of N windows is read in an order that is computed and never stored: epoch e visits window P_e(0), P_e(1), …
where P_e is a permutation of [0, N) keyed by (seed, data fingerprint, sequence length, e). Training sequence n is
position n mod N of epoch n div N. So the data state of a run is one integer, the sequences consumed, and the global
batch is the same however many processes, micro-batches or accumulation steps share it.
"""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenizer.shards import TokenStream

if TYPE_CHECKING:
    import torch

    MicroBatch = dict[str, torch.Tensor]

Numbers = NDArray[np.uint64]
ROUNDS = 6


class Permutation:
    """A keyed permutation of [0, size) that is computed entry by entry, in O(1) memory.

    A Feistel network over mixed radix (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): a number
    is a pair (left, right) with left < a, right < b and a·b ≥ size; each round adds a keyed hash of one half to the
    other. Results outside the domain are permuted again until they fall inside (cycle walking); with a ≈ √size
    that concerns fewer than 2/√size of all numbers. About 50 ns a number.

    Args:
        size: of the domain, 1 to 2^62.
        key: any text; another key gives an unrelated permutation.
    """

    def __init__(self, size: int, key: str) -> None:
        if not 1 <= size <= 1 << 62:
            raise ValueError(f"a permutation of {size} entries is outside 1 to 2^62")
        a = max(1, int(size**0.5))
        self.size, self.radices = np.uint64(size), (np.uint64(a), np.uint64(-(-size // a)))
        self.keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), "<u8")

    def __call__(self, positions: Numbers) -> Numbers:
        """The entries at `positions` (any shape, each below `size`)."""
        entries = self._rounds(np.asarray(positions, np.uint64))
        outside = entries >= self.size
        while outside.any():
            entries[outside] = self._rounds(entries[outside])
            outside = entries >= self.size
        return entries

    def _rounds(self, numbers: Numbers) -> Numbers:
        halves = list(np.divmod(numbers, self.radices[1]))
        for number, key in enumerate(self.keys):
            this, other = number % 2, 1 - number % 2
            halves[this] = (halves[this] + _mix(halves[other] ^ key) % self.radices[this]) % self.radices[this]
        numbers = halves[0] * self.radices[1] + halves[1]
        return numbers


def _mix(values: Numbers) -> Numbers:
    """The finaliser of SplitMix64: each output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class TrainingOrder:
    """Sequence number -> window number, over endless epochs each in an order of its own."""

    def __init__(self, windows: int, identity: str) -> None:
        self.windows, self.identity = windows, identity

    def __call__(self, numbers: Numbers) -> Numbers:
        """Windows of the sequences `numbers` (n,); a batch may reach over the end of an epoch."""
        epochs, positions = np.divmod(np.asarray(numbers, np.uint64), np.uint64(self.windows))
        found = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = Permutation(self.windows, f"{self.identity}:{epoch}")(positions[here])
        return found


def count_windows(tokens: int, sequence_length: int) -> int:
    """Windows [i·T, i·T + T + 1) that fit; neighbours share one token, so each token but the first is a label once.

    Up to T - 1 tokens at the end of the split belong to no window.
    """
    return (tokens - 1) // sequence_length


def micro_batch(rows: "torch.Tensor") -> "MicroBatch":
    """Inputs and labels (B, T) of rows of T + 1 tokens: labels are already shifted."""
    return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}


def read_windows(stream: TokenStream, windows: Numbers, sequence_length: int) -> "torch.Tensor":
    """Tokens of the given windows: int64 tensor (windows, sequence_length + 1); labels are inputs shifted by one."""
    import torch

    rows = np.empty((len(windows), sequence_length + 1), stream.dtype)
    for row, window in zip(rows, windows, strict=True):
        stream.read(int(window) * sequence_length, row)
    return torch.from_numpy(rows.astype(np.int64))


class TrainingBatches:
    """The global batches of a run, and the share of each process in them.

    Global batch s holds sequences [s·G, s·G + G); rank r of W takes the r-th contiguous slice of G / W of them.

    Args:
        stream: the training split.
        sequence_length: T, tokens a sequence predicts.
        sequences: G, sequences a global batch.
        seed: of the order.
    """

    def __init__(self, stream: TokenStream, *, sequence_length: int, sequences: int, seed: int) -> None:
        self.stream, self.sequence_length, self.sequences = stream, sequence_length, sequences
        self.windows = count_windows(len(stream), sequence_length)
        if self.windows < 1:
            raise ValueError(
                f"batch.sequence_length {sequence_length} needs {sequence_length + 1} tokens, the training split has "
                f"{len(stream)}; choose a shorter one or more data"
            )
        fingerprint = stream.index.fingerprint(stream.split)
        self.order = TrainingOrder(self.windows, f"{seed}:{fingerprint}:{sequence_length}")

    def samples(self, consumed: int) -> Numbers:
        """Windows of the whole global batch that begins at sequence `consumed`."""
        return self.order(np.arange(consumed, consumed + self.sequences, dtype=np.uint64))

    def share(self, consumed: int, size: int, rank: int, world_size: int) -> Iterator["MicroBatch"]:
        """A rank's part of the global batch that begins at sequence `consumed`, `size` sequences at a time."""
        share = self.sequences // world_size
        assert share * world_size == self.sequences, (self.sequences, world_size)
        assert share % size == 0, (share, size)
        begin = consumed + rank * share
        for first in range(begin, begin + share, size):
            numbers = np.arange(first, first + size, dtype=np.uint64)
            yield micro_batch(read_windows(self.stream, self.order(numbers), self.sequence_length))


class EvaluationBatches:
    """The first windows of the validation split, in order, shared among the processes.

    Args:
        stream: the validation split; one shorter than a window is read as a single shorter one.
        sequence_length: T.
        max_tokens: bound on what one evaluation reads; at least one window is read.
    """

    def __init__(self, stream: TokenStream, *, sequence_length: int, max_tokens: int) -> None:
        if len(stream) < 2:
            raise ValueError(
                f"the validation split has {len(stream)} tokens, evaluation needs two or more; write shards with a "
                "larger one, or train with --evaluation_tokens 0"
            )
        self.stream, self.sequence_length = stream, min(sequence_length, len(stream) - 1)
        windows = count_windows(len(stream), self.sequence_length)
        self.count = min(windows, max(1, max_tokens // self.sequence_length))

    def share(self, size: int, rank: int, world_size: int) -> Iterator["MicroBatch"]:
        """A rank's micro-batches of `size` rows; those that only fill one have no labels (-100).

        Every rank gets equally many, because a sharded model is gathered by all ranks at once; where the windows do
        not divide evenly, repeated ones fill up.
        """
        import torch

        for first in range(rank * size, self._padded(size * world_size), size * world_size):
            numbers = np.arange(first, first + size, dtype=np.uint64)
            windows = numbers % np.uint64(self.count)
            batch = micro_batch(read_windows(self.stream, windows, self.sequence_length))
            batch["labels"] = batch["labels"].masked_fill(torch.from_numpy(numbers >= self.count)[:, None], -100)
            yield batch

    def _padded(self, together: int) -> int:
        return -(-self.count // together) * together
