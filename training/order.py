"""Training sequence number -> window of the data: keyed permutations that are computed entry by entry, never stored.

Epoch e visits window P_e(0), P_e(1), … where P_e is a permutation of [0, N) keyed by (seed, data fingerprint, sequence
length, e). Training sequence n is position n mod N of epoch n div N. So the data state of a run is one integer.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
ROUNDS = 6
# Fewer windows are put in order by sorting: the rounds would not draw all orders of so few, nor equally often.
FEW_WINDOWS = 64
# A group of windows that is shuffled together is made of so many runs of neighbouring windows.
RUNS = 16


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
        """The entries at `positions` (of one dimension or more, each below `size`)."""
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


def _sorted(size: int, key: str) -> Numbers:
    """The numbers below `size` in the order of their keyed hashes."""
    key_bits = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8).digest(), "<u8")
    return np.argsort(_mix(np.arange(size, dtype=np.uint64) ^ key_bits)).astype(np.uint64)


class TrainingOrder:
    """Sequence number -> window number, over endless epochs each in an order of its own.

    Args:
        windows: N, of the split.
        identity: keys the permutations.
        group: windows that are shuffled together; 0 = all. Where fewer are, only as much data has to be at hand at a
            time (remote storage, disks that seek): windows stand in runs of group / RUNS neighbours, the runs of the
            split are permuted, and each RUNS of them after the other make a group, whose windows are permuted.
    """

    def __init__(self, windows: int, identity: str, group: int = 0) -> None:
        self.windows, self.identity = windows, identity
        self.run = max(1, group // RUNS) if 0 < group < windows else 0

    def __call__(self, numbers: Numbers) -> Numbers:
        """Windows of the sequences `numbers` (n,); a batch may reach over the end of an epoch."""
        epochs, positions = np.divmod(np.asarray(numbers, np.uint64), np.uint64(self.windows))
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            key = f"{self.identity}:{epoch}"
            visit = self._in_groups if self.run else self._everywhere
            found[here] = visit(positions[here], key)
        return found

    def _everywhere(self, positions: Numbers, key: str) -> Numbers:
        if self.windows < FEW_WINDOWS:
            return _sorted(self.windows, key)[positions]
        return Permutation(self.windows, key)(positions)

    def _in_groups(self, positions: Numbers, key: str) -> Numbers:
        """The last run, if it is shorter than the others, stays the last: so all groups before it are full."""
        run, size = np.uint64(self.run), self.run * RUNS
        full = self.windows // self.run
        runs = Permutation(full, f"{key}:runs")
        groups, found = positions // np.uint64(size), np.empty_like(positions)
        for group in np.unique(groups).tolist():
            here, first = groups == group, group * size
            members = min(size, self.windows - first)
            inner = Permutation(members, f"{key}:{group}")(positions[here] - np.uint64(first))
            places = inner // run + np.uint64(group * RUNS)
            whole = places < full
            places[whole] = runs(places[whole])
            found[here] = places * run + inner % run
        return found


class Mixture:
    """Sequence number -> (source, sequence number within that source), in closed form.

    Every BLOCK sequences hold each source as often as its weight asks (largest remainder), at places permuted by a
    key; the sources' own sequence numbers go up one by one. A block costs some 0.3 ms, whatever the number.

    Args:
        weights: one a source, above 0; only their proportions count.
        identity: keys the permutations.
    """

    BLOCK = 4096

    def __init__(self, weights: list[float], identity: str) -> None:
        self.identity, self.asked, self.quotas = identity, proportions(weights), quotas(weights, self.BLOCK)
        self._ends = np.cumsum(self.quotas, dtype=np.uint64)

    def __call__(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Source and own sequence number of each of `numbers` (n,)."""
        numbers = np.asarray(numbers, np.uint64)
        if len(self.quotas) == 1:
            return np.zeros_like(numbers), numbers
        blocks, places = np.divmod(numbers, np.uint64(self.BLOCK))
        sources, own = np.empty_like(numbers), np.empty_like(numbers)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            found, ranks = self._block(block)
            sources[here] = found[places[here]]
            own[here] = np.array(self.quotas, np.uint64)[sources[here]] * np.uint64(block) + ranks[places[here]]
        return sources, own

    def _block(self, block: int) -> tuple[Numbers, Numbers]:
        """Source of each place of a block, and how many places before it are of the same source."""
        places = Permutation(self.BLOCK, f"{self.identity}:block:{block}")(np.arange(self.BLOCK, dtype=np.uint64))
        sources, ranks = np.searchsorted(self._ends, places, side="right"), np.empty_like(places)
        ranks[np.argsort(sources, kind="stable")] = np.concatenate([np.arange(quota) for quota in self.quotas])
        return sources.astype(np.uint64), ranks

    @property
    def shares(self) -> list[float]:
        """Of the sequences, by source; `asked` are those that the weights give."""
        return [quota / self.BLOCK for quota in self.quotas]

    def taken(self, consumed: int) -> list[int]:
        """Sequences of each source among the first `consumed`."""
        block = consumed // self.BLOCK
        rest = np.arange(block * self.BLOCK, consumed, dtype=np.uint64)
        more = np.bincount(self(rest)[0].astype(np.int64), minlength=len(self.quotas)).tolist()
        return [block * quota + extra for quota, extra in zip(self.quotas, more, strict=True)]


def proportions(weights: list[float]) -> list[float]:
    """Weights as parts of their sum, which may itself be beyond the largest number."""
    exponent = math.frexp(max(weights))[1]
    scaled = [math.ldexp(weight, -exponent) for weight in weights]  # by a power of two, which rounds nothing
    total = sum(scaled)
    return [weight / total for weight in scaled]


def quotas(weights: list[float], total: int) -> list[int]:
    """`total` shared out by weights: each its whole part, the rest to the largest remainders (the first wins ties)."""
    exact = [share * total for share in proportions(weights)]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda number: (whole[number] - exact[number], number))
    for number in by_remainder[: total - sum(whole)]:
        whole[number] += 1
    if 0 in whole:
        least = whole.index(0)
        raise ValueError(
            f"a weight of {weights[least]:g} is {exact[least] / total:.1g} of all, less than one sequence in {total}; "
            "choose a larger one (data.weights; by default sequences of a folder) or leave the source out"
        )
    return whole


def generator(key: str) -> np.random.Generator:
    """The random draws of one row, the same wherever it is made: keyed, without a state that moves."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def count_windows(tokens: int, sequence_length: int) -> int:
    """Windows [i·T, i·T + T + 1) that fit; neighbours share one token, so each token but the first is a label once.

    Up to T - 1 tokens at the end of the split belong to no window.
    """
    return (tokens - 1) // sequence_length
