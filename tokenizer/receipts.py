"""Receipts of withdrawals: JSON beside the shards, written before the index that makes them true.

A receipt of revision n counts once the index has revision n or a later one; that of a withdrawal that was killed
before is overwritten by the next. One file a line, so that neither writing nor reading holds them all.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.file_ids import ID_BYTES
from tokenizer.shard_index import flush

RECEIPTS = "receipts"
_FILE = re.compile(r'\s*\{"file_id": "([0-9a-f]{32})"')
_READ_IDS = 1 << 16


def receipt_path(folder: Path, revision: int) -> Path:
    """Where the receipt of a revision lies."""
    return folder / RECEIPTS / f"forget-{revision:04d}.json"


def write_receipt(folder: Path, revision: int, facts: dict[str, Any], files: Iterable[dict[str, Any]]) -> Path:
    """Write a receipt whole: the facts, and one line a withdrawn file, which begins with its `file_id`."""
    path = receipt_path(folder, revision)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w") as out:
        out.write('{"files": [\n')
        for number, file in enumerate(files):
            out.write(f"{',' * (number > 0)}{chr(10) * (number > 0)} {json.dumps(file)}")
        out.write("\n],\n" + json.dumps(facts | {"revision": revision}, indent=1)[1:].lstrip("\n") + "\n")
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)
    flush(path.parent)
    return path


def receipt_with(folder: Path, revision: int, file_id: bytes) -> Path | None:
    """The receipt of the withdrawal of a file up to a revision, if it was withdrawn."""
    for number in range(1, revision + 1):
        path = receipt_path(folder, number)
        if path.is_file():
            with path.open() as lines:
                if any(match[1] == file_id.hex() for line in lines if (match := _FILE.match(line))):
                    return path
    return None


def withdrawn_ids(folder: Path, revision: int) -> Iterator[NDArray[np.uint8]]:
    """Ids of the files that were withdrawn up to a revision, in pieces of (n, 16) bytes."""
    for number in range(1, revision + 1):
        path = receipt_path(folder, number)
        if not path.is_file():
            raise ValueError(f"{path} is missing: the index says that {revision} withdrawal(s) were made; restore it")
        with path.open() as lines:
            found = bytearray()
            for line in lines:
                if match := _FILE.match(line):
                    found += bytes.fromhex(match[1])
                if len(found) >= _READ_IDS * ID_BYTES:
                    yield np.frombuffer(bytes(found), np.uint8).reshape(-1, ID_BYTES)
                    found.clear()
            yield np.frombuffer(bytes(found), np.uint8).reshape(-1, ID_BYTES)
