"""Megatron's indexed dataset: SPLIT.bin holds the tokens, SPLIT.idx where each document begins.

The .idx, little-endian: `MMIDIDX\\0\\0`, version 1 (u64), dtype code (u8: 8 uint16, 4 int32), sequences n (u64),
entries of the document index (u64, n + 1), n lengths in tokens (i32), n places in bytes (i64), and the document index
(i64: 0 to n, as each document is one sequence). Read with `megatron.core.datasets.indexed_dataset.IndexedDataset`.
"""

import struct
from pathlib import Path

import numpy as np

from tokenizer.exporters.documents import documents
from tokenizer.shard_index import ShardIndex, token_dtype

_CODES = {"uint16": 8, "int32": 4}
_STEP = 1 << 20  # documents whose places are computed at once


def export_split(folder: Path, index: ShardIndex, split: str, output: Path) -> None:
    """Write both files of a split. Ids above 16 bits become int32, Megatron has no uint32.

    Raises:
        ValueError: a document is longer than 2^31 - 1 tokens, or the vocabulary larger than that.
    """
    dtype = np.dtype(np.uint16 if token_dtype(index.vocab_size).itemsize == 2 else np.int32)
    if index.vocab_size > 1 << 31:
        raise ValueError(f"the vocabulary has {index.vocab_size} entries; Megatron's ids end at {(1 << 31) - 1}")
    count = sum(shard.rows for shard in index.of_split(split))
    with (output / f"{split}.bin").open("wb") as tokens, (output / f"{split}.idx").open("w+b") as idx:
        idx.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, _CODES[dtype.name], count, count + 1))
        lengths_at = idx.tell()
        for some in documents(folder, index, split):
            lengths = np.diff(some.offsets)
            if len(lengths) and int(lengths.max()) >= 1 << 31:
                raise ValueError(f"a document has {lengths.max()} tokens; Megatron's end at {(1 << 31) - 1}")
            tokens.write(some.tokens.astype(dtype, copy=False).data)
            idx.write(lengths.astype("<i4").tobytes())
        place, places_at = 0, idx.tell()
        for first in range(0, count, _STEP):
            some_count = min(_STEP, count - first)
            idx.seek(lengths_at + 4 * first)
            ends = place + np.cumsum(np.frombuffer(idx.read(4 * some_count), "<i4"), dtype=np.int64) * dtype.itemsize
            idx.seek(places_at + 8 * first)
            idx.write(np.concatenate([[place], ends[:-1]]).astype("<i8").tobytes())
            place = int(ends[-1])
        idx.seek(places_at + 8 * count)
        for first in range(0, count + 1, _STEP):
            idx.write(np.arange(first, min(first + _STEP, count + 1), dtype="<i8").tobytes())
