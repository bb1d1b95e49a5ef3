"""The shard format's frame: columns, dtype, and `index.json`, which makes shards a data set. Bytes: README.md here."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

FORMAT_VERSION = 1
INDEX_NAME = "index.json"

TokenArray = NDArray[np.uint16] | NDArray[np.uint32]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 where every id below `vocab_size` fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def shard_schema(vocab_size: int) -> pa.Schema:
    """Columns of a shard, for a vocabulary of `vocab_size` entries."""
    ids = pa.large_list(pa.field("item", pa.from_numpy_dtype(token_dtype(vocab_size)), nullable=False))
    return pa.schema([pa.field("token_ids", ids, nullable=False), pa.field("file_id", pa.binary(), nullable=False)])


@dataclass(frozen=True, slots=True)
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
    """What `index.json` holds. Shards stand in reading order, split by split.

    `revision` is the number of times that files were withdrawn from the finished data set (`forget`), and
    `withdrawn_files` how many those were.
    """

    tokenizer_fingerprint: str
    vocab_size: int
    end_of_text_id: int
    shards: tuple[Shard, ...]
    configuration: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    revision: int = 0
    withdrawn_files: int = 0

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
        write_whole(Path(folder) / INDEX_NAME, self.encoded())

    def encoded(self) -> bytes:
        """What `save` writes: the same index gives the same bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def load(cls, folder: str | Path) -> "ShardIndex":
        """Read the index of a folder; ValueError says what is wrong with it."""
        path = Path(folder) / INDEX_NAME
        if not path.is_file():
            raise ValueError(f"{folder} holds no shards: {INDEX_NAME} is missing (it is written last)")
        try:
            record = json.loads(path.read_bytes())
            version = record["format_version"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: it is no index of shards; write the shards again") from None
        if version != FORMAT_VERSION:
            raise ValueError(f"{path}: format version {version}, this reader knows {FORMAT_VERSION}")
        try:
            shards = tuple(_known(Shard, shard) for shard in record["shards"])
            index: ShardIndex = _known(cls, record | {"shards": shards})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); write the shards again") from None
        return index


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place whole and lasting: a kill or a loss of power leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk (Linux: a rename is safe once its folder is flushed)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _known(kind: Any, record: dict[str, Any]) -> Any:
    """Fields that a later writer adds are ignored."""
    names = {entry.name for entry in fields(kind)}
    return kind(**{key: value for key, value in record.items() if key in names})
