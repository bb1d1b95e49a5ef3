"""Reading a sample (spark_jobs/sample.py): a table of redacted texts, of which a part is held out from training."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokenizer.manifest import MANIFEST_NAME, identity

# Files of a sample that are in memory at once; none is longer than the sample's `file_bytes`.
BATCH_FILES = 256


def manifest_of(sample: str) -> dict[str, Any]:
    """The manifest of a finished sample; ValueError if there is none, or it is another table's."""
    path = Path(sample) / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(f"{sample} is not a finished table: no {MANIFEST_NAME}")
    record: dict[str, Any] = json.loads(path.read_text())
    if record["kind"] != "sample":
        raise ValueError(f"{sample} is a table of {record['kind']}; needed is a sample (spark_jobs/sample.py)")
    return record


def fingerprint(sample: str) -> str:
    """Identity of a sample's rows, wherever and however cut they lie."""
    return identity(manifest_of(sample))


def batches(sample: str, held_out: bool | None, columns: Sequence[str] = ("content",)) -> Iterator[pa.RecordBatch]:
    """The rows to train on, those held out, or all (None), at most BATCH_FILES at a time; memory is a row group."""
    for path in _parts(sample):
        for batch in _rows(path, [*columns, "held_out"]):
            chosen = batch if held_out is None else batch.filter(pc.equal(batch.column("held_out"), held_out))
            if chosen.num_rows:
                yield chosen.select(list(columns))


def _rows(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a file of a sample; ValueError names it if it is damaged."""
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_FILES, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged: {error}; draw the sample again, with --overwrite") from None


def amounts(sample: str, held_out: bool) -> tuple[int, int]:
    """Files and bytes of text to train on, or held out."""
    files = size_bytes = 0
    for batch in batches(sample, held_out, ["size"]):
        files += batch.num_rows
        size_bytes += pc.sum(batch.column("size")).as_py()
    return files, size_bytes


def _parts(sample: str) -> list[Path]:
    return sorted(path for path in Path(sample).glob("*.parquet") if not path.name.startswith(("_", ".")))
