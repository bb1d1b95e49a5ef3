"""Shards that are known to be sound: each is hashed by one of the processes of a machine, for all of them."""

import contextlib
import fcntl
import itertools
import os
import platform
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer.progress import Progress

if TYPE_CHECKING:
    from training.processes import Processes
    from training.sources import CheckedStream
    from training.stopping import StopRequest

SOUND = b"\1"


class Checks:
    """Which shards of a stream were found sound: a byte each, in a file that processes may share.

    A process that ends lets go of its locks, and what it had not marked is hashed by another.

    Args:
        descriptor: of the file.
        first: the byte of the first shard.
        count: of shards.
    """

    def __init__(self, descriptor: int, first: int, count: int) -> None:
        self._descriptor, self._first, self.count = descriptor, first, count

    @contextlib.contextmanager
    def needed(self, number: int) -> Iterator[bool]:
        """Whether a shard is to be hashed, while no other process does; it is sound where nothing is raised."""
        place = self._first + number
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, place)
        try:
            yield os.pread(self._descriptor, 1, place) != SOUND
            os.pwrite(self._descriptor, SOUND, place)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)

    @property
    def found(self) -> int:
        """How many shards were found sound, by whichever process."""
        return os.pread(self._descriptor, self.count, self._first).count(SOUND)


def share(streams: "Sequence[CheckedStream]", processes: "Processes") -> None:
    """Let the processes of a machine hash each shard of some streams once; every process must call."""
    counts = [len(stream.shards) for stream in streams]
    descriptor = _shared(sum(counts), processes)
    if descriptor is None:
        return
    for stream, first, count in zip(streams, itertools.accumulate([0, *counts]), counts, strict=False):
        stream.checks = Checks(descriptor, first, count)


def verify(streams: "Sequence[CheckedStream]", processes: "Processes", stop: "StopRequest") -> bool:
    """Hash all shards; whether that was done and not to be stopped before. Every process must call.

    Raises:
        ValueError: on each process that comes to it, of a shard that is missing or damaged.
    """
    for stream in streams:
        count = len(stream.shards)
        progress = Progress(f"verify: {stream.split} shards of {stream.place}", count, quiet=not processes.is_first)
        before = 0
        begin = processes.rank * count // processes.world_size  # each begins elsewhere, and comes to all
        for number in range(begin, begin + count):
            if stop.came:
                break
            stream.verify(number % count)
            progress.add(stream.sound - before)
            before = stream.sound
        progress.end()
    return not processes.total([stop.came])[0]


def _shared(count: int, processes: "Processes") -> int | None:
    """A file of `count` zeros that all processes of a machine have opened and that has no name any more.

    None where there is no right to make it, or no room. It is named by the machine too: a folder for temporary files
    may be that of several.
    """
    run = processes.from_first(secrets.token_hex(16))
    path, descriptor = Path(tempfile.gettempdir()) / f"corella-{run}-{platform.node()}", None
    with contextlib.suppress(OSError):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(opened, 0, count)  # so that there is room when a byte is written
        descriptor = opened
    processes.wait()
    path.unlink(missing_ok=True)
    return descriptor
