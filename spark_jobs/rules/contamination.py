"""Benchmark tasks in a corpus: runs of words that a document shares with one task and with no other.

Runs that several tasks share (an import line, a usual signature), and those that are mostly numbers (test data such
as 0 1 2 3), prove nothing and are left out.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.content import Piece, arrow_schema, pieces, row_groups, text_buffers
from spark_jobs.near_duplicates.shingles import shingle_sets
from spark_jobs.tables import CONTAMINATED

# What of a task is looked for: question and answer in the fields of HumanEval, MBPP and their kin.
TEXT_FIELDS = ("prompt", "canonical_solution", "question", "text", "code", "solution")
NAME_FIELDS = ("task_id", "id", "name")

_SCHEMA = arrow_schema(CONTAMINATED)


class Runs(NamedTuple):
    """Runs of words that betray a task: sorted hashes (n), and for each the task and the words."""

    hashes: NDArray[np.uint64]
    tasks: list[str]
    words: list[str]


def tasks_of(path: str) -> dict[str, str]:
    """Text of each task of a benchmark file (.jsonl or .jsonl.gz) by name; ValueError if a line is no task."""
    tasks: dict[str, str] = {}
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                texts = [record[field] for field in TEXT_FIELDS if isinstance(record.get(field), str)]
            except (ValueError, AttributeError):
                raise ValueError(f"{path}, line {number}: not a JSON object") from None
            if not texts:
                raise ValueError(f"{path}, line {number}: has none of the fields {', '.join(TEXT_FIELDS)}")
            name = next((str(record[field]) for field in NAME_FIELDS if field in record), f"line {number}")
            tasks[name] = "\n".join(texts)
    if not tasks:
        raise ValueError(f"{path} holds no tasks")
    return tasks


def runs_of(tasks: Mapping[str, str], size: int) -> Runs:
    """The runs of `size` words that one task alone has, at least half of them with a letter; a task of fewer words
    is its own run."""
    owners: dict[tuple[str, ...], set[str]] = {}
    for name, text in tasks.items():
        words = re.findall(r"\w+", text)
        for first in range(max(1, len(words) - size + 1)):
            owners.setdefault(tuple(words[first : first + size]), set()).add(name)
    telling = {run: names for run, names in owners.items() if 2 * sum(map(_has_letter, run)) >= len(run) > 0}
    unique = [(run, *names) for run, names in telling.items() if len(names) == 1]
    texts = [" ".join(run) for run, _ in unique]
    data, offsets = text_buffers(pa.array(texts, pa.large_string()))
    hashes, bounds = shingle_sets(data, offsets, size)
    assert (np.diff(bounds) == 1).all()
    order = np.argsort(hashes)
    return Runs(hashes[order], [unique[number][1] for number in order], [texts[number] for number in order])


def _has_letter(word: str) -> bool:
    return any(character.isalpha() for character in word)


def contaminated_of(spark: SparkSession, documents: str, runs: Runs, size: int) -> DataFrame:
    """Rows of CONTAMINATED: documents with a run of words of a task; the first such run is the evidence."""

    def search(work: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for piece in pieces(documents, work, ["file_id", "repo", "path", "content"]):
            yield _search(piece, runs, size)

    return row_groups(spark, documents).mapInArrow(search, CONTAMINATED)


def _search(piece: Piece, runs: Runs, size: int) -> pa.RecordBatch:
    hashes, bounds = shingle_sets(*text_buffers(piece.batch.column("content")), size)
    places = np.minimum(np.searchsorted(runs.hashes, hashes), len(runs.hashes) - 1)
    hits = np.flatnonzero(runs.hashes[places] == hashes)
    rows, first = np.unique(np.searchsorted(bounds, hits, side="right") - 1, return_index=True)
    found = places[hits[first]]
    columns = [piece.batch.column(name).take(pa.array(rows)) for name in ("file_id", "repo", "path")]
    columns += [pa.array([runs.tasks[run] for run in found]), pa.array([runs.words[run] for run in found])]
    arrays = [column.cast(field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)
