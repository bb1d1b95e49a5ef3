"""Kept documents to token shards: which repository is held out, which shard a document is in, and its place there.

All of it is a function of a document's id and repository, of the seed and of sums over the ledger: the same shards,
byte by byte, from any number of partitions and after any retry. What is shuffled is tokens, never text.
"""

import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.content import grouped_by_row_group, pieces
from tokenizer.encode import Encoder
from tokenizer.shards import INDEX_NAME, Shard, ShardIndex, ShardWriter, token_dtype

log = logging.getLogger("corella")

# Repositories looked at when choosing the held-out ones; also the most that can be held out.
MAX_HELD_OUT = 10_000
UNFINISHED_NAME = "_unfinished"
_ENCODED = "shard int, place long, file_id binary, text_bytes long, token_ids binary"
_WRITTEN = "number int, entry string"


@dataclass(frozen=True)
class Layout:
    """Where documents go: the held-out repositories, and how many shards each split has."""

    validation_repos: frozenset[str]
    train_shards: int
    validation_shards: int
    seed: int

    def shard_of(self, repo: str, place: int) -> int:
        """Number of a document's shard, those of train first; `place` (64 bits) decides within the split."""
        if repo in self.validation_repos:
            return self.train_shards + (place * self.validation_shards >> 64)
        return place * self.train_shards >> 64

    def name_of(self, shard: int) -> tuple[str, str]:
        """File name and split of a shard."""
        if shard < self.train_shards:
            return f"train-{shard:05d}-of-{self.train_shards:05d}.arrow", "train"
        number = shard - self.train_shards
        return f"validation-{number:05d}-of-{self.validation_shards:05d}.arrow", "validation"


def layout_of(kept: DataFrame, validation_share: float, shard_bytes: int, seed: int) -> Layout:
    """Hold out whole repositories, in the order of their hash, until the share is reached.

    A repository that would overshoot the share by more than half of it is passed over, so that one that holds a
    tenth of everything is never held out.
    """
    repos = kept.groupBy("repo").agg(F.sum("size").alias("size"))
    total = kept.agg(F.sum("size")).collect()[0][0] or 0
    if not total:
        raise ValueError("the ledger keeps no file: there is nothing to write")
    wanted = total * validation_share
    order = F.xxhash64(F.lit(seed), "repo")
    fitting = repos.where(F.col("size") <= wanted * 1.5).orderBy(order, "repo").limit(MAX_HELD_OUT)
    held_out, held_bytes = set(), 0
    for row in fitting.collect():
        if held_bytes < wanted and held_bytes + row["size"] <= wanted * 1.5:
            held_out.add(row["repo"])
            held_bytes += row["size"]
    if wanted and not held_out:
        log.warning("no repository is small enough to be held out: there is no validation split")
    train = max(1, -(-(total - held_bytes) // shard_bytes))
    return Layout(frozenset(held_out), train, -(-held_bytes // shard_bytes), seed)


def configuration(
    documents: str, ledger: str, tokenizer: str, validation_share: float, shard_bytes: int, seed: int
) -> dict[str, Any]:
    """What decides the shards; ValueError if a number is out of bounds."""
    if not 0 <= validation_share <= 0.5:
        raise ValueError(f"validation_share is {validation_share}; it must be in [0, 0.5]")
    if shard_bytes < 1 << 16:
        raise ValueError(f"shard_bytes is {shard_bytes}; it must be at least {1 << 16}")
    return {
        "inputs": {"documents": tables.fingerprint(documents), "ledger": tables.fingerprint(ledger)},
        "tokenizer": Encoder(tokenizer).fingerprint,
        "validation_share": validation_share,
        "shard_bytes": shard_bytes,
        "seed": seed,
    }


def done(output: str, configuration: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the shards stand already; FileExistsError if something else does."""
    folder = Path(output)
    if overwrite or not folder.exists() or (folder / UNFINISHED_NAME).exists():
        return False
    if not (folder / INDEX_NAME).is_file() or ShardIndex.load(folder).configuration != configuration:
        raise FileExistsError(f"{output} holds something else, or of another configuration; --overwrite replaces it")
    log.info("shards: already done, in %s", output)
    return True


@contextmanager
def replacing(output: str) -> Iterator[None]:
    """An empty folder marked unfinished while the block runs; without the mark after it, gone if it fails."""
    folder = Path(output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / UNFINISHED_NAME).touch()
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / UNFINISHED_NAME).unlink()


def write(
    kept: DataFrame, documents: str, tokenizer: str, output: str, layout: Layout, configuration: Mapping[str, Any]
) -> ShardIndex:
    """Tokenize the kept documents, write every shard, then the tokenizer's files and the index."""
    folder, encoder = Path(output).absolute(), Encoder(tokenizer)
    vocab_size = encoder.vocab_size

    def encode(work: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _encoded(work, documents, Encoder(tokenizer), layout)

    def write_shards(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _written(batches, folder, vocab_size, layout)

    encoded = grouped_by_row_group(kept.select("part", "row_group", "row"), documents).mapInArrow(encode, _ENCODED)
    tasks = min(layout.train_shards + layout.validation_shards, 10_000)
    by_shard = encoded.repartition(tasks, "shard").sortWithinPartitions("shard", "place", "file_id")
    entries = by_shard.mapInArrow(write_shards, _WRITTEN).collect()
    shards = tuple(Shard(**json.loads(row["entry"])) for row in sorted(entries, key=lambda row: row["number"]))
    _require_all(shards, kept)
    for partial in folder.glob("_*.arrow.*"):  # of attempts that were killed
        partial.unlink(missing_ok=True)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    index = ShardIndex(encoder.fingerprint, vocab_size, encoder.end_of_text_id, shards, dict(configuration))
    index.save(folder)
    return index


def _require_all(shards: Iterable[Shard], kept: DataFrame) -> None:
    written, wanted = sum(shard.rows for shard in shards), kept.count()
    if written != wanted:
        raise RuntimeError(f"{written:,} documents were written of {wanted:,} kept ones")


def _encoded(
    work: Iterable[pa.RecordBatch], documents: str, encoder: Encoder, layout: Layout
) -> Iterator[pa.RecordBatch]:
    dtype = token_dtype(encoder.vocab_size)
    for piece in pieces(documents, work, ["file_id", "repo", "content"]):
        ids, repos = piece.batch.column("file_id").to_pylist(), piece.batch.column("repo").to_pylist()
        content = piece.batch.column("content")
        # 63 bits, so that Spark sorts the signed number as the place.
        places = [xxhash.xxh3_64_intdigest(file_id, layout.seed) >> 1 for file_id in ids]
        shards = [layout.shard_of(repo, place << 1) for repo, place in zip(repos, places, strict=True)]
        sizes = [value.as_buffer().size for value in content.cast(pa.large_binary())]
        tokens = [encoding.astype(dtype).tobytes() for encoding in encoder.encode(content)]
        columns = [pa.array(shards, pa.int32()), pa.array(places, pa.int64()), pa.array(ids, pa.binary())]
        columns += [pa.array(sizes, pa.int64()), pa.array(tokens, pa.large_binary())]
        yield pa.record_batch(columns, names=["shard", "place", "file_id", "text_bytes", "token_ids"])


def _written(
    batches: Iterable[pa.RecordBatch], folder: Path, vocab_size: int, layout: Layout
) -> Iterator[pa.RecordBatch]:
    """Write rows sorted by shard to one file a shard, under a name of this attempt's until it is whole.

    Two attempts at a shard write the same bytes, so it does not matter whose file stays.
    """
    for shard, documents in _by_shard(batches):
        name, split = layout.name_of(shard)
        partial = folder / f"_{name}.{uuid.uuid4().hex}"
        with partial.open("wb") as sink:
            writer = ShardWriter(sink, vocab_size)
            for token_ids, file_id, text_bytes in documents:
                writer.append(np.frombuffer(token_ids, token_dtype(vocab_size)), file_id, text_bytes)
            entry = writer.close(name, split)
        partial.replace(folder / name)
        yield pa.record_batch(
            [pa.array([shard], pa.int32()), pa.array([json.dumps(asdict(entry))])], names=["number", "entry"]
        )


def _by_shard(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, Iterator[tuple[memoryview, bytes, int]]]]:
    """Group sorted rows by shard, streaming: a group must be read to its end before the next is asked for."""

    def rows() -> Iterator[tuple[int, memoryview, bytes, int]]:
        for batch in batches:
            columns = (batch.column(name) for name in ("shard", "token_ids", "file_id", "text_bytes"))
            shards, tokens, ids, sizes = columns
            for number in range(batch.num_rows):
                buffer = memoryview(tokens[number].as_buffer())
                yield shards[number].as_py(), buffer, ids[number].as_py(), sizes[number].as_py()

    for shard, group in groupby(rows(), key=lambda row: row[0]):
        yield shard, ((tokens, file_id, size) for _, tokens, file_id, size in group)


def summary(index: ShardIndex, output: str) -> str:
    """Documents, tokens and bytes a token of each split, in lines."""
    lines = []
    for split in sorted({shard.split for shard in index.shards}):
        shards = index.of_split(split)
        rows, tokens = sum(shard.rows for shard in shards), sum(shard.tokens for shard in shards)
        text = sum(shard.text_bytes for shard in shards)
        lines.append(
            f"  {split:<12}{len(shards):>6} shard(s) {rows:>12,} documents {tokens:>16,} tokens"
            f" {text / max(tokens, 1):>6.2f} bytes a token"
        )
    return "\n".join([*lines, f"write_shards: index in {output}/{INDEX_NAME}"])
