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

from tokenizer.shard_index import FORMAT_VERSION, INDEX_NAME, Shard, ShardIndex, TokenArray, shard_schema, token_dtype
from tokenizer.token_stream import TokenStream, open_shard, verify_shard

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
    "shard_schema",
    "token_dtype",
    "verify_shard",
]

BATCH_TOKENS = 4 << 20
SPLITS = ("train", "validation")


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
        self._files: list[bytes] = []
        self._pending = self.rows = self.tokens = self.text_bytes = 0

    def append(self, token_ids: Sequence[int] | TokenArray, file_id: bytes, text_bytes: int) -> None:
        """Add a document: its ids (length n), the 16-byte id of its file and the UTF-8 size of its text."""
        ids = np.asarray(token_ids)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(f"token ids {ids.min()} to {ids.max()} are outside the vocabulary of {self.vocab_size}")
        self._ids.append(ids.astype(self.dtype))
        self._files.append(file_id)
        self._pending += ids.size
        self.text_bytes += text_bytes
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
        offsets = np.cumsum([0, *(ids.size for ids in self._ids)], dtype=np.int64)
        flat = pa.array(np.concatenate(self._ids))
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), flat, type=self.schema.field("token_ids").type)
        self._ipc.write_batch(pa.record_batch([lists, pa.array(self._files, pa.binary())], schema=self.schema))
        self.rows, self.tokens = self.rows + len(self._files), self.tokens + int(offsets[-1])
        self._ids, self._files, self._pending = [], [], 0
