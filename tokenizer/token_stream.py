"""Reading shards: one address space over all tokens of a split, with a bounded number of memory maps."""

import bisect
import itertools
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from tokenizer.shard_index import Shard, ShardIndex, TokenArray, token_dtype

# Shards that a stream keeps mapped. A map costs addresses and no memory of its own; what it shows of the page cache
# counts as the process's, and Linux allows a process 65,530 maps.
MAX_MAPS = 256
# Shorter runs in a shard that is not mapped are read into memory once so many are: on one core opening, reading and
# closing take 5 µs, mapping for one run 18 µs.
SHORT_TOKENS = 1 << 16


class TokenStream:
    """All tokens of a split as one address space, read from memory maps without a copy of the shards.

    Token t of the split is found by bisecting the shards' prefix sums. Shards are mapped when first touched, so
    opening costs the index alone, however many there are. At most MAX_MAPS stay mapped. Of a shard that was touched
    stays where its tokens lie: 16 bytes a record batch, that is, for every 8 MB of tokens.

    Args:
        folder: a folder that `write_shards` wrote.
        split: one of those in the index: train, validation, ...
        verify: hash every shard now (some GB/s) instead of comparing sizes alone when it is mapped.
    """

    def __init__(self, folder: str | Path, split: str = "train", *, verify: bool = False) -> None:
        self.folder, self.split, self.index = Path(folder), split, ShardIndex.load(folder)
        self.shards = self.index.of_split(split)
        self.dtype = token_dtype(self.index.vocab_size)
        self._paths = [f"{self.folder}/{shard.name}" for shard in self.shards]
        self._ends = list(itertools.accumulate(shard.tokens for shard in self.shards))
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._views: dict[int, tuple[list[int], list[TokenArray]]] = {}  # of mapped shards: begins and tokens
        self._layouts: dict[int, NDArray[np.int64]] = {}
        if verify:
            for shard in self.shards:
                verify_shard(self.folder, shard)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def opened(self) -> int:
        """Shards of which a token was read."""
        return len(self._layouts)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text that the split encodes."""
        return sum(shard.text_bytes for shard in self.shards)

    def read(self, start: int, out: TokenArray) -> None:
        """Fill `out` (length n) with the tokens [start, start + n)."""
        if start < 0 or start + len(out) > len(self):
            raise IndexError(f"tokens {start}..{start + len(out)} are outside the split's {len(self)}")
        filled = 0
        for piece in self._pieces(start, len(out)):
            out[filled : filled + len(piece)] = piece
            filled += len(piece)

    def read_rows(self, starts: Sequence[int], out: NDArray[Any] | Sequence[TokenArray]) -> None:
        """Fill each row of `out` (n, length) with the tokens from its start on; some 1 µs a row of a mapped shard.

        Rows may lie in several places: a list of them, all of one length.
        """
        if any(start < 0 for start in starts):
            raise IndexError(f"a row begins at token {min(starts)}, before the split")
        ends, views, length = self._ends, self._views, len(out[0]) if len(out) else 0
        for start, row in zip(starts, out, strict=True):
            view = views.get(bisect.bisect_right(ends, start))
            if view is not None:
                number = bisect.bisect_right(view[0], start) - 1
                within = start - view[0][number]
                piece = view[1][number][within : within + length]
                if len(piece) == length:
                    row[:] = piece
                    continue
            self.read(start, row)

    def _pieces(self, start: int, length: int) -> Iterator[TokenArray]:
        """The tokens [start, start + length), in runs."""
        number = bisect.bisect_right(self._ends, start)
        within = start - (self._ends[number - 1] if number else 0)
        while length:
            ends, places = self._layout(number)
            first = int(ends.searchsorted(within, "right"))
            before = int(ends[first - 1]) if first else 0
            for end, place in zip(ends[first:].tolist(), places[first:].tolist(), strict=True):
                count = min(end - within, length)
                yield self._run(number, place + (within - before) * self.dtype.itemsize, count)
                length -= count
                if not length:
                    return
                within = before = end
            number, within = number + 1, 0

    def _run(self, number: int, place: int, count: int) -> TokenArray:
        """Tokens from a byte of a shard's file on: a view of its map, or a copy where that is cheaper."""
        shard_map = self._maps.get(number)
        if shard_map is None:
            if count <= SHORT_TOKENS and len(self._maps) >= MAX_MAPS:
                with _opened(self._paths[number], self.shards[number]) as descriptor:
                    return self._copy(number, descriptor, place, count)
            with _opened(self._paths[number], self.shards[number]) as descriptor:
                shard_map = self._map(number, descriptor)
        elif count > SHORT_TOKENS:
            self._maps.move_to_end(number)
        return np.frombuffer(shard_map, self.dtype, count, place)

    def _copy(self, number: int, descriptor: int, place: int, count: int) -> TokenArray:
        """A run read from a shard's file, in as many reads as the file system takes for it."""
        tokens: TokenArray = np.empty(count, self.dtype)
        left = tokens.data.cast("B")
        while left:
            read = os.preadv(descriptor, [left], place)
            if not read:
                raise ValueError(f"shard {self._paths[number]} ends at byte {place}; {_REMEDY}")
            left, place = left[read:], place + read
        return tokens

    def _map(self, number: int, descriptor: int) -> mmap.mmap:
        """Map a shard whose layout is known; the longest unused map beyond MAX_MAPS goes."""
        shard_map = self._maps[number] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        first, (ends, places) = self._ends[number] - self.shards[number].tokens, self._layout(number)
        counts = np.diff(ends, prepend=0).tolist()
        runs = zip(counts, places.tolist(), strict=True)
        views = [np.frombuffer(shard_map, self.dtype, count, place) for count, place in runs]
        self._views[number] = ([first, *(first + ends[:-1]).tolist()], views)
        if len(self._maps) > MAX_MAPS:
            self._forget(next(iter(self._maps)))
        return shard_map

    def _forget(self, number: int) -> None:
        """Unmap a shard, as soon as no view of it is left."""
        self._maps.pop(number, None)
        self._views.pop(number, None)

    def _layout(self, number: int) -> NDArray[np.int64]:
        if number not in self._layouts:
            self._layouts[number] = _layout(self.folder, self.shards[number], self.dtype)
        return self._layouts[number]


def open_shard(folder: Path, shard: Shard) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard, memory-mapped; ValueError names a shard that is missing or of another size."""
    require_size(folder, shard)
    path = folder / shard.name
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return (reader.get_batch(number) for number in range(reader.num_record_batches))


def require_size(folder: Path, shard: Shard) -> None:
    """ValueError names a shard that is missing or of another size than the index says; nothing of it is read."""
    path = folder / shard.name
    _require_size(path, shard, path.stat().st_size if path.is_file() else -1)


def verify_shard(folder: Path, shard: Shard) -> None:
    """Compare a shard's xxh3-128 with the index; ValueError names the shard that differs."""
    digest = xxhash.xxh3_128()
    path = folder / shard.name
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError:
        raise ValueError(f"shard {path} is missing; {_REMEDY}") from None
    if digest.hexdigest() != shard.xxh3_128:
        raise ValueError(f"shard {path} is damaged: its checksum differs from the index; {_REMEDY}")


def flat_tokens(batch: pa.RecordBatch) -> TokenArray:
    """The tokens of a batch's documents, one after the other: a view, without a copy."""
    lists = batch.column("token_ids")
    first, last = lists.offsets[0].as_py(), lists.offsets[-1].as_py()
    tokens: TokenArray = lists.values.slice(first, last - first).to_numpy(zero_copy_only=True)
    return tokens


def document_offsets(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Where each document of a batch begins and the last one ends in `flat_tokens`: rows + 1 numbers."""
    ends = batch.column("token_ids").offsets.to_numpy()
    offsets: NDArray[np.int64] = ends - ends[0]
    return offsets


_REMEDY = "write the shards again, or repair them (inspect_shards.py repair)"


def _require_size(path: str | Path, shard: Shard, size: int) -> None:
    if size != shard.file_bytes:
        state = "missing" if size < 0 else f"{size} bytes"
        raise ValueError(f"shard {path} is {state}, the index says {shard.file_bytes} bytes; {_REMEDY}")


def _layout(folder: Path, shard: Shard, dtype: np.dtype[Any]) -> NDArray[np.int64]:
    """Two rows: the tokens up to the end of each record batch, and the byte of the file where its tokens begin."""
    require_size(folder, shard)
    path = folder / shard.name
    ends, places, total = [], [], 0
    with pa.memory_map(str(path)) as source:
        base = source.read_buffer(1).address
        reader = pa.ipc.open_file(source)
        for tokens in (flat_tokens(reader.get_batch(number)) for number in range(reader.num_record_batches)):
            place = tokens.ctypes.data - base if len(tokens) else 0
            if not 0 <= place <= shard.file_bytes - tokens.nbytes:
                raise ValueError(f"shard {path} is compressed, which the format rules out; {_REMEDY}")
            if tokens.dtype != dtype:
                raise ValueError(f"shard {path} has ids of {tokens.dtype}, the index says {dtype}; {_REMEDY}")
            total += len(tokens)
            ends.append(total)
            places.append(place)
    if total != shard.tokens:
        raise ValueError(f"shard {path} has {total} tokens, the index says {shard.tokens}; {_REMEDY}")
    return np.array([ends, places], np.int64).reshape(2, len(ends))


@contextmanager
def _opened(path: str, shard: Shard) -> Iterator[int]:
    """A descriptor of a shard that has the size that the index says."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise ValueError(f"shard {path} is missing; {_REMEDY}") from None
    try:
        _require_size(path, shard, os.fstat(descriptor).st_size)
        yield descriptor
    finally:
        os.close(descriptor)
