"""The shard format: tokenized documents as memory-mapped Arrow IPC files, and the index that makes them a data set.

A shard is one Arrow IPC file, uncompressed, of two columns: `token_ids` (large_list of uint16 or uint32, by
vocabulary size) and `file_id` (binary, 16 bytes). Document boundaries are the list offsets. Few large record
batches (about `BATCH_TOKENS` each), because each costs a reader some 30 µs and a mapping of its own.
`index.json` is written last: a folder without one holds no data set. README.md here tells every byte.

Writing is here, the index in shard_index.py, reading in token_stream.py; all names can be had from here.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from tokenizer.shard_index import FORMAT_VERSION, INDEX_NAME, Shard, ShardIndex, TokenArray, shard_schema, token_dtype
from tokenizer.token_stream import TokenStream, open_shard, require_size, verify_shard

__all__ = [
    "BATCH_TOKENS",
    "FORMAT_VERSION",
    "INDEX_NAME",
    "SPLITS",
    "Shard",
    "ShardIndex",
    "ShardWriter",
    "TokenArray",
    "TokenStream",
    "open_shard",
    "require_size",
    "shard_schema",
    "token_dtype",
    "verify_shard",
]

BATCH_TOKENS = 4 << 20
SPLITS = ("train", "validation", "test")


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
