"""Files that are whole on the disk: flushed, renamed into place, and known by their checksum."""

import json
from pathlib import Path
from typing import Any

import xxhash

from tokenizer.shard_index import write_whole

PARTIAL = ".partial"
CHUNK_BYTES = 1 << 22

FileRecord = dict[str, int | str]


def write_durably(path: Path, record: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write JSON whole or not at all, and have it on the disk on return."""
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())


def describe(path: Path) -> FileRecord:
    """Size and xxh3-128 of a file, read in pieces: some 10 GB/s from memory, else as fast as the disk."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return {"bytes": path.stat().st_size, "xxh3_128": hasher.hexdigest()}


def damage(path: Path, record: FileRecord) -> str | None:
    """What is wrong with a file of which `record` was written down, in words; None if it is as it was."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != record["bytes"]:
        return f"has {size:,} of {record['bytes']:,} bytes"
    try:
        return None if describe(path) == record else "has another checksum"
    except OSError as error:  # of the disk
        return f"cannot be read: {error.strerror}"
