"""MDS, the format of mosaicml-streaming: SPLIT/shard.NNNNN.mds and SPLIT/index.json.

A sample is a document (`tokens`, `file_id`) or, with a sequence length, so many tokens of the split (`tokens`). A
shard is: samples n (u32), n + 1 places in the file (u32), its configuration (JSON), the samples. A sample is the sizes
of its columns (u32), then their bytes in the order of their names; an array of one dimension is the byte 4 + k, its
length in 2^k bytes, and its values. Read with `streaming.StreamingDataset(local=OUTPUT, split=SPLIT)`.
"""

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from tokenizer.exporters.documents import documents
from tokenizer.shard_index import ShardIndex, TokenArray, token_dtype

SIZE_LIMIT = 1 << 26
_HASH = "xxh3_128"
_MAX_BYTES = (1 << 32) - (1 << 20)


def export_split(folder: Path, index: ShardIndex, split: str, output: Path, sequence_length: int = 0) -> None:
    """Write the shards of a split of about 64 MB, and its index.json last; memory is some of one shard.

    With `sequence_length` up to that many tokens less one at the end of the split are left out.

    Raises:
        ValueError: a document has no tokens, or does not fit into the 4 GB that MDS can address.
    """
    names = ["tokens"] if sequence_length else ["file_id", "tokens"]
    encodings = {"file_id": "bytes", "tokens": f"ndarray:{token_dtype(index.vocab_size).name}"}
    config = {
        **{"version": 2, "format": "mds", "compression": None, "hashes": [_HASH], "size_limit": SIZE_LIMIT},
        **{"column_names": names, "column_encodings": [encodings[name] for name in names]},
        "column_sizes": [None] * len(names),
    }
    place = output / split
    place.mkdir()
    samples: Iterator[bytes]
    if sequence_length:
        samples = (_sample(tokens) for tokens in _sequences(folder, index, split, sequence_length))
    else:
        samples = _document_samples(folder, index, split)
    shards = [_write_shard(place, number, some, config) for number, some in enumerate(_cut(samples))]
    (place / "index.json").write_text(json.dumps({"version": 2, "shards": shards}, sort_keys=True))


def _document_samples(folder: Path, index: ShardIndex, split: str) -> Iterator[bytes]:
    for some in documents(folder, index, split):
        for number, (begin, end) in enumerate(itertools.pairwise(some.offsets.tolist())):
            if begin == end:
                raise ValueError("a document has no tokens, which MDS cannot hold")
            yield _sample(some.tokens[begin:end], some.file_ids[number : number + 1].tobytes())


def _sequences(folder: Path, index: ShardIndex, split: str, length: int) -> Iterator[TokenArray]:
    """The tokens of a split in runs of a length, over the borders of documents."""
    rest: TokenArray = np.empty(0, token_dtype(index.vocab_size))
    for some in documents(folder, index, split):
        tokens = np.concatenate([rest, some.tokens])
        whole = len(tokens) // length * length
        yield from tokens[:whole].reshape(-1, length)
        rest = tokens[whole:].copy()


def _sample(tokens: TokenArray, file_id: bytes = b"") -> bytes:
    """One sample; the columns stand in the order of their names."""
    kind = 0 if len(tokens) < 1 << 8 else 1 if len(tokens) < 1 << 16 else 2
    array = struct.pack("<B" + "BHI"[kind], 4 + kind, len(tokens)) + tokens.tobytes()
    if 4 + len(array) > _MAX_BYTES:
        raise ValueError(f"a document has {len(tokens)} tokens, more than the 4 GB that MDS can address hold")
    sizes = struct.pack("<II", len(file_id), len(array)) if file_id else struct.pack("<I", len(array))
    return sizes + file_id + array


def _cut(samples: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Groups of samples of SIZE_LIMIT at most, where one alone is not larger."""
    group: list[bytes] = []
    size = 0
    for sample in samples:
        if group and size + len(sample) + 4 > SIZE_LIMIT - 4096:
            yield group
            group, size = [], 0
        group.append(sample)
        size += len(sample) + 4
    if group:
        yield group


def _write_shard(place: Path, number: int, samples: list[bytes], config: dict[str, Any]) -> dict[str, Any]:
    """Write one shard; its entry for the index."""
    name, text = f"shard.{number:05d}.mds", json.dumps(config, sort_keys=True).encode()
    first = 4 + 4 * (len(samples) + 1) + len(text)
    places = np.cumsum([first, *map(len, samples)], dtype=np.int64)
    digest, size = xxhash.xxh3_128(), 0
    with (place / name).open("wb") as file:
        head = [struct.pack("<I", len(samples)), places.astype("<u4").tobytes(), text]
        for part in itertools.chain(head, samples):
            file.write(part)
            digest.update(part)
            size += len(part)
    raw = {"basename": name, "bytes": size, "hashes": {_HASH: digest.hexdigest()}}
    return {**config, "samples": len(samples), "raw_data": raw, "zip_data": None}
