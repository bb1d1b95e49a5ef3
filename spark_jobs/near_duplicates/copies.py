"""Exact copies, and how files rank: what competes is sorted by content in the workers, and no bucket is held whole.

A repository that loses files to copies elsewhere ranks behind one that loses fewer. Forks are copies file by file, and
a choice file by file would leave a part of each. So the choice is made once, to see who would lose what, and again
with that in the keep order.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from spark_jobs.near_duplicates.exchange import Blobs, exchanged, scattered
from spark_jobs.near_duplicates.keep_order import MAX_LOSSES, standing, with_losses
from spark_jobs.near_duplicates.records import (
    COPY,
    FILE,
    KIND_COPY,
    KIND_FILE,
    KIND_LOSS,
    KIND_SLIM,
    LOSS,
    SLIM,
    Records,
    bucket_of,
    joined,
    numbers,
    picked,
    spots_of,
)
from spark_jobs.near_duplicates.runs import Order, sorted_runs
from spark_jobs.near_duplicates.stored import Stored, stored_exchange

_BY_ID = Order(
    lambda files: files["content"][:, 0],
    lambda files: np.column_stack([files["content"][:, 1], files["id"], spots_of(files["key"])]),
)
# Without the repository and the size, so that chance decides which of several forks has the better copy of a file.
_FIRST_CHOICE = Order(
    lambda files: files["content"][:, 0],
    lambda files: np.column_stack([files["content"][:, 1], standing(files["key"]), files["id"]]),
)
_BY_KEY = Order(
    lambda files: files["content"][:, 0],
    lambda files: np.column_stack([files["content"][:, 1], numbers(files["key"])]),
)


def ranked(fresh: DataFrame, tasks: int) -> DataFrame:
    """Blobs of FILEs, in buckets of their contents, with what their repositories lose in their keys.

    Rows of one file id, which ingest would have made one, are represented by the first.

    Args:
        fresh: blobs of FILEs in buckets of their contents (`content_bucket`).
        tasks: Spark tasks, each of which takes a bucket.
    """

    def choose(buckets: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in buckets:
            once = _without_repeats(sorted_runs((records for _, records in blobs), _BY_ID))
            for files, best in _with_best(sorted_runs(once, _FIRST_CHOICE)):
                losses = _losses(files, files["repo"] != best["repo"])
                yield scattered(losses, KIND_LOSS, _bucket(losses["repo"], tasks))
                anywhere = np.where(files["repo"] == 0, files["content"][:, 0], files["repo"])
                yield scattered(files, KIND_FILE, _bucket(anywhere, tasks))

    def rank(buckets: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in buckets:
            losses = np.empty(0, LOSS)
            for kind, records in blobs:
                if kind == KIND_LOSS:
                    losses = _summed(np.concatenate([losses, records]))
                else:
                    files = records.copy()
                    files["key"] = with_losses(files["key"], _shares(losses, files["repo"]))
                    yield scattered(files, KIND_FILE, content_bucket(files, tasks))

    return exchanged(exchanged(fresh, tasks, choose), tasks, rank)


def folded(files: DataFrame, tasks: int, buckets: int, folder: str) -> Stored:
    """Blobs of SLIM, the best file of each content, in the bucket of its spot; and of COPY, the others, in that of
    the file that they go for.

    Args:
        files: blobs of FILEs in buckets of their contents.
        tasks: Spark tasks, each of which takes a bucket.
        buckets: number of buckets of spots.
        folder: where the blobs are stored.
    """

    def fold(groups: Iterator[tuple[int, Blobs]]) -> Iterator[pa.RecordBatch]:
        for _, blobs in groups:
            for found, best in _with_best(sorted_runs((records for _, records in blobs), _BY_KEY)):
                spots, kept = spots_of(found["key"]), spots_of(best["key"])
                first = spots == kept
                slim = _of_type(found[first], SLIM)
                yield scattered(slim, KIND_SLIM, bucket_of(spots[first], buckets))
                copies = _of_type(found[~first], COPY)
                copies["kept"] = best["key"][~first]
                yield scattered(copies, KIND_COPY, bucket_of(kept[~first], buckets))

    return stored_exchange(files, tasks, fold, folder)


def content_bucket(files: Records, buckets: int) -> np.ndarray:
    """The bucket of each file's content."""
    return _bucket(files["content"][:, 0], buckets)


def _bucket(hashes: np.ndarray, buckets: int) -> np.ndarray:
    return (hashes >> np.uint64(32)).astype(np.int64) % buckets


def _of_type(files: Records, dtype: np.dtype) -> Records:
    """The same files with the fields of SLIM, in records of `dtype`."""
    found = np.empty(len(files), dtype)
    for name in SLIM.names or ():
        found[name] = files[name]
    return found


def _without_repeats(runs: Iterable[Records]) -> Iterator[Records]:
    """Of the files in runs by content and id the first of each."""
    last = np.empty(0, FILE)
    for run in runs:
        both = joined([last, run])
        again = np.append(False, (both["content"][1:] == both["content"][:-1]).all(1))
        again[1:] &= (both["id"][1:] == both["id"][:-1]).all(1)
        yield picked(run, ~again[len(last) :])
        last = run[-1:].copy()


def _with_best(runs: Iterable[Records]) -> Iterator[tuple[Records, Records]]:
    """Files in runs by content, and for each the first of its content, which an earlier run may have had."""
    last = np.empty(0, FILE)
    for run in runs:
        both = joined([last, run])
        new = np.append(True, (both["content"][1:] != both["content"][:-1]).any(1))
        best = picked(both, np.maximum.accumulate(np.where(new, np.arange(len(both)), 0)))
        yield run, best[len(last) :]
        last = best[-1:].copy()


def _losses(files: Records, lost: np.ndarray) -> Records:
    """LOSSes of the files' repositories."""
    found = np.empty(len(files), LOSS)
    found["repo"], found["files"], found["lost"] = files["repo"], 1, lost
    return _summed(found[found["repo"] != 0])


def _summed(losses: Records) -> Records:
    """One LOSS a repository, sorted."""
    repos, first, of = np.unique(losses["repo"], return_index=True, return_inverse=True)
    found = losses[first]
    for name in ("files", "lost"):
        found[name] = np.bincount(of, losses[name], len(repos))
    return found


def _shares(losses: Records, repos: np.ndarray) -> np.ndarray:
    """What the repositories (n) lose, in 255ths of their files, rounded up; of those without a LOSS nothing."""
    if not len(losses):
        return np.zeros(len(repos), np.uint64)
    at = np.minimum(np.searchsorted(losses["repo"], repos), len(losses) - 1)
    share = -(-losses["lost"][at] * MAX_LOSSES // losses["files"][at])
    return np.where(losses["repo"][at] == repos, share, 0).astype(np.uint64)
