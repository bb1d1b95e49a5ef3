"""The kernel of ingest: units of work in, rows of documents out. It runs in Spark's Python workers."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from spark_jobs.sources import archives, folders, json_lines, parquet_rows, units
from spark_jobs.sources.records import Choice, batches
from spark_jobs.sources.units import Unit

Reader = Callable[[Unit, Choice, Counter[str]], Iterator[dict[str, Any]]]

READERS: dict[str, Reader] = {
    units.DIRECTORY: folders.read_directory,
    units.FILE: folders.read_file,
    units.TAR: archives.read_tar,
    units.ZIP: archives.read_zip,
    units.LINES: json_lines.read_lines,
    units.ROW_GROUP: parquet_rows.read_row_group,
}


def packed(unit: Unit) -> str:
    """A unit as text that any table can hold: names that are not UTF-8 become escapes."""
    return json.dumps(unit)


def read_units(work: Iterable[pa.RecordBatch], choice: Choice, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Read the units in the column `unit`, in their order, and yield batches of `schema`: documents, then counts.

    Memory: the units of one task, one batch (16 MB of content), and one file or line.
    """
    mine = sorted(Unit(*json.loads(text)) for batch in work for text in batch.column("unit").to_pylist())
    tally: Counter[str] = Counter()
    rows = (row for unit in mine for row in READERS[unit.kind](unit, choice, tally))
    yield from batches(rows, tally, schema)


def tasks_of(found: list[Unit], parallelism: int) -> list[int]:
    """The number of the task of each unit: neighbours together, tasks of like weight, none too small to be worth it.

    A task holds up to 128 MB, less if there would otherwise be fewer than eight tasks a core; opening a file counts
    as 16 KB, and packed files are taken to hold four times their size.
    """
    weights = [_weight(unit) for unit in found]
    target = max(8 << 20, min(128 << 20, sum(weights) // max(1, 8 * parallelism)))
    numbers, number, held = [], 0, 0
    for weight in weights:
        if held and held + weight > target:
            number, held = number + 1, 0
        numbers.append(number)
        held += weight
    return numbers


def _weight(unit: Unit) -> int:
    packed_already = unit.kind == units.ZIP or unit.location.lower().endswith((".gz", ".zst", ".tgz", ".tzst"))
    return unit.size_bytes * (4 if packed_already else 1) + (unit.files << 14)
