"""Proof: the exact Jaccard similarity of candidate pairs, from their content.

Content is fetched from the row groups where it lies and never shuffled: a worker takes a run of pairs, reads each
row group that they touch once, keeps the shingle sets of the wanted rows alone, and merges the sets pair by pair.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.content import LOCATION, pieces, text_buffers
from spark_jobs.near_duplicates.shingles import jaccard, shingle_sets

# Text whose shingle sets a worker holds at once: 4 bytes a byte of text at most.
RUN_BYTES = 128 << 20

_SIDES = ("better", "worse")
_SIMILAR = "better binary, worse binary, similarity double"


def similar_pairs(pairs: DataFrame, located: DataFrame, documents: str, threshold: float) -> DataFrame:
    """The pairs (better, worse, similarity) whose exact similarity is at least the threshold.

    Args:
        pairs: distinct pairs of keys, `better` and `worse`.
        located: `key`, where its content lies (LOCATION) and its `size` in bytes.
        documents: path of the table that holds the content.
        threshold: least Jaccard similarity of the shingle sets.
    """
    for side in _SIDES:
        names = {"key": side, **{name: f"{side}_{name}" for name in (*LOCATION, "size")}}
        pairs = pairs.join(located.select(*(F.col(old).alias(new) for old, new in names.items())), side)
    near = pairs.repartitionByRange("worse_part", "worse_row_group", "worse_row").sortWithinPartitions(
        "worse_part", "worse_row_group", "worse_row"
    )

    def verify(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for run in _runs(batches):
            yield _verify(run, documents, threshold)

    return near.mapInArrow(verify, _SIMILAR)


def _runs(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Cut the pairs into runs whose files have at most about RUN_BYTES of text, were they all different."""
    waiting: list[pa.RecordBatch] = []
    waiting_bytes = 0
    for batch in batches:
        sizes = np.asarray(batch.column("better_size")) + np.asarray(batch.column("worse_size"))
        ends = np.cumsum(sizes) // RUN_BYTES
        for number in np.unique(ends):
            rows = np.flatnonzero(ends == number)
            waiting.append(batch.slice(rows[0], len(rows)))
            waiting_bytes += int(sizes[rows].sum())
            if waiting_bytes >= RUN_BYTES:
                yield pa.Table.from_batches(waiting)
                waiting, waiting_bytes = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _verify(run: pa.Table, documents: str, threshold: float) -> pa.RecordBatch:
    numbers, wanted = _number_files(run)
    hashes, bounds = _fetch(documents, wanted)
    similarity = jaccard(hashes, bounds, numbers[: run.num_rows], numbers[run.num_rows :])
    similar = np.flatnonzero(similarity >= threshold)
    kept = run.select(list(_SIDES)).take(pa.array(similar)).combine_chunks()
    columns = [kept.column(side).combine_chunks().cast(pa.binary()) for side in _SIDES]
    return pa.record_batch([*columns, pa.array(similarity[similar])], names=[*_SIDES, "similarity"])


def _number_files(run: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """Number the distinct files of a run: the numbers of all better ones, then of all worse ones (2 n); and the
    files by number, sorted by where they lie."""
    sides = [run.select([f"{side}_{name}" for name in LOCATION]).rename_columns(list(LOCATION)) for side in _SIDES]
    every = pa.concat_tables(sides)
    wanted = every.group_by(list(LOCATION)).aggregate([]).sort_by([(name, "ascending") for name in LOCATION])
    numbered = wanted.append_column("number", pa.array(np.arange(wanted.num_rows)))
    placed = every.append_column("position", pa.array(np.arange(every.num_rows)))
    joined = placed.join(numbered, list(LOCATION)).sort_by("position")
    return joined.column("number").to_numpy(), wanted


def _fetch(documents: str, wanted: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Shingle sets of the wanted rows, in their order; each row group is read once."""
    work = wanted.group_by(["part", "row_group"], use_threads=False).aggregate([("row", "list")])
    work = work.select(["part", "row_group", "row_list"]).combine_chunks()
    hashes, sizes = [np.empty(0, np.uint64)], [np.zeros(1, np.int64)]
    for piece in pieces(documents, work.to_batches(), ["content"]):
        found, bounds = shingle_sets(*text_buffers(piece.batch.column("content")))
        hashes.append(found)
        sizes.append(np.diff(bounds))
    return np.concatenate(hashes), np.cumsum(np.concatenate(sizes))
