"""Shards that lie in remote storage (s3://, gs://, hdfs://, file://), read through a bounded folder of local copies.

A shard is copied when it is first needed, or ahead of that, hashed as it comes, and put in its place whole; the oldest
copies make room. A copy that is there from before is hashed once, and fetched anew if it is not what the index says.
All processes of a machine share the folder: one copies or hashes at a time, under a lock, which is free while a store
that refuses is waited for.
"""

import errno
import fcntl
import logging
import os
import queue
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from tokenizer.encode import TOKENIZER_FILE
from tokenizer.shard_index import flush
from tokenizer.shards import INDEX_NAME, Shard
from training.durable import damage
from training.sources import CheckedStream

# A request for each block, as object stores answer them; their refusals are waited out for some two minutes.
BLOCK_BYTES, ATTEMPTS, PATIENCE_SECONDS = 1 << 25, 8, (1, 2, 4, 8, 16, 32, 64)
log = logging.getLogger("train")


def is_remote(place: str) -> bool:
    """Whether a place is named by its storage, as s3://bucket/folder."""
    return re.match(r"[a-z][a-z0-9+.-]+://", place) is not None


def without_keys(place: str) -> str:
    """A URI as it may be told: without the user, the password and the options that it may hold."""
    return re.sub(r"(?<=://).*@", "", place).split("?")[0].rstrip("/")


def _in_a_line(error: OSError) -> str:
    return " ".join(str(error).split())


class _Notes:
    """Lines that the processes which use a cache leave for each other; they are gone for the first that uses it again.

    Every use of it holds the lock of the cache, but for looking at `known`.
    """

    def __init__(self, path: Path) -> None:
        self._file, self._read_bytes, self.known = path.open("a+"), 0, set[str]()
        weakref.finalize(self, self._file.close)
        with suppress(BlockingIOError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(0)
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def __contains__(self, line: str) -> bool:
        if line not in self.known:
            self._file.seek(self._read_bytes)
            self.known.update(self._file.read().splitlines())
            self._read_bytes = self._file.tell()
        return line in self.known

    def add(self, line: str) -> None:
        """Tell all processes."""
        self.known.add(line)
        self._file.write(f"{line}\n")
        self._file.flush()


class Cache:
    """The local copies of one remote folder; making it fetches the index and the tokenizer.

    Args:
        place: URI of a folder that write_shards wrote.
        folder: of all copies.
        limit_bytes: of the copies of shards of this place. What a process has mapped stays on the disk until it maps
            something else, so that it may for a moment be twice as many.
    """

    def __init__(self, place: str, folder: Path, limit_bytes: int) -> None:
        from pyarrow import fs

        self.place, self.limit_bytes = without_keys(place), limit_bytes
        try:
            self._remote, self._root = fs.FileSystem.from_uri(place)
        except ValueError:
            raise ValueError(
                f"{self.place} is no URI that pyarrow can open; keys belong in the environment (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY), or with / written as %2F"
            ) from None
        if not self._root.strip("/"):
            raise ValueError(f"{self.place} names no folder; give one, as s3://bucket/shards")
        self.folder = folder / xxhash.xxh3_64_hexdigest(place.rstrip("/").encode())
        (self.folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._notes = _Notes(self.folder / "notes")
            for name in (INDEX_NAME, f"tokenizer/{TOKENIZER_FILE}"):
                found = self._remote.get_file_info(f"{self._root}/{name}")
                if found.type == fs.FileType.File:
                    self._copy(name)
                else:
                    (self.folder / name).unlink(missing_ok=True)

    def fetch(self, shard: Shard, patience: Sequence[float] = PATIENCE_SECONDS) -> None:
        """Have a sound copy of a shard on the disk; ValueError names one that is missing or damaged at its source.

        A copy that was fetched or hashed since the first of the processes that use the cache opened it costs a stat.

        Args:
            patience: seconds after which it is tried again where it fails, one after the other.
        """
        for seconds in (*patience, None):
            try:
                self._have(shard)
                return
            except OSError as error:
                if seconds is None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                    raise
                log.warning("%s/%s: %s; again in %d s", self.place, shard.name, _in_a_line(error), seconds)
                time.sleep(seconds)

    def require(self, shards: Iterable[Shard]) -> None:
        """ValueError names one of these that the remote folder lacks, or has in another size, by one listing of it.

        Where the right to list is missing, as keys for reading alone may lack it, a shard is looked for when it is
        first wanted.
        """
        from pyarrow import fs

        try:
            listed = self._remote.get_file_info(fs.FileSelector(self._root))
        except OSError as error:
            log.warning("%s cannot be listed, so shards are not looked for: %s", self.place, _in_a_line(error))
            return
        sizes = {found.base_name: found.size for found in listed}
        for shard in shards:
            if shard.name not in sizes:
                raise self._missing(shard.name)
            if sizes[shard.name] != shard.file_bytes:
                raise ValueError(
                    f"shard {self.place}/{shard.name} has {sizes[shard.name]:,} bytes, the index says "
                    f"{shard.file_bytes:,}; write it again"
                )

    def _missing(self, name: str) -> ValueError:
        return ValueError(f"{self.place}/{name} is missing; write the shards again, or copy it there")

    def _have(self, shard: Shard) -> None:
        if self._identity(shard) in self._notes.known:
            return
        with self._locked():
            identity = self._identity(shard)
            if identity and identity in self._notes:
                return
            path = self.folder / shard.name
            if damage(path, {"bytes": shard.file_bytes, "xxh3_128": shard.xxh3_128}):
                path.unlink(missing_ok=True)
                self._make_room(shard.file_bytes)
                self._copy(shard.name, shard.xxh3_128)
            self._notes.add(self._identity(shard))

    def _identity(self, shard: Shard) -> str:
        """Tells a copy from any other, and from itself once it was written to; empty if there is none."""
        try:
            found = os.stat(f"{self.folder}/{shard.name}")
        except FileNotFoundError:
            return ""
        return f"{shard.name} {shard.xxh3_128} {found.st_ino} {found.st_ctime_ns}"

    def _make_room(self, needed_bytes: int) -> None:
        copies = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in self.folder.glob("*.arrow"))
        total = sum(size for _, size, _ in copies) + needed_bytes
        for _, size, file in copies:
            if total <= self.limit_bytes:
                return
            file.unlink()
            total -= size

    def _copy(self, name: str, xxh3_128: str = "") -> None:
        """Copy a file whole or not at all; ValueError if it has not the checksum that is given."""
        # Where locks do not reach other machines, each still writes a file of its own.
        digest, partial = xxhash.xxh3_128(), self.folder / f"copy-{socket.gethostname()}.partial"
        try:
            with self._remote.open_input_stream(f"{self._root}/{name}") as source, partial.open("wb") as copy:
                while block := source.read(BLOCK_BYTES):
                    digest.update(block)
                    copy.write(block)
                copy.flush()
                os.fsync(copy.fileno())
            if xxh3_128 and digest.hexdigest() != xxh3_128:
                raise ValueError(
                    f"shard {self.place}/{name} is damaged: its checksum differs from the index; write it again"
                )
            partial.replace(self.folder / name)
        except FileNotFoundError:
            raise self._missing(name) from None
        finally:
            partial.unlink(missing_ok=True)
        flush((self.folder / name).parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                raise ValueError(
                    f"the file system of {self.folder} knows no locks ({error.strerror}); give --cache a folder on a "
                    "disk of the machine"
                ) from None
            yield


class RemoteStream(CheckedStream):
    """A split in remote storage: shards are there when a token of them is read, and ahead of it where expected.

    Args:
        cache: of the folder.
        split: as of TokenStream.
    """

    def __init__(self, cache: Cache, split: str) -> None:
        super().__init__(cache.folder, split)
        self._cache = cache
        self._expected: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._seen: dict[int, None] = {}
        self._fetcher: threading.Thread | None = None

    @property
    def place(self) -> str:
        """The URI of the folder, without keys."""
        return self._cache.place

    def expect(self, starts: NDArray[Any]) -> None:
        """Say where windows that will be read later begin: their shards are copied in the background."""
        numbers = np.unique(np.searchsorted(self._ends, starts.astype(np.int64), side="right")).tolist()
        for number in numbers:
            if number not in self._seen:
                self._seen[number] = None
                self._expected.put(number)
        while len(self._seen) > len(numbers):
            del self._seen[next(iter(self._seen))]
        if self._fetcher is None:
            self._fetcher = threading.Thread(target=self._fetch_expected, name="fetch-shards", daemon=True)
            self._fetcher.start()

    def require(self, numbers: Iterable[int]) -> None:
        """As of every stream, by the names and sizes at the source."""
        self._cache.require(self.shards[number] for number in numbers)

    def check(self, number: int) -> None:
        """Have a sound copy of a shard, whether it was verified before or not: it may have made room for others."""
        self._cache.fetch(self.shards[number])

    def _hash(self, shard: Shard) -> None:
        self._cache.fetch(shard)

    def _run(self, number: int, place: int, count: int) -> Any:
        if number in self._maps:
            return super()._run(number, place, count)
        return self._with_copy(number, lambda: super(RemoteStream, self)._run(number, place, count))

    def _layout(self, number: int) -> NDArray[np.int64]:
        if number in self._layouts:
            return self._layouts[number]
        return self._with_copy(number, lambda: super(RemoteStream, self)._layout(number))

    def _with_copy(self, number: int, read: Callable[[], Any]) -> Any:
        """What `read` makes of a shard's copy, which another process may remove just then, to make room."""
        for _ in range(ATTEMPTS):
            self.check(number)
            try:
                return read()
            except (ValueError, FileNotFoundError):
                if os.path.exists(self._paths[number]):
                    raise
        raise ValueError(f"the cache {self._cache.folder} has no room for what is read; give more --cache_bytes")

    def _map(self, number: int, descriptor: int) -> Any:
        for other in [other for other in self._maps if not os.path.exists(self._paths[other])]:
            self._forget(other)
        return super()._map(number, descriptor)

    def _fetch_expected(self) -> None:
        while True:
            number = self._expected.get()
            try:
                self._cache.fetch(self.shards[number], patience=())
            except (ValueError, OSError):
                continue  # the step that reads it is patient, and says what is wrong
