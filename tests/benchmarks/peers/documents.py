"""What the drivers of the peers share: reading a corpus, five-word shingles, clusters, and writing what is kept."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

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
