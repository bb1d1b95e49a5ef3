"""Records in sorted order, in memory while they are few, else in runs on disk: a bucket of any size is sorted."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spark_jobs.near_duplicates.records import Hashes, Records, joined, picked, search

# Records that a worker sorts at once.
RUN_BYTES = 32 << 20


class Order(NamedTuple):
    """What records are sorted by: a number (n), and numbers (n, width) that are asked for where it is the same."""

    first: Callable[[Records], NDArray[np.uint64]]
    rest: Callable[[Records], Hashes]

    def numbers(self, records: Records) -> Hashes:
        """All of them, (n, 1 + width)."""
        return np.column_stack([self.first(records), self.rest(records)])


def sorted_runs(
    parts: Iterable[Records], order: Order, shared_only: bool = False, run_bytes: int = RUN_BYTES
) -> Iterator[Records]:
    """Records in the order of their numbers, in arrays of at most about `run_bytes`.

    Records beyond `run_bytes` are sorted in runs, which wait in a temporary file and are merged.

    Args:
        parts: the records, in arrays.
        order: what they are sorted by.
        shared_only: those whose first number is nobody else's may be left out; where there is one run, they are.
        run_bytes: what is sorted at once.
    """
    runs: list[Records] = []
    with tempfile.TemporaryFile() as spilled:
        waiting: list[Records] = []
        for part in parts:
            waiting += [part] if len(part) else []
            if sum(one.nbytes for one in waiting) >= run_bytes:
                runs.append(_spilled(in_order(joined(waiting), order), spilled))
                waiting = []
        if waiting and not runs:
            yield in_order(joined(waiting), order, shared_only)
            return
        if waiting:
            runs.append(in_order(joined(waiting), order))
        if runs:
            yield from _merged(runs, order, run_bytes // runs[0].itemsize)


def in_order(records: Records, order: Order, shared_only: bool = False) -> Records:
    """Records sorted by their first numbers; only those that share theirs are compared by the others."""
    values = order.first(records)
    places = np.argsort(values)
    values = values[places]
    same = values[1:] == values[:-1]
    shared = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(records) else places
    rest = order.rest(picked(records, places[shared]))
    places[shared] = places[shared][np.lexsort([*rest.T[::-1], values[shared]])]
    return picked(records, places[shared] if shared_only else places)


def _spilled(records: Records, file: BinaryIO) -> Records:
    begin = file.seek(0, 2)
    file.write(records.tobytes())
    file.flush()
    return np.memmap(file, records.dtype, "r", begin, records.shape)


def _merged(runs: list[Records], order: Order, most: int) -> Iterator[Records]:
    """Sorted runs as one, in pieces of at most about `most` records: each piece ends where the first of the runs has
    given its share."""
    while len(runs) > 1:
        share = max(1, most // len(runs))
        ends = [run[min(share, len(run)) - 1 : min(share, len(run))] for run in runs]
        last = min((order.numbers(end) for end in ends), key=lambda numbers: numbers[0].tolist())
        cuts = [_cut(run, order, last, share) for run in runs]
        yield in_order(joined(run[:cut] for run, cut in zip(runs, cuts, strict=True)), order)
        runs = [run[cut:] for run, cut in zip(runs, cuts, strict=True) if cut < len(run)]
    yield from (run[first : first + most] for run in runs for first in range(0, len(run), most))


def _cut(run: Records, order: Order, last: NDArray[np.uint64], share: int) -> int:
    """How many records of a run are not after `last`; they are among its first `share`, or end the run."""
    head = order.numbers(run[:share])
    cut = int(search(head, last)[0])
    return cut + int(cut < len(head) and (head[cut] == last[0]).all())
