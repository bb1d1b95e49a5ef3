"""Where the sequences of a run come from: folders of shards by weight, each shard checked when it is first read."""

import contextlib
import hashlib
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokenizer.shards import Shard, TokenStream, require_size, verify_shard
from training.checks import Checks
from training.order import Mixture, Numbers, TrainingOrder, count_windows

# Asks the kernel to map the pages of a file at once (Linux 5.14); Python names it from 3.15 on.
POPULATE_READ = 22


class CheckedStream(TokenStream):
    """The tokens of a split, of shards each of which is hashed before its first token is handed out.

    ValueError names a shard that is missing or differs from the index. Hashing takes some GB/s of what is in the page
    cache, and brings there what is not. `checks`, where there are any, say what another process hashed.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        super().__init__(folder, split)
        self.checks: Checks | None = None
        self._sound = set[int]()

    @property
    def place(self) -> str:
        """Where the shards lie, as users name it."""
        return str(self.folder)

    def verify(self, number: int, *, wait: bool = True) -> bool:
        """Hash a shard unless that was done before; False where another process does, and it is not to wait for it."""
        if number not in self._sound:
            shared = self.checks.needed(number, wait=wait) if self.checks else contextlib.nullcontext(True)
            with shared as is_needed:
                if is_needed is None:
                    return False
                if is_needed:
                    self._hash(self.shards[number])
            self._sound.add(number)
        return True

    def require(self, numbers: Iterable[int]) -> None:
        """ValueError names one of these shards that is missing or has not the size that the index says."""
        for number in numbers:
            require_size(self.folder, self.shards[number])

    @property
    def sound(self) -> int:
        """Shards that were hashed, by this process and those that it shares checks with."""
        return self.checks.found if self.checks else len(self._sound)

    def check(self, number: int) -> None:
        """What comes before the first token of a shard is read."""
        self.verify(number)

    def _hash(self, shard: Shard) -> None:
        verify_shard(self.folder, shard)

    def _layout(self, number: int) -> NDArray[np.int64]:
        self.check(number)
        return super()._layout(number)

    def _map(self, number: int, descriptor: int) -> mmap.mmap:
        """With all pages there: a first touch of each by a window would cost some 10 µs."""
        shard_map = super()._map(number, descriptor)
        with contextlib.suppress(OSError):  # an older kernel
            shard_map.madvise(POPULATE_READ)
        return shard_map


class Storage:
    """The folders of shards of a run.

    Args:
        places: as the user names them.
        cache: folder for copies of remote shards.
        cache_bytes: bound on the copies, of all remote folders together.
    """

    def __init__(self, places: list[str], *, cache: Path | None = None, cache_bytes: int = 64 << 30) -> None:
        from training.remote import Cache, is_remote

        if not places:
            raise ValueError("shards is empty; name the folder that write_shards wrote")
        if twice := next((place for place in places if places.count(place) > 1), None):
            raise ValueError(f"{twice} is named twice in --shards; name it once, and how much of it by --data.weights")
        remote = [place for place in places if is_remote(place)]
        self._caches = dict[str, Cache]()
        for place in remote:
            assert cache is not None
            self._caches[place] = Cache(place, cache, cache_bytes // len(remote))
        self.places = places
        self.folders = [self._caches[place].folder if place in self._caches else Path(place) for place in places]

    @property
    def is_remote(self) -> bool:
        """Whether any folder is read through copies."""
        return bool(self._caches)

    def streams(self, split: str, *, first: bool = False) -> list[CheckedStream]:
        """A split of every folder, or of the first alone."""
        from training.remote import RemoteStream

        found: list[CheckedStream] = []
        for place, folder in zip(self.places[: 1 if first else None], self.folders, strict=False):
            if place in self._caches:
                found.append(RemoteStream(self._caches[place], split))
            else:
                found.append(CheckedStream(folder, split))
        return found


@dataclass(frozen=True)
class Source:
    """A split of one folder, and the order in which a run reads its windows."""

    stream: TokenStream
    order: TrainingOrder

    @property
    def name(self) -> str:
        """The folder's, or that of a remote one, of which there is a copy elsewhere."""
        return Path(getattr(self.stream, "place", self.stream.folder)).name

    @property
    def windows(self) -> int:
        """In one epoch."""
        return self.order.windows


class Sources:
    """Sequence number -> (source, window), for all sources of a run by their weights.

    Args:
        streams: the split of each folder; all of one tokenizer.
        sequence_length: T.
        seed: of the order.
        weights: one a stream; empty = by their windows, so that all reach the end of an epoch together, but for
            what rounding to parts of 4,096 leaves, less than one part a folder: one of 1/400 of the data may be a
            tenth off, and one below 1/4096 read twice an epoch (one of n folders, up to n times).
        shuffle_tokens: tokens that are shuffled together; 0 = all.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        *,
        sequence_length: int,
        seed: int,
        weights: list[float] | None = None,
        shuffle_tokens: int = 0,
    ) -> None:
        self.sequence_length = sequence_length
        self.fingerprint = _fingerprint(streams)
        group = self.group = -(-shuffle_tokens // sequence_length)
        self.all = [self._source(stream, seed, group) for stream in streams]
        if weights and len(weights) != len(streams):
            raise ValueError(f"data.weights {weights} are {len(weights)} for {len(streams)} folders of --shards")
        proportions = weights or [float(source.windows) for source in self.all]
        self.mixture = Mixture(proportions, f"{seed}:{self.fingerprint}:{sequence_length}")

    def __call__(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Source and window of each of `numbers` (n,)."""
        sources, own = self.mixture(numbers)
        windows = own.copy()
        for number, source in enumerate(self.all):
            here = sources == number
            if here.any():
                windows[here] = source.order(own[here])
        return sources, windows

    def expect(self, numbers: Numbers) -> None:
        """Let remote sources copy what the sequences `numbers` will read."""
        from training.remote import RemoteStream

        sources, windows = self(numbers)
        for number, source in enumerate(self.all):
            if isinstance(source.stream, RemoteStream) and (sources == number).any():
                source.stream.expect(windows[sources == number] * np.uint64(self.sequence_length))

    @property
    def is_remote(self) -> bool:
        """Whether any source is."""
        from training.remote import RemoteStream

        return any(isinstance(source.stream, RemoteStream) for source in self.all)

    def epochs(self, consumed: int) -> list[float]:
        """How often each source has been read after `consumed` sequences."""
        taken = self.mixture.taken(consumed)
        return [count / source.windows for count, source in zip(taken, self.all, strict=True)]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text that a token has on average, as the sources are mixed."""
        shares = zip(self.mixture.shares, (source.stream for source in self.all), strict=True)
        return sum(share * stream.text_bytes / len(stream) for share, stream in shares)

    @property
    def opened(self) -> tuple[int, int]:
        """Shards of which something was read, and all of them."""
        streams = [source.stream for source in self.all]
        return sum(stream.opened for stream in streams), sum(len(stream.shards) for stream in streams)

    @property
    def windows(self) -> int:
        """Of all sources together."""
        return sum(source.windows for source in self.all)

    def _source(self, stream: TokenStream, seed: int, group: int) -> Source:
        length, windows = self.sequence_length, count_windows(len(stream), self.sequence_length)
        if windows < 1:
            raise ValueError(
                f"batch.sequence_length {length} needs {length + 1} tokens, the training split of {stream.folder} has "
                f"{len(stream)}; choose a shorter one or more data"
            )
        identity = f"{seed}:{stream.index.fingerprint(stream.split)}:{length}"
        return Source(stream, TrainingOrder(windows, identity, group))


def _fingerprint(streams: Sequence[TokenStream]) -> str:
    """Identity of the data, wherever it lies; of one folder that of its index."""
    first = streams[0].index
    for stream in streams[1:]:
        if stream.index.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise ValueError(
                f"{stream.folder} and {streams[0].folder} have different tokenizers; write one of them again"
            )
    prints = [stream.index.fingerprint(stream.split) for stream in streams]
    for number, one in enumerate(prints):
        if one in prints[:number]:
            twin = streams[prints.index(one)]
            raise ValueError(
                f"{streams[number].folder} and {twin.folder} hold the same shards, which would be read in the same "
                "order; name one of them, and how much of it by --data.weights"
            )
    return prints[0] if len(prints) == 1 else hashlib.blake2b(":".join(prints).encode(), digest_size=16).hexdigest()
