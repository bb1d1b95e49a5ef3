"""Which tokens a training step sees: a pure function of the seed, the data and the number of the sequence.

Training sequence n comes from a source and a window that are computed from n alone (order.py, sources.py), and what an
objective makes of it draws from a generator keyed by n. So the data state of a run is one integer, the sequences
consumed, and the global batch is the same however many processes, micro-batches or accumulation steps share it.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenizer.shards import TokenStream
from training.config import Data
from training.micro_batch import IGNORED, MicroBatch, room_for
from training.objectives import Causal, Prediction, told_apart
from training.order import Numbers, count_windows
from training.sources import Sources

# Sequences whose windows are computed at once, and how many such blocks are kept: a call costs some 100 µs.
ORDER_BLOCK, ORDER_BLOCKS = 1024, 4


def read_windows(stream: TokenStream, windows: Numbers, sequence_length: int) -> NDArray[Any]:
    """Tokens (windows, sequence_length + 1) of the given windows, in the type of the shards."""
    rows = np.empty((len(windows), sequence_length + 1), stream.dtype)
    stream.read_rows([window * sequence_length for window in windows.tolist()], rows)
    return rows


class TrainingBatches:
    """The global batches of a run, and the share of each process in them.

    Global batch s holds sequences [s·G, s·G + G); rank r of W takes the r-th contiguous slice of G / W of them.

    Args:
        streams: the training split, or those of several folders.
        sequence_length: T, tokens a sequence predicts.
        sequences: G, sequences a global batch.
        seed: of the order, and of what objectives draw.
        data: weights of the streams, how far they are shuffled, and the sequence-length warm-up.
        predict: what an objective makes of rows; default: the next token.
        flatten: lay sequences that have positions end to end (micro_batch.py).
    """

    def __init__(
        self,
        streams: TokenStream | Sequence[TokenStream],
        *,
        sequence_length: int,
        sequences: int,
        seed: int,
        data: Data | None = None,
        predict: Prediction | None = None,
        flatten: bool = False,
    ) -> None:
        streams, data = [streams] if isinstance(streams, TokenStream) else streams, data or Data()
        self.sequence_length, self.sequences, self.seed = sequence_length, sequences, seed
        self.sources = Sources(
            streams,
            sequence_length=sequence_length,
            seed=seed,
            weights=data.weights,
            shuffle_tokens=data.shuffle_tokens,
        )
        self.lengths = warmup_lengths(data, sequence_length)
        self.predict, self.flatten = predict or Causal(), flatten
        self.warmup_steps, self._blocks = data.warmup_steps, dict[int, tuple[Numbers, Numbers]]()
        self._expected: int | None = None  # the block a group after which shards were asked for
        self._lock = threading.Lock()  # of the blocks: a thread reads ahead while the loop asks for numbers

    @property
    def stream(self) -> TokenStream:
        """The training split of the first folder."""
        return self.sources.all[0].stream

    @property
    def tokens(self) -> int:
        """Of all folders."""
        return sum(len(source.stream) for source in self.sources.all)

    @property
    def windows(self) -> int:
        """Sequences of one epoch, of all folders together."""
        return self.sources.windows

    def length_at(self, consumed: int) -> int:
        """The sequence length of the step whose global batch begins at sequence `consumed`."""
        step = consumed // self.sequences
        if step >= self.warmup_steps:
            return self.sequence_length
        return self.lengths[step * (len(self.lengths) - 1) // self.warmup_steps]

    def epochs(self, consumed: int) -> dict[str, float]:
        """How often each folder has been read after `consumed` sequences, where there are several."""
        if len(self.sources.all) == 1:
            return {}
        read = zip(self.sources.all, self.sources.epochs(consumed), strict=True)
        return {f"epoch_{number}_{source.name}": round(epochs, 6) for number, (source, epochs) in enumerate(read)}

    def samples(self, consumed: int) -> Numbers:
        """Source and window (G, 2) of each sequence of the global batch that begins at `consumed`."""
        return self.samples_of(consumed, self.sequences)

    def samples_of(self, first: int, count: int) -> Numbers:
        """Source and window (n, 2) of consecutive sequences."""
        return np.stack(self._places(np.arange(first, first + count, dtype=np.uint64)), axis=1)

    def share(self, consumed: int, size: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """A rank's part of the global batch that begins at sequence `consumed`, `size` sequences at a time.

        In a sequence-length warm-up each sequence is cut into several rows: the tokens of a step stay the same.
        """
        share = self.sequences // world_size
        assert share * world_size == self.sequences, (self.sequences, world_size)
        assert share % size == 0, (share, size)
        length, begin = self.length_at(consumed), consumed + rank * share
        for first in range(begin, begin + share, size):
            numbers = np.arange(first, first + size, dtype=np.uint64)
            yield self._micro_batch(numbers, length)

    def _micro_batch(self, numbers: Numbers, length: int) -> MicroBatch:
        parts = self.sequence_length // length
        if self.sources.is_remote:
            self._expect(int(numbers[-1]) // ORDER_BLOCK)
        sources, windows = self._places(numbers)
        # Each part shares its last token with the next, as windows do.
        places = np.arange(parts, dtype=np.uint64) * np.uint64(length)
        begins = windows[:, None] * np.uint64(self.sequence_length) + places
        room = room_for(begins.size, length + 1, self.stream.dtype)
        rows = room.numpy()
        self._read(np.repeat(sources, parts), begins.ravel(), rows)
        keys = []
        if not isinstance(self.predict, Causal):  # which draws nothing
            keys = [f"{self.seed}:{number}:{part}" for number in numbers.tolist() for part in range(parts)]
        read = np.stack((sources, windows), axis=1)
        return MicroBatch.of(self.predict(rows, keys), flatten=self.flatten, room=room, samples=read)

    def _read(self, sources: Numbers, begins: Numbers, rows: NDArray[Any]) -> None:
        """Fill each row from its source and token on."""
        if len(self.sources.all) == 1:
            self.stream.read_rows(begins.tolist(), rows)
            return
        for number, source in enumerate(self.sources.all):
            here = np.flatnonzero(sources == number).tolist()
            source.stream.read_rows(begins[here].tolist(), [rows[place] for place in here])

    def _places(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Source and window of consecutive sequences, from blocks that are computed once."""
        first, last = int(numbers[0]), int(numbers[-1])
        blocks = range(first // ORDER_BLOCK, last // ORDER_BLOCK + 1)
        sources, windows = (np.concatenate(parts) for parts in zip(*map(self._locked_block, blocks), strict=True))
        begin = first - blocks[0] * ORDER_BLOCK
        return sources[begin : begin + len(numbers)], windows[begin : begin + len(numbers)]

    def _locked_block(self, block: int) -> tuple[Numbers, Numbers]:
        with self._lock:
            return self._block(block)

    def _block(self, block: int) -> tuple[Numbers, Numbers]:
        found = self._blocks.get(block)
        if found is None:
            found = self.sources(np.arange(block * ORDER_BLOCK, (block + 1) * ORDER_BLOCK, dtype=np.uint64))
            while len(self._blocks) >= ORDER_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[block] = found
        return found

    def _expect(self, block: int) -> None:
        """Have remote shards copied that will be read a group ahead, of which this many windows name nearly all.

        Only what is read calls this: sample numbers are computed of the past too, whose shards nobody needs.
        """
        if block != self._expected:
            self._expected = block
            ahead = (block + 1) * ORDER_BLOCK + self.sources.group
            self.sources.expect(np.arange(ahead, ahead + ORDER_BLOCK, dtype=np.uint64))


class EvaluationBatches:
    """The first windows of the validation split, in order, shared among the processes.

    Args:
        stream: the validation split; one shorter than a window is read as a single shorter one.
        sequence_length: T.
        max_tokens: bound on what one evaluation reads; at least one window is read.
        predict: what an objective makes of rows; default: the next token. It draws the same at every evaluation.
        flatten: as of TrainingBatches.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        sequence_length: int,
        max_tokens: int,
        predict: Prediction | None = None,
        flatten: bool = False,
    ) -> None:
        if len(stream) < 3:  # spans hide one of two
            raise ValueError(
                f"the validation split has {len(stream)} tokens, evaluation needs three or more; write shards with a "
                "larger one, or train with --evaluation_tokens 0"
            )
        self.stream, self.sequence_length = stream, min(sequence_length, len(stream) - 1)
        self.predict, self.flatten = predict or Causal(), flatten
        windows = count_windows(len(stream), self.sequence_length)
        self.count = min(windows, max(1, max_tokens // self.sequence_length))

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text that a token of the split has on average."""
        return self.stream.text_bytes / len(self.stream)

    def share(self, size: int, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """A rank's micro-batches of `size` sequences, as of TrainingBatches.

        Every rank gets equally many, because a sharded model is gathered by all ranks at once; where the windows do
        not divide evenly, repeated ones fill up, whose labels are all -100.
        """
        for first in range(rank * size, self._padded(size * world_size), size * world_size):
            numbers = np.arange(first, first + size, dtype=np.uint64)
            windows = numbers % np.uint64(self.count)
            rows = read_windows(self.stream, windows, self.sequence_length)
            arrays = told_apart(self.predict(rows, [f"evaluation:{window}" for window in windows.tolist()]))
            arrays["labels"][numbers >= self.count] = IGNORED
            yield MicroBatch.of(arrays, flatten=self.flatten)

    def _padded(self, together: int) -> int:
        return -(-self.count // together) * together


def warmup_lengths(data: Data, sequence_length: int) -> list[int]:
    """The sequence lengths of a run, from the shortest on, each twice the one before."""
    if data.warmup_steps and data.warmup_length >= sequence_length:
        raise ValueError(
            f"data.warmup_length {data.warmup_length} is not below batch.sequence_length {sequence_length}; choose a "
            "shorter one, or data.warmup_steps 0"
        )
    lengths = [sequence_length]
    while data.warmup_steps and lengths[0] > data.warmup_length:
        if lengths[0] % 2:
            raise ValueError(
                f"data.warmup_length {data.warmup_length} cannot be reached by halving batch.sequence_length "
                f"{sequence_length}; choose it so, or data.warmup_steps 0"
            )
        lengths.insert(0, lengths[0] // 2)
    if lengths[0] != data.warmup_length and data.warmup_steps:
        raise ValueError(
            f"data.warmup_length {data.warmup_length} is not batch.sequence_length {sequence_length} halved some "
            f"times; {lengths[0]} is"
        )
    return lengths
