"""A small finished data set for the tests of what is done with shards: files of repositories, shards, a ledger."""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_shards import documents, make_tokenizer

from tokenizer.command_line import run
from tokenizer.encode import Encoder
from tokenizer.manifest import MANIFEST_NAME, identity
from tokenizer.shards import Shard, ShardIndex, ShardWriter

ODD_TEXTS = ["", "\0", "<|endoftext|>" * 2, "日本 𝔘\r\n", "x" * 3000]
SHARDS = {"train": 4, "validation": 1}


@dataclass(frozen=True)
class SmallFile:
    """A kept file, and the shard that it goes to."""

    repo: str
    path: str
    text: str
    split: str
    number: int

    @property
    def file_id(self) -> bytes:
        # One id in four ends with zero bytes, which an `S16` must not lose.
        digest = hashlib.md5(f"{self.repo}/{self.path}".encode()).digest()
        return digest if digest[0] % 4 else digest[:13] + bytes(3)


def small_files(count: int = 160, seed: int = 0) -> list[SmallFile]:
    """Files of ten repositories, the last of which is held out; the repository `Only/Here` fills shard 3 alone."""
    draw, found = random.Random(seed), []
    for number, text in enumerate(documents(count, seed) + ODD_TEXTS):
        repo = draw.randrange(10)
        split, shard = ("validation", 0) if repo == 9 else ("train", draw.randrange(3))
        found.append(SmallFile(f"Owner{repo}/Repo", f"{number}.py", text, split, shard))
    return found + [SmallFile("Only/Here", f"{number}.py", f"x = {number}\n", "train", 3) for number in range(5)]


def write_data_set(folder: Path, files: list[SmallFile], ledger: Path | None = None) -> dict[bytes, list[int]]:
    """Shards of the files in order, their tokenizer and index; the tokens of each file."""
    tokenizer = folder / "tokenizer"
    encoder = Encoder(tokenizer) if tokenizer.exists() else make_tokenizer(tokenizer)
    entries: list[Shard] = []
    ids = dict(zip([file.file_id for file in files], encoder.encode(pa.array([f.text for f in files])), strict=True))
    for split, count in SHARDS.items():
        for number in range(count):
            inside = [file for file in files if (file.split, file.number) == (split, number)]
            if inside:
                entries.append(_write_shard(folder, split, number, inside, ids, encoder.vocab_size))
    made_from = {"inputs": {"ledger": _fingerprint(ledger)}} if ledger else {}
    ShardIndex(encoder.fingerprint, encoder.vocab_size, encoder.end_of_text_id, tuple(entries), made_from).save(folder)
    return {file_id: tokens.tolist() for file_id, tokens in ids.items()}


def write_small_ledger(folder: Path, files: list[SmallFile]) -> Path:
    """A finished ledger of the kept files, and of one that is not kept."""
    rows = [{"file_id": f.file_id, "repo": f.repo, "path": f.path, "state": "kept"} for f in files]
    rows.append({"file_id": b"\xff" * 16, "repo": "Owner0/Repo", "path": "wide.py", "state": "filtered: line_length"})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet", row_group_size=30)
    manifest = {"kind": "ledger", "schema_version": 2, "rows": len(rows), "configuration": {}, "inputs": {}}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def call(commands, *words) -> int:
    """Run a command line within this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        run(commands, [str(word) for word in words])
    return ended.value.code


def _fingerprint(ledger: Path) -> str:
    return identity(json.loads((ledger / MANIFEST_NAME).read_text()))


def _write_shard(
    folder: Path, split: str, number: int, files: list[SmallFile], ids: dict[bytes, np.ndarray], vocab_size: int
) -> Shard:
    name = f"{split}-{number:05d}-of-{SHARDS[split]:05d}.arrow"
    with (folder / name).open("wb") as sink:
        writer = ShardWriter(sink, vocab_size)
        for file in files:
            writer.append(ids[file.file_id], file.file_id, len(file.text.encode()))
        return writer.close(name, split)
