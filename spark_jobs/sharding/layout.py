"""Which split and which shard a document goes to, and its place there.

Whole repositories are held out, in the order of a hash. Only kept files become tokens and each stands for its group of
duplicates, so no group is on two sides.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from tokenizer.shards import SPLITS

log = logging.getLogger("corella")

# Repositories looked at when choosing the held-out ones; also the most that can be held out.
MAX_HELD_OUT = 10_000
# A repository that would overshoot the share by more than this is passed over, so that one that holds a tenth of
# everything is never held out.
OVERSHOOT = 1.5

# What `first_and_sums` returns.
SUMMED = "order_key long, repo string, size long, files long"
_SUMMED_SCHEMA = pa.schema(
    [("order_key", pa.int64()), ("repo", pa.string()), ("size", pa.int64()), ("files", pa.int64())]
)

Places = NDArray[np.uint64]


@dataclass(frozen=True)
class Splits:
    """The split of each held-out repository by its number in SPLITS, the number of kept files, and the order's key.

    With `by_repository` the files of a repository have one place, so that they lie together.
    """

    held_out: Mapping[str, int]
    files: int
    seed: int
    by_repository: bool

    def of(self, repos: Sequence[str | None]) -> NDArray[np.uint8]:
        """Numbers of the splits (n) of documents by their repositories (n)."""
        return np.array([self.held_out.get(repo or "", 0) for repo in repos], np.uint8)

    def places(self, file_ids: Sequence[bytes], repos: Sequence[str | None]) -> Places:
        """Where documents (n) stand in the order of their split: a keyed hash of the file or of its repository."""
        keys = [(repo or "").encode() for repo in repos] if self.by_repository else file_ids
        return np.array([xxhash.xxh3_64_intdigest(key, self.seed) for key in keys], np.uint64)


@dataclass(frozen=True)
class Layout:
    """How many shards each of SPLITS has. Shards are numbered through, those of train first."""

    shards: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.shards)

    def name_of(self, number: int) -> tuple[str, str]:
        """File name and split of a shard."""
        split, within = self.split_of(number)
        return f"{SPLITS[split]}-{within:05d}-of-{self.shards[split]:05d}.arrow", SPLITS[split]

    def split_of(self, number: int) -> tuple[int, int]:
        """Number of a shard's split, and of the shard within it."""
        for split, shards in enumerate(self.shards):
            if number < shards:
                return split, number
            number -= shards
        raise IndexError(f"there are only {self.count} shards")

    def shard_of(self, splits: NDArray[np.uint8], places: Places) -> NDArray[np.int64]:
        """Numbers of the shards (n) of documents by their splits (n) and places (n)."""
        counts = np.array(self.shards, np.uint64)
        within = ((places >> np.uint64(32)) * counts[splits]) >> np.uint64(32)
        starts = np.cumsum(counts) - counts
        return (starts[splits] + within).astype(np.int64)

    def places_of(self, number: int) -> tuple[int, int, int]:
        """Split of a shard, and its first place and the one behind its last, which may be 2^64."""
        split, within = self.split_of(number)
        first, end = (-(-(at << 32) // self.shards[split]) << 32 for at in (within, within + 1))
        return split, first, end


def layout_of(split_tokens: Sequence[int], shard_tokens: int) -> Layout:
    """As many shards as the tokens of each split fill; train has one at least."""
    train, *others = (-(-tokens // shard_tokens) for tokens in split_tokens)
    return Layout((max(1, train), *others))


def splits_of(sums: Iterable[Mapping[str, Any]], shares: Sequence[float], seed: int, by_repository: bool) -> Splits:
    """Hold out whole repositories, in the order of their hash, until each split but train has its share of bytes.

    Args:
        sums: rows of `first_and_sums`.
        shares: of SPLITS but train.
        seed: of the order of repositories and of documents.
        by_repository: whether the files of a repository lie together.
    """
    rows = list(sums)
    totals = [row for row in rows if row["order_key"] is None]
    total = sum(row["size"] for row in totals)
    if not total:
        raise ValueError("the ledger keeps no file: there is nothing to write")
    repos = [row for row in rows if row["order_key"] is not None]
    repos.sort(key=lambda row: (row["order_key"], row["repo"]))
    held_out = _chosen(repos[:MAX_HELD_OUT], total, shares)
    return Splits(held_out, sum(row["files"] for row in totals), seed, by_repository)


def _chosen(repos: Sequence[Mapping[str, Any]], total: int, shares: Sequence[float]) -> dict[str, int]:
    """The repositories that are held out, with the numbers of their splits."""
    held_out: dict[str, int] = {}
    for number, share in enumerate(shares, start=1):
        wanted, held = total * share, 0
        for row in repos:
            if row["repo"] not in held_out and held < wanted and held + row["size"] <= wanted * OVERSHOOT:
                held_out[row["repo"]] = number
                held += row["size"]
        if wanted and not held:
            log.warning("no repository is small enough to be held out: there is no %s split", SPLITS[number])
    return held_out


def first_and_sums(batches: Iterable[pa.RecordBatch], seed: int) -> Iterator[pa.RecordBatch]:
    """The first repositories by a keyed hash, MAX_HELD_OUT at most, and a row without key that has the sums of all.

    Args:
        batches: repositories with the bytes and the number of their kept files.
        seed: the hash's key.
    """
    first: pa.Table | None = None
    size = files = 0
    for batch in batches:
        repos = [repo or "" for repo in batch.column(0).to_pylist()]
        keys = [xxhash.xxh3_64_intdigest(repo.encode(), seed) >> 1 for repo in repos]
        rows = pa.table([keys, repos, batch.column(1), batch.column(2)], schema=_SUMMED_SCHEMA)
        size, files = size + (pc.sum(rows["size"]).as_py() or 0), files + (pc.sum(rows["files"]).as_py() or 0)
        rows = pa.concat_tables([first, rows]) if first else rows
        order = pc.sort_indices(rows, [("order_key", "ascending"), ("repo", "ascending")])
        first = rows.take(order[:MAX_HELD_OUT])
    yield pa.record_batch([[None], [None], [size], [files]], schema=_SUMMED_SCHEMA)
    if first is not None:
        yield from first.combine_chunks().to_batches()
