"""Shards that are known to be sound: each is hashed by one of the processes of a machine, for all of them."""

import contextlib
import errno
import fcntl
import itertools
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer.progress import Progress

if TYPE_CHECKING:
    from training.processes import Processes
    from training.sources import CheckedStream
    from training.stopping import StopRequest

SOUND = b"\1"
ROUND_SECONDS = 2.0  # of hashing, between which processes hear of each other
Shards = list[tuple["CheckedStream", int]]


class Checks:
    """Which shards of a stream were found sound: a byte each, in a file that processes may share.

    A process that ends lets go of its locks, and what it had not marked is hashed by another.

    Args:
        descriptor: of the file.
        first: the byte of the first shard.
        count: of shards.
    """

    def __init__(self, descriptor: int, first: int, count: int) -> None:
        self._descriptor, self._first, self._count = descriptor, first, count

    @contextlib.contextmanager
    def needed(self, number: int, *, wait: bool) -> Iterator[bool | None]:
        """Whether a shard is to be hashed, while no other process does; it is sound where nothing is raised.

        Not to `wait` for another process that does just then gives None.
        """
        place, locked = self._first + number, False
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            locked = True
        except OSError as error:
            if not wait and error.errno in (errno.EAGAIN, errno.EACCES):
                yield None
                return
            # Else there are no locks here, or threads of two processes wait for each other: both hash it.
        try:
            yield os.pread(self._descriptor, 1, place) != SOUND
            os.pwrite(self._descriptor, SOUND, place)
        finally:
            if locked:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)

    @property
    def found(self) -> int:
        """How many shards were found sound, by whichever process."""
        return os.pread(self._descriptor, self._count, self._first).count(SOUND)


def share(streams: "Sequence[CheckedStream]", processes: "Processes") -> None:
    """Let the processes of a machine hash each shard of some streams once; every process must call."""
    counts = [len(stream.shards) for stream in streams]
    descriptor = _shared(sum(counts), processes)
    if descriptor is None:
        return
    for stream, first, count in zip(streams, itertools.accumulate([0, *counts]), counts, strict=False):
        stream.checks = Checks(descriptor, first, count)


def require_all(streams: "Sequence[CheckedStream]", processes: "Processes") -> None:
    """Look for every shard, by its size alone; every process must call. Those of a machine share the looking.

    Raises:
        ValueError: on all processes, of a shard that is missing or of another size.
    """
    first, step, fault = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_SIZE"]), None
    try:
        for stream in streams:
            stream.require(range(first, len(stream.shards), step))
    except (ValueError, OSError) as error:
        fault = str(error)
    found = [fault for fault in processes.gathered(fault) if fault]
    if found:
        raise ValueError(found[0])


def verify(streams: "Sequence[CheckedStream]", processes: "Processes", stop: "StopRequest") -> bool:
    """Hash all shards; whether that was done, and not to be stopped before. Every process must call.

    Raises:
        ValueError: on all processes, of a shard that is missing or damaged.
    """
    left: Shards = [(stream, number) for stream in streams for number in range(len(stream.shards))]
    progress, known = Progress("verify: shards", len(left), quiet=not processes.is_first), 0
    while True:
        fault, left = _hash_some(left, stop)
        found = processes.gathered((fault, stop.came, len(left)))
        faults, stops, rest = zip(*found, strict=True)
        if any(faults):
            raise ValueError(next(fault for fault in faults if fault))
        if processes.is_first:
            now = sum(stream.sound for stream in streams)
            progress.add(now - known)
            known = now
        if any(stops) or not any(rest):
            progress.end()
            return not any(stops)


def _hash_some(left: Shards, stop: "StopRequest") -> tuple[str | None, Shards]:
    """Hash for ROUND_SECONDS what no other process does just then; the first fault, and what is left."""
    deadline = time.monotonic() + ROUND_SECONDS
    busy: Shards = []
    for done, (stream, number) in enumerate(left):
        if stop.came or (done and time.monotonic() > deadline):
            return None, left[done:] + busy
        try:
            if not stream.verify(number, wait=False):
                busy.append((stream, number))
        except (ValueError, OSError) as error:
            return str(error) or repr(error), []
    return None, busy


def _shared(count: int, processes: "Processes") -> int | None:
    """A file of `count` zeros that all processes of a machine have opened and that has no name any more.

    None where there is no right to make it, or no room. It is named by the machine too: a folder for temporary files
    may be that of several.
    """
    name, opened, path = f"corella-{processes.from_first(secrets.token_hex(16))}-{platform.node()}", None, Path()
    with contextlib.suppress(OSError):
        path = Path(tempfile.gettempdir()) / name
        made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(made, 0, count)  # so that there is room when a byte is written
        opened = made
    processes.wait()
    with contextlib.suppress(OSError):
        path.unlink()
    return opened
