"""The shard format: tokenized documents as memory-mapped Arrow IPC files, and the index that makes them a data set.

A shard is one Arrow IPC file, uncompressed, of two columns: `token_ids` (large_list of uint16 or uint32, by
vocabulary size) and `file_id` (binary, 16 bytes). Document boundaries are the list offsets. Few large record
batches (about `BATCH_TOKENS` each), because each costs a reader some 30 µs and a mapping of its own.
`index.json` is written last: a folder without one holds no data set.
"""

import bisect
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

FORMAT_VERSION = 1
INDEX_NAME = "index.json"
BATCH_TOKENS = 4 << 20
SPLITS = ("train", "validation", "test")

TokenArray = NDArray[np.uint16] | NDArray[np.uint32]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where every id below `vocab_size` fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_schema(vocab_size: int) -> pa.Schema:
    """Columns of a shard, for a vocabulary of `vocab_size` entries."""
    ids = pa.large_list(pa.field("item", pa.from_numpy_dtype(token_dtype(vocab_size)), nullable=False))
    return pa.schema([pa.field("token_ids", ids, nullable=False), pa.field("file_id", pa.binary(), nullable=False)])


@dataclass(frozen=True)
class Shard:
    """One shard as the index records it; `text_bytes` is the UTF-8 size of the documents it encodes."""

    name: str
    split: str
    rows: int
    tokens: int
    text_bytes: int
    file_bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class ShardIndex:
    """What `index.json` holds. Shards stand in reading order, split by split."""

    tokenizer_fingerprint: str
    vocab_size: int
    end_of_text_id: int
    shards: tuple[Shard, ...]
    configuration: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def has_split(self, split: str) -> bool:
        """Whether any shard belongs to a split."""
        return any(shard.split == split for shard in self.shards)

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """The shards of one split; ValueError names the splits there are if it has none."""
        found = tuple(shard for shard in self.shards if shard.split == split)
        if not found:
            there = sorted({shard.split for shard in self.shards})
            raise ValueError(f"the shards have no split {split!r}; they have {', '.join(there) or 'none'}")
        return found

    def fingerprint(self, split: str) -> str:
        """Identity of a split's data, independent of where it lies: a hash of its shards' hashes, in order."""
        hashes = "".join(shard.xxh3_128 for shard in self.of_split(split))
        return xxhash.xxh3_128_hexdigest(f"{self.format_version}:{self.tokenizer_fingerprint}:{hashes}".encode())

    def save(self, folder: str | Path) -> None:
        """Write `index.json` whole or not at all; call it when every shard is in place."""
        path = Path(folder) / INDEX_NAME
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, folder: str | Path) -> "ShardIndex":
        """Read the index of a folder; ValueError says what is wrong with it."""
        path = Path(folder) / INDEX_NAME
        if not path.is_file():
            raise ValueError(f"{folder} holds no shards: {INDEX_NAME} is missing (it is written last)")
        record = json.loads(path.read_text())
        if record.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{path}: format version {record.get('format_version')}, this reader knows {FORMAT_VERSION}"
            )
        known = {entry.name for entry in fields(cls)}
        shards = tuple(Shard(**shard) for shard in record["shards"])
        return cls(**{key: value for key, value in record.items() if key in known} | {"shards": shards})


class _HashingSink:
    """A binary file that counts and hashes what is written to it."""

    def __init__(self, sink: BinaryIO) -> None:
        self.sink, self.hash, self.size, self.closed = sink, xxhash.xxh3_128(), 0, False

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.sink.write(data)

    def flush(self) -> None:
        self.sink.flush()


class ShardWriter:
    """Writes one shard to a binary file in batches of about BATCH_TOKENS; memory is one batch.

    The bytes depend on the documents and their order alone, so two writers of the same documents agree.
    """

    def __init__(self, sink: BinaryIO, vocab_size: int) -> None:
        self.vocab_size, self.dtype, self.schema = (
            vocab_size,
            token_dtype(vocab_size),
            shard_schema(vocab_size),
        )
        self._sink = _HashingSink(sink)
        self._ipc = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), self.schema)
        self._ids: list[TokenArray] = []
        self._sizes: list[NDArray[np.int64]] = []
        self._files: list[NDArray[np.uint8]] = []
        self._pending = self.rows = self.tokens = self.text_bytes = 0

    def append(self, token_ids: Sequence[int] | TokenArray, file_id: bytes, text_bytes: int) -> None:
        """Add a document: its ids (length n), the 16-byte id of its file and the UTF-8 size of its text."""
        ids = np.asarray(token_ids)
        ids = ids if ids.size else ids.astype(self.dtype)
        self.append_many(ids, np.array([ids.size]), np.frombuffer(file_id, np.uint8).reshape(1, 16), text_bytes)

    def append_many(
        self, token_ids: NDArray[Any], sizes: NDArray[np.int64], file_ids: NDArray[np.uint8], text_bytes: int
    ) -> None:
        """Add n documents: their ids end to end, how many each has (n), the ids of their files (n, 16), and the UTF-8
        size of their texts together."""
        if token_ids.size and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.vocab_size:
            there = f"token ids {token_ids.min()} to {token_ids.max()}"
            raise ValueError(f"{there} are outside the vocabulary of {self.vocab_size}")
        ids, ends, first, begin = token_ids.astype(self.dtype, copy=False), np.cumsum(sizes), 0, 0
        self.text_bytes += text_bytes
        while first < len(sizes):  # a batch ends with the document that fills it
            last = int(np.searchsorted(ends, begin + BATCH_TOKENS - self._pending)) + 1
            end = int(ends[min(last, len(sizes)) - 1])
            self._ids.append(ids[begin:end])
            self._sizes.append(sizes[first:last])
            self._files.append(file_ids[first:last])
            self._pending += end - begin
            first, begin = last, end
            if self._pending >= BATCH_TOKENS:
                self._write_batch()

    def close(self, name: str, split: str) -> Shard:
        """Finish the file and return its entry for the index."""
        self._write_batch()
        self._ipc.close()
        digest = self._sink.hash.hexdigest()
        return Shard(name, split, self.rows, self.tokens, self.text_bytes, self._sink.size, digest)

    def _write_batch(self) -> None:
        if not self._files:
            return
        offsets = np.cumsum(np.concatenate([[0], *self._sizes]), dtype=np.int64)
        flat = pa.array(np.concatenate(self._ids))
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), flat, type=self.schema.field("token_ids").type)
        names = np.concatenate(self._files)
        bounds = pa.py_buffer(np.arange(len(names) + 1, dtype=np.int32) * 16)
        files = pa.Array.from_buffers(pa.binary(), len(names), [None, bounds, pa.py_buffer(names)])
        self._ipc.write_batch(pa.record_batch([lists, files], schema=self.schema))
        self.rows, self.tokens = self.rows + len(names), self.tokens + int(offsets[-1])
        self._ids, self._sizes, self._files, self._pending = [], [], [], 0


class TokenStream:
    """All tokens of a split as one address space, read from memory maps without a copy of the shards.

    Token t of the split is found by bisecting the shards' prefix sums. Shards are mapped when first touched, so
    opening costs the index alone, however many there are.

    Args:
        folder: a folder that `write_shards` wrote.
        split: train or validation.
        verify: hash every shard now (some GB/s) instead of comparing sizes alone when it is mapped.
    """

    def __init__(self, folder: str | Path, split: str = "train", *, verify: bool = False) -> None:
        self.folder, self.split, self.index = Path(folder), split, ShardIndex.load(folder)
        self.shards = self.index.of_split(split)
        self.dtype = token_dtype(self.index.vocab_size)
        self._ends = list(itertools.accumulate(shard.tokens for shard in self.shards))
        self._columns: dict[int, tuple[list[int], list[TokenArray]]] = {}
        if verify:
            for shard in self.shards:
                verify_shard(self.folder, shard)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text that the split encodes."""
        return sum(shard.text_bytes for shard in self.shards)

    def read(self, start: int, out: TokenArray) -> None:
        """Fill `out` (length n) with the tokens [start, start + n)."""
        if start < 0 or start + len(out) > len(self):
            raise IndexError(f"tokens {start}..{start + len(out)} are outside the split's {len(self)}")
        filled = 0
        for piece in self._pieces(start):
            count = min(len(piece), len(out) - filled)
            out[filled : filled + count] = piece[:count]
            filled += count
            if filled == len(out):
                return

    def _pieces(self, start: int) -> Iterator[TokenArray]:
        """Runs of tokens from `start` on, each a view of a memory map."""
        number = bisect.bisect_right(self._ends, start)
        within = start - (self._ends[number - 1] if number else 0)
        for shard_number in range(number, len(self.shards)):
            ends, batches = self._map(shard_number)
            batch = bisect.bisect_right(ends, within)
            within -= ends[batch - 1] if batch else 0
            for tokens in batches[batch:]:
                yield tokens[within:]
                within = 0

    def _map(self, number: int) -> tuple[list[int], list[TokenArray]]:
        if number not in self._columns:
            batches = [_flat_tokens(batch) for batch in open_shard(self.folder, self.shards[number])]
            self._columns[number] = (list(itertools.accumulate(len(batch) for batch in batches)), batches)
        return self._columns[number]


def open_shard(folder: Path, shard: Shard) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard, memory-mapped; ValueError names a shard that is missing or of another size."""
    path = folder / shard.name
    size = path.stat().st_size if path.is_file() else -1
    if size != shard.file_bytes:
        state = "missing" if size < 0 else f"{size} bytes"
        raise ValueError(f"shard {path} is {state}, the index says {shard.file_bytes} bytes; write the shards again")
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def verify_shard(folder: Path, shard: Shard) -> None:
    """Compare a shard's xxh3-128 with the index; ValueError names the shard that differs."""
    digest = xxhash.xxh3_128()
    path = folder / shard.name
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        raise ValueError(f"shard {path} is missing; write the shards again") from None
    if digest.hexdigest() != shard.xxh3_128:
        raise ValueError(f"shard {path} is damaged: its checksum differs from the index; write the shards again")


def _flat_tokens(batch: pa.RecordBatch) -> TokenArray:
    lists = batch.column("token_ids")
    first, last = lists.offsets[0].as_py(), lists.offsets[-1].as_py()
    tokens: TokenArray = lists.values.slice(first, last - first).to_numpy(zero_copy_only=True)
    return tokens
