"""Files that are whole on the disk: flushed, renamed into place, and known by their checksum."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from tokenizer.progress import Progress
from tokenizer.shard_index import write_whole

PARTIAL = ".partial"
CHUNK_BYTES = 1 << 22
# How long another machine may take to see a file that is there: NFS looks again after up to 60 s by default.
SEEN_SECONDS, LOOK_SECONDS = 90.0, 0.2

FileRecord = dict[str, int | str]


def write_durably(path: Path, record: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write strict JSON whole or not at all, and have it on the disk on return. Its figures must be finite."""
    write_whole(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def describe(path: Path, progress: Progress | None = None) -> FileRecord:
    """Size and xxh3-128 of a file, read in pieces: some 10 GB/s from memory, else as fast as the disk."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
            if progress is not None:
                progress.add(len(chunk))
    return {"bytes": path.stat().st_size, "xxh3_128": hasher.hexdigest()}


def damaged(folder: Path, records: dict[str, FileRecord], *, quiet: bool = False) -> Iterator[tuple[str, str]]:
    """Those files of a folder that are not as they were when `records` were written down, and what is wrong with each.

    Where all of them together take long, says on stderr how far it is, unless `quiet`.
    """
    total = sum(int(record["bytes"]) for record in records.values())
    progress = Progress(f"checking {folder.name}", total, gigabytes=True, quiet=quiet)
    for name, record in records.items():
        if fault := damage(folder / name, record, progress):
            yield name, fault
    progress.end()


def damage(path: Path, record: FileRecord, progress: Progress | None = None) -> str | None:
    """What is wrong with a file of which `record` was written down, in words; None if it is as it was."""
    try:
        size = path.stat().st_size
        if size != record["bytes"]:
            return f"has {size:,} of {record['bytes']:,} bytes"
        return None if describe(path, progress) == record else "has another checksum"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:  # of the disk
        return f"cannot be read: {error.strerror}"


def seen(is_there: Callable[[], bool]) -> bool:
    """Whether what another process wrote comes to be seen by this one, waited for as long as that may take."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, without lines that a loss of power or a kill left broken."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows
