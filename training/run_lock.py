"""One run a folder at a time: a lock that the first process holds, and that the system releases when it ends."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from training.processes import Processes
from training.stopping import StopRequest

LOCK = ".lock"
# A machine that died keeps its locks on a shared file system until its lease ends, 90 s by NFS's default.
WAIT_SECONDS, LOOK_SECONDS = 120.0, 2.0
log = logging.getLogger("train")


@contextlib.contextmanager
def held(folder: Path, processes: Processes, stop: StopRequest) -> Iterator[bool | None]:
    """The lock of a run's folder, made if need be, and gone if nothing else came into it; every process must call.

    Yields whether another run held it until now, so that what was read in the folder before may have changed; None if
    the wait for it was to be stopped: it is not held then.

    Raises:
        ValueError: on all processes, if another run goes on writing there.
    """
    file, fault, begun = None, None, time.monotonic()
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
        fault = _taken(file, folder, stop)
    waited = time.monotonic() - begun >= LOOK_SECONDS
    fault, stopped, waited = processes.from_first((fault, stop.came, waited))
    try:
        if fault is not None and not stopped:
            raise ValueError(fault)
        yield None if fault is not None else waited
    finally:
        if file is not None:
            file.close()
            if fault is None and [entry.name for entry in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()


def _taken(file: IO[str], folder: Path, stop: StopRequest) -> str | None:
    """Lock a file and say in it who did; why not, if another run goes on holding it."""
    deadline, told = time.monotonic() + WAIT_SECONDS, False
    while not _locked(file, folder):
        holder = _holder(file)
        if _lives_here(holder) or time.monotonic() > deadline or stop.came:
            who = f"process {holder['process']} on {holder['machine']}" if holder else "another run"
            return f"{folder} is being written by {who}; wait for it, or choose another --output"
        if not told:
            log.info("%s is held by a run on another machine: waiting %.0f s for it to end", folder, WAIT_SECONDS)
            told = True
        time.sleep(LOOK_SECONDS)
    file.seek(0)
    file.truncate()
    json.dump({"machine": socket.gethostname(), "process": os.getpid()}, file)
    file.flush()
    return None


def _locked(file: IO[str], folder: Path) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which children do not inherit, as they would flock
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        log.warning("the file system of %s knows no locks (%s): see that one run writes there", folder, error.strerror)
    return True


def _holder(file: IO[str]) -> dict[str, str | int]:
    """What the holder of the lock says of itself; nothing if it has not yet."""
    file.seek(0)
    with contextlib.suppress(ValueError):
        found: dict[str, str | int] = json.load(file)
        return found
    return {}


def _lives_here(holder: dict[str, str | int]) -> bool:
    return holder.get("machine") == socket.gethostname() and Path(f"/proc/{holder['process']}").exists()
