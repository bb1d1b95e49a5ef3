"""What the drivers of the peers share: reading a corpus, five-word shingles, clusters, and writing what is kept."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = re.compile(r"\w+").findall
SHINGLE_WORDS = 5


def contents(folder: str) -> Iterator[str]:
    """The texts of a corpus in file order."""
    for file in sorted(Path(folder).glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["content"]):
            yield from batch.column(0).to_pylist()


def shingles(text: str) -> list[str]:
    """All runs of five words, or the one run of fewer."""
    words = WORDS(text)
    return [" ".join(words[first : first + SHINGLE_WORDS]) for first in range(max(len(words) - SHINGLE_WORDS + 1, 1))]


def first_of_clusters(candidates: Iterable[list[int]]) -> list[int]:
    """Of each connected component the first row: the field's habit.

    Args:
        candidates: for every row in order, the rows that its query returned.
    """
    parent: list[int] = []

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    links = [[other for other in found if other < row] for row, found in enumerate(candidates)]
    parent.extend(range(len(links)))
    for row, others in enumerate(links):
        for other in others:
            one, two = sorted((root(row), root(other)))
            parent[two] = one
    return [row for row in range(len(links)) if root(row) == row]


def write_kept(path: str, rows: Iterable[int]) -> None:
    """One row number a line."""
    Path(path).write_text("".join(f"{row}\n" for row in rows))


def write_survivors(folder: str, kept: str, rows: Iterable[int]) -> None:
    """The kept rows of a corpus with all their columns, as Parquet, and their numbers: what every tool is timed for.

    For libraries, which leave it to their caller; tools write them in their own way.
    """
    wanted = sorted(rows)
    write_kept(kept, wanted)
    files, before = sorted(Path(folder).glob("*.parquet")), 0
    with pq.ParquetWriter("survivors.parquet", pq.read_schema(files[0]), compression="zstd") as writer:
        for batch in (batch for file in files for batch in pq.ParquetFile(file).iter_batches(1000)):
            end = before + batch.num_rows
            here = wanted[bisect_left(wanted, before) : bisect_left(wanted, end)]
            writer.write_batch(batch.take(pa.array([row - before for row in here], pa.int64())))
            before = end
