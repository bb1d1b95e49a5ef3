"""Batches made ahead of the steps that take them, by one thread: the device never waits for data."""

import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from training.batches import TrainingBatches

if TYPE_CHECKING:
    from training.micro_batch import MicroBatch

# Micro-batches that wait for the device: at least so many and all of a step, which takes its own at once; at most so
# many bytes.
AHEAD, AHEAD_BYTES = 8, 1 << 29
# Of a token in a micro-batch, with the most that an objective adds: int64 inputs, labels and positions.
TOKEN_BYTES = 24
# How often a thread with a full queue looks whether it is to stop, and how long a wait for data may be without a word.
LOOK_SECONDS, TELL_SECONDS = 0.1, 5.0
log = logging.getLogger("train")


class _Cut(NamedTuple):
    """What makes a share: the arguments of TrainingBatches.share."""

    consumed: int
    size: int
    rank: int
    world_size: int


class ReadAhead:
    """TrainingBatches whose shares a thread makes before they are asked for, one global batch after the other.

    A share is the same with and without it, because batches are a pure function of their numbers; one that does not
    follow the last (a resumed run, data that is skipped) begins a new thread. What was read is compared with what was
    asked for, since the digest of a run's samples (sample_chain.py) is of that. What goes wrong in the thread is
    raised by `share`. Everything else is as of the batches: attributes are theirs.

    Args:
        batches: what is read.
        ahead: micro-batches that wait, where a step takes fewer.
    """

    def __init__(self, batches: TrainingBatches, ahead: int = AHEAD) -> None:
        self.batches, self.ahead, self.wait_seconds = batches, ahead, 0.0
        self._next: _Cut | None = None
        self._thread: _Reader | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def share(self, consumed: int, size: int, rank: int, world_size: int) -> Iterator["MicroBatch"]:
        """As TrainingBatches.share; to be read to its end before the next."""
        cut = _Cut(consumed, size, rank, world_size)
        if cut != self._next or self._thread is None:
            self.close()
            self._thread = _Reader(self.batches, cut, self.ahead)
        self._next = None  # until this one is read to its end
        share = self.batches.sequences // world_size
        begin = consumed + rank * share
        for first in range(begin, begin + share, size):
            begun = time.monotonic()
            batch = self._taken(rank)
            self.wait_seconds += time.monotonic() - begun
            if batch.samples is None or (batch.samples != self.batches.samples_of(first, size)).any():
                raise RuntimeError(f"sequences {first} to {first + size - 1} were asked for, others were read")
            yield batch
        self._next = cut._replace(consumed=consumed + self.batches.sequences)

    def _taken(self, rank: int) -> "MicroBatch":
        """The next micro-batch; while that is long in coming, the first process says how far reading is."""
        assert self._thread is not None
        while True:
            try:
                return self._thread.take()
            except queue.Empty:
                if rank == 0:
                    opened, shards = self.batches.sources.opened
                    log.info("waiting for data: %s of %s shards were hashed and opened", f"{opened:,}", f"{shards:,}")

    def take_wait(self) -> float:
        """Seconds that shares have waited for data since this was last asked."""
        waited, self.wait_seconds = self.wait_seconds, 0.0
        return waited

    def close(self) -> None:
        """Stop the thread and let go of what it made; a later share begins another."""
        if self._thread is not None:
            self._thread.close()
        self._thread = self._next = None


class _Reader:
    """The thread: fills a bounded queue with the micro-batches from a cut on, until it is closed."""

    def __init__(self, batches: TrainingBatches, cut: _Cut, ahead: int) -> None:
        share = batches.sequences // cut.world_size // cut.size
        batch_bytes = TOKEN_BYTES * batches.sequence_length * cut.size
        self._queue: queue.Queue[Any] = queue.Queue(max(1, min(max(ahead, share), AHEAD_BYTES // batch_bytes)))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(batches, cut), name="read-ahead", daemon=True)
        self._thread.start()

    def take(self) -> "MicroBatch":
        item = self._queue.get(timeout=TELL_SECONDS)
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, batches: TrainingBatches, cut: _Cut) -> None:
        try:
            while not self._stop.is_set():
                for batch in batches.share(*cut):
                    self._put(batch)
                    if self._stop.is_set():
                        return
                cut = cut._replace(consumed=cut.consumed + batches.sequences)
        except BaseException as error:  # the loop raises it
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=LOOK_SECONDS)
                return
            except queue.Full:
                pass
