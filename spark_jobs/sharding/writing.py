"""Parts to shards: a shard gathers its documents from all parts, in their order, a batch of tokens at a time.

Memory is what is known of the shard's documents (some 60 bytes each), a batch of tokens and, in the order of
repositories, the paths and imports of one repository.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from spark_jobs.sharding.encoding import Sources, encoder
from spark_jobs.sharding.import_order import import_order
from spark_jobs.sharding.layout import Layout
from spark_jobs.sharding.runs import file_ids_of, slices, sorted_order, write_whole
from tokenizer.encode import FILE_SEPARATOR, REPOSITORY_NAME
from tokenizer.shards import Shard, ShardWriter, token_dtype

# Tokens of documents that are copied at once, and files of a repository whose imports are looked at.
GATHERED_TOKENS, MAX_ORDERED_FILES = 1 << 20, 100_000
MAX_TASKS = 10_000
ENTRY = "{}.json"

_ENTRY_ROW = "number int, entry string"
# Removed rows, and what is known of a shard that is written again.
Expected = Mapping[int, Shard]


@dataclass(frozen=True)
class Target:
    """What the workers need to write shards: where to, from which parts, and which files are withdrawn."""

    folder: Path
    work: Path
    parts: tuple[str, ...]
    layout: Layout
    sources: Sources
    withdrawn: frozenset[bytes] = frozenset()


def write(
    spark: SparkSession, numbers: Iterable[int], target: Target, expected: Expected | None = None
) -> list[Shard]:
    """Write shards by their numbers; their entries in that order. What an attempt leaves lies in the work folder.

    Args:
        spark: the session.
        numbers: of the shards.
        target: where they go.
        expected: entries of shards that are written again; ValueError if one comes to have other bytes.
    """
    wanted = list(numbers)
    if not wanted:
        return []

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for at in batch.column(0).to_pylist():
                entry = write_shard(wanted[at], target, (expected or {}).get(wanted[at]))
                row = [pa.array([wanted[at]], pa.int32()), pa.array([json.dumps(asdict(entry))])]
                yield pa.record_batch(row, names=["number", "entry"])

    rows = spark.range(0, len(wanted), 1, min(len(wanted), MAX_TASKS)).mapInArrow(run, _ENTRY_ROW).collect()
    return [Shard(**json.loads(row.entry)) for row in sorted(rows, key=lambda row: row.number)]


def write_shard(number: int, target: Target, expected: Shard | None = None) -> Shard:
    """Write one shard and its entry, each whole or not at all; attempts at a shard write the same bytes."""
    name, split = target.layout.name_of(number)
    name = expected.name if expected else name
    partial = target.work / f"{name}.{uuid.uuid4().hex}.partial"
    with partial.open("wb") as sink:
        writer = ShardWriter(sink, target.sources.vocab_size)
        for documents in _Documents(number, target).batches():
            writer.append_many(*documents)
        entry = writer.close(name, split)
        sink.flush()
        os.fsync(sink.fileno())
    if expected:
        if entry.xxh3_128 != expected.xxh3_128:
            partial.unlink()
            raise ValueError(
                f"{name} would be other bytes than the index says: it was written with another tokenizer, version of "
                "its library or of Corella; write the shards anew with --overwrite"
            )
        entry = expected
    partial.replace(target.folder / name)
    write_whole(target.work / ENTRY.format(name), json.dumps(asdict(entry)))
    return entry


class _Documents:
    """The documents of a shard in all parts, mapped, and their order."""

    def __init__(self, number: int, target: Target) -> None:
        self.target = target
        place = target.layout.places_of(number)
        self.runs = [run for part in target.parts for run in slices(target.work / f"{part}.arrow", *place)]
        none = token_dtype(target.sources.vocab_size)
        self.tokens = [_values(run) for run in self.runs] or [np.empty(0, none)]
        bounds = [run.column("token_ids").offsets.to_numpy().astype(np.int64) for run in self.runs]
        counts = [run.num_rows for run in self.runs]
        self.run_of = np.repeat(np.arange(len(self.runs)), counts)
        self.first_of_run = np.cumsum([0, *counts])
        self.begins = _together([one[:-1] for one in bounds], np.int64)
        self.sizes = _together([np.diff(one) for one in bounds], np.int64)
        self.places = self._column("place", np.uint64)
        self.text_bytes = self._column("text_bytes", np.int64)
        ids = [file_ids_of(run.column("file_id")) for run in self.runs]
        self.file_ids = np.concatenate(ids) if ids else np.empty((0, 16), np.uint8)

    def batches(self) -> Iterator[tuple[NDArray, NDArray[np.int64], NDArray[np.uint8], int]]:
        """What `ShardWriter.append_many` takes, about GATHERED_TOKENS at a time."""
        if self.target.sources.splits.by_repository:
            for first, last, order in self._repositories():
                yield from self._gathered(order, *self._frame(first, last, order))
        else:
            yield from self._gathered(sorted_order(self.places, self.file_ids))

    def _gathered(
        self, order: NDArray[np.int64], head: NDArray | None = None, tail: NDArray | None = None
    ) -> Iterator[tuple[NDArray, NDArray[np.int64], NDArray[np.uint8], int]]:
        """Documents in an order; the first gets tokens before it, the last ones behind it."""
        stays = self._stays(order)
        ends = np.cumsum(self.sizes[order])
        cuts = (
            np.searchsorted(ends, np.arange(GATHERED_TOKENS, int(ends[-1]) if len(ends) else 0, GATHERED_TOKENS)) + 1
        )
        for first, last in pairwise(np.unique([0, *cuts.tolist(), len(order)]).tolist()):
            parts, sizes = self._copied(order[first:last])
            if head is not None and first == 0:
                parts[0], sizes[0] = np.concatenate([head, parts[0]]), sizes[0] + len(head)
            if tail is not None and last == len(order):
                parts[-1], sizes[-1] = np.concatenate([parts[-1], tail]), sizes[-1] + len(tail)
            here, rows = np.flatnonzero(stays[first:last]), order[first:last]
            if len(here) < len(rows):
                parts, sizes, rows = [parts[at] for at in here], sizes[here], rows[here]
            if len(rows):
                yield np.concatenate(parts), sizes, self.file_ids[rows], int(self.text_bytes[rows].sum())

    def _copied(self, rows: NDArray[np.int64]) -> tuple[list[NDArray], NDArray[np.int64]]:
        runs, begins, sizes = self.run_of[rows].tolist(), self.begins[rows].tolist(), self.sizes[rows]
        ends = (self.begins[rows] + sizes).tolist()
        return [self.tokens[run][begin:end] for run, begin, end in zip(runs, begins, ends, strict=True)], sizes.copy()

    def _stays(self, order: NDArray[np.int64]) -> NDArray[np.bool_]:
        gone = self.target.withdrawn
        if not gone:
            return np.ones(len(order), bool)
        return np.array([self.file_ids[row].tobytes() not in gone for row in order.tolist()], bool)

    def _repositories(self) -> Iterator[tuple[bool, bool, NDArray[np.int64]]]:
        """Rows of the files of one repository after the other, in their order: whether a repository begins and ends
        with them. One with more files than MAX_ORDERED_FILES comes by kind and folder, in several lots."""
        ranks = self._column("rank", np.uint64)
        order = sorted_order(self.places, self.file_ids)
        starts = np.flatnonzero(np.diff(self.places[order], prepend=self.places[order[:1]] - np.uint64(1)))
        for rows in np.split(order, starts[1:]) if len(order) else []:
            if len(rows) <= MAX_ORDERED_FILES:
                yield True, True, self._in_import_order(rows)
                continue
            large = rows[sorted_order(ranks[rows], self.file_ids[rows])]
            for first in range(0, len(large), MAX_ORDERED_FILES):
                yield first == 0, first + MAX_ORDERED_FILES >= len(large), large[first : first + MAX_ORDERED_FILES]

    def _in_import_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        paths, imports = (self._strings(name, rows) for name in ("path", "imports"))
        return rows[import_order([path or "" for path in paths], imports)]

    def _frame(self, first: bool, last: bool, rows: NDArray[np.int64]) -> tuple[NDArray | None, NDArray | None]:
        """The repository's name before its first file, and the end of the text behind its last."""
        encoding, head = encoder(self.target.sources.tokenizer, self.target.sources.fingerprint), None
        dtype = token_dtype(self.target.sources.vocab_size)
        encoding.id_of(FILE_SEPARATOR)
        if first:
            name = encoding.encode_batch(pa.array([self._strings("repo", rows[:1])[0] or ""], pa.large_string())).ids
            head = np.concatenate([[encoding.id_of(REPOSITORY_NAME)], name]).astype(dtype)
        return head, np.array([encoding.end_of_text_id], dtype) if last else None

    def _strings(self, name: str, rows: NDArray[np.int64]) -> list:
        """Values of a column that is read for these rows alone."""
        found: list = [None] * len(rows)
        for run in np.unique(self.run_of[rows]).tolist():
            here = np.flatnonzero(self.run_of[rows] == run)
            values = self.runs[run].column(name).take(pa.array(rows[here] - self.first_of_run[run])).to_pylist()
            for at, value in zip(here.tolist(), values, strict=True):
                found[at] = value
        return found

    def _column(self, name: str, kind: type) -> NDArray:
        return _together([run.column(name).to_numpy() for run in self.runs], kind)


def _values(run: pa.RecordBatch) -> NDArray:
    tokens: NDArray = run.column("token_ids").values.to_numpy(zero_copy_only=True)
    return tokens


def _together(parts: list[NDArray], kind: type) -> NDArray:
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.empty(0, kind)
